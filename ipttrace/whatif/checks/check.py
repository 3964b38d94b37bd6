# SPDX-License-Identifier: GPL-2.0-only
"""An answer against what a test expects.  Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from ipttrace.trace.row import Row
from ipttrace.whatif.answer import words
from ipttrace.whatif.answer.ask import Answer
from ipttrace.whatif.checks.file import By, Test


@dataclass(frozen=True, slots=True)
class Result:
    """A test's result: it passed if there are neither `wrong` lines nor an `error`.

    `answer`: what became of the packet; `seconds`: how long it took.
    """

    test: Test
    wrong: tuple[str, ...]
    answer: tuple[str, ...]
    error: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all was as expected."""
        return not self.wrong and not self.error


def check(test: Test, answer: Answer, seconds: float) -> Result:
    """Returns the result of a test."""
    return Result(test, tuple(_wrong(test, answer)), tuple(words.lines(answer, [])), "", seconds)


def _wrong(test: Test, answer: Answer) -> Iterator[str]:
    fate = answer.fate
    verdict = "accepted" if fate.verdict == "ACCEPT" else "dropped"
    if test.verdict is not None and test.verdict != verdict:
        yield f"verdict: {verdict} instead of {test.verdict}"
    rows = list(answer.own)
    if test.by is not None:
        rows = [row for row in rows if row.table == test.by.table]
        if not any(_decided(test.by, row) for row in rows):
            yield f"by: {_deciders(rows) or 'no rule of that table'} instead of {_by(test.by)}"
        rows = [row for row in rows if _decided(test.by, row)]
    if test.rule is not None and not any(test.rule in (row.rule or "") for row in rows):
        known = " or ".join(row.rule for row in rows if row.rule)
        yield f"rule: {known or 'none'} instead of …{test.rule}…"
    if test.delivered is not None and test.delivered != (fate.how == "delivered"):
        yield f"delivered: {'no' if test.delivered else 'yes'}"
    devices = [one.device for one in fate.left]
    if test.leaves is not None and test.leaves not in devices:
        yield f"leaves: {', '.join(devices) or 'nothing'} instead of {test.leaves}"
    sources = [(one.src, one.sport) for one in fate.left]
    targets = [(one.dst, one.dport) for one in fate.left]
    for name, expected, found in (("from", test.source, sources), ("to", test.target, targets)):
        if expected is not None and not any(_same(expected, one) for one in found):
            listed = ", ".join(map(_end, found)) or "nothing leaves"
            yield f"{name}: {listed} instead of {_end(expected)}"


def _decided(by: By, row: Row) -> bool:
    if row.chain != by.chain:
        return False
    if by.number is None:
        return True
    if by.number == 0:
        return row.match == "policy"
    return row.match == "rule" and row.rulenum == by.number


def _deciders(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.table} {row.chain} {row.rulenum if row.match == 'rule' else row.match}"
        for row in rows
    )


def _by(by: By) -> str:
    number = {None: "", 0: " policy"}.get(by.number, f" {by.number}")
    return f"{by.table} {by.chain}{number}"


def _same(expected: tuple[str, int | None], found: tuple[str, int | None]) -> bool:
    if expected[1] is not None and expected[1] != found[1]:
        return False
    try:
        return ipaddress.ip_address(expected[0]) == ipaddress.ip_address(found[0])
    except ValueError:
        return False


def _end(end: tuple[str, int | None]) -> str:
    address, port = end
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
