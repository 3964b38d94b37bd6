# SPDX-License-Identifier: GPL-2.0-only
"""A rule taken apart, as the kernel answered; which rules a packet met in front of it.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ipttrace.trace.row import Row
from ipttrace.trace.rules import Rulesets
from ipttrace.whatif.answer.ask import Answer
from ipttrace.whatif.answer.differs import table_of
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.whynot.place import Place


@dataclass(frozen=True, slots=True)
class Asked:
    """A condition: whether the packet met it, and the packet's value if not.

    `met` is None if the condition could not be asked by itself; `value` then says why.
    """

    text: str
    met: bool | None
    value: str = ""


@dataclass(frozen=True, slots=True)
class Apart:
    """A rule and its conditions; of several times that the packet came there, when it met most."""

    place: Place
    conditions: tuple[Asked, ...]


def visit(
    answer: Answer, rulesets: Rulesets, place: Place, count: int
) -> tuple[Row, frozenset[int]]:
    """Returns the row of the packet at the rule, and which rules in front of it it met there.

    There are `count` rules in front of it, of which every packet meets the first; numbers
    are from 0.  Raises WhatIfError if the packet did not come there.
    """
    found: list[tuple[Row, set[int]]] = []
    for row in answer.own:
        of = table_of(row, rulesets)
        if of is None or (of.family, of.table) != (place.table.family, place.table.table):
            continue
        for step in row.path:
            number = step.rulenum - place.number
            if step.chain != place.chain or step.match != "rule" or not 0 <= number < count:
                continue
            if number == 0:
                found.append((row, set()))
            if found:
                found[-1][1].add(number)
    if not found:
        raise WhatIfError(f"{place}: the packet took another way when it was sent again")
    # If it comes there several times: the time at which it met most.
    row, hits = max(found, key=lambda one: len(one[1]))
    return row, frozenset(hits)
