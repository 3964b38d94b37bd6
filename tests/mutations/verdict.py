# SPDX-License-Identifier: GPL-2.0-only
"""Judges whether a test failed, by what it and its guest did.

A test fails in its call, or if it leaves something behind (in its teardown).  Whatever keeps it
from running - a build, a boot, its set-up - is no failure of the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MOST: Final = 120  # characters of a reason


@dataclass(frozen=True, slots=True)
class Line:
    """What `outcomes` has written of one phase of a test."""

    test: str
    phase: str  # begin, setup, call, teardown
    outcome: str  # passed, failed, skipped; "" when it begins
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failed`: whether the test did; None: it could not run.  `why`: one line."""

    failed: bool | None
    why: str = ""


def read(text: str) -> list[Line]:
    """The lines of the file; one that a dying guest did not complete is left out."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(Line(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return lines


def is_of(nodeid: str, test: str) -> bool:
    """Whether the node is the test, or one of its parameters'."""
    return nodeid == test or nodeid.startswith(f"{test}[")


def judge(
    test: str, lines: Iterable[Line], status: int | None, death: str = "", end: str = ""
) -> Verdict:
    """The verdict on `test`.

    `lines`: in their order; `status`: pytest's exit status, None if the guest died or hung;
    `death`: of what, if that counts as a failure of the test in which it did; `end`: the same
    for people.
    """
    own = [line for line in lines if is_of(line.test, test)]
    for line in own:
        if line.outcome == "failed" and line.phase in ("call", "teardown"):
            return Verdict(True, _short(line.why))
    for line in own:
        if line.outcome in ("failed", "skipped"):
            return Verdict(None, _short(f"{line.outcome} in its {line.phase}: {line.why}"))
    if status is None:
        inside = bool(own) and own[-1].phase != "teardown"
        if inside and death:
            return Verdict(True, _short(death))
        where = "in the test" if inside else "outside the test"
        return Verdict(None, _short(f"the guest ended {where}: {end}"))
    if status not in (0, 1):
        return Verdict(None, f"pytest ended with exit status {status}")
    if not own:
        return Verdict(None, "it did not run")
    return Verdict(False)


def _short(text: str) -> str:
    """The first line, cut."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if len(first) <= _MOST else first[: _MOST - 1] + "…"
