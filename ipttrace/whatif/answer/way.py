# SPDX-License-Identifier: GPL-2.0-only
"""The ways of a packet through two sets of rules, beside each other.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import NFT, Rulesets
from ipttrace.trace.store import Store
from ipttrace.whatif.answer import words
from ipttrace.whatif.answer.ask import Answer

_GAP: Final = 5  # between the columns, with the mark


@dataclass(frozen=True, slots=True)
class Line:
    """A rule that the packet met, a policy, or what became of it.

    `key`: what must be the same, unless it is None, unknown; a rule's number may be another one.
    """

    text: str
    key: tuple[str | None, ...]


def way(answer: Answer, store: Store) -> list[Line]:
    """Returns the way of a packet; `store`: that of the copy's trace."""
    fate = answer.fate
    leaves = [f"{one.device} {one.src} {one.dst} {one.dport}" for one in fate.left]
    key = (fate.verdict, fate.how, fate.reason, *leaves)
    return [*of_rows(answer.own, store), Line(words.outcome(answer), key)]


def of_rows(rows: Sequence[Row], store: Store) -> list[Line]:
    """Returns the way of a packet with these rows of a store, without what became of it."""
    found: list[Line] = []
    for row in rows:
        raw = store.raw(row.index)
        rulesets = store.rulesets.get(int(raw["host"]))
        for step in row.path:
            text = _text(row, step, rulesets, int(raw["ruleset"]))
            found.append(_line(row, step, text))
        ends = _ends(row)
        verdict = row.verdict or "verdict unknown"
        key = (row.table, row.hook, row.verdict, ends)
        found.append(Line(f"{row.table} {row.hook}: {verdict}, {ends}", key))
    return found


def _text(row: Row, step: Step, rulesets: Rulesets | None, generation: int) -> str | None:
    if rulesets is None or step.match != "rule":
        return None
    family = NFT + row.tables if row.tables else row.family
    return rulesets.text(row.netns, family, row.table, step.chain, step.rulenum, generation)


def _line(row: Row, step: Step, text: str | None) -> Line:
    if step.match == "rule":
        shown = f"{row.table} {step.chain} {step.rulenum}: {text or ''}"
        return Line(shown, (row.table, step.chain, text))
    what = "end"
    if step.match == "policy":
        what = f"policy {row.verdict or ''}".strip()
    return Line(f"{row.table} {step.chain}: {what}", (row.table, step.chain, what))


def _ends(row: Row) -> str:
    source = row.src if row.sport is None else f"{row.src}:{row.sport}"
    return f"{source} > {row.dst if row.dport is None else f'{row.dst}:{row.dport}'}"


def difference(before: Sequence[Line], after: Sequence[Line]) -> int | None:
    """Returns the number, from 0, of the first line that differs; None if none does."""
    pairs = zip_longest(before, after)
    return next(
        (at for at, (one, two) in enumerate(pairs) if not one or not two or not _same(one, two)),
        None,
    )


def _same(one: Line, two: Line) -> bool:
    pairs = zip(one.key, two.key, strict=False)
    return len(one.key) == len(two.key) and all(None in (a, b) or a == b for a, b in pairs)


def beside(
    before: Sequence[Line], after: Sequence[Line], titles: tuple[str, str], width: int
) -> list[str]:
    """Returns lines of at most `width` characters: both ways, the first difference marked."""
    room = max((width - _GAP) // 2, 20)
    left = min(max([len(titles[0]), *(len(one.text) for one in before)]), room)
    first = difference(before, after)
    found = [f"{titles[0]:{left}}{'':{_GAP}}{titles[1]}"]
    for at, (one, two) in enumerate(zip_longest(before, after)):
        mark = "≠" if at == first else " "
        texts = _cut(one.text if one else "", left), _cut(two.text if two else "", room)
        found.append(f"{texts[0]:{left}}  {mark}  {texts[1]}".rstrip())
    if first is None:
        found.append("both ways are the same")
    return found


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def as_json(before: Sequence[Line], after: Sequence[Line]) -> dict[str, Any]:
    """Returns both ways as an object."""
    return {
        "before": [one.text for one in before],
        "after": [one.text for one in after],
        "first_difference": difference(before, after),
    }
