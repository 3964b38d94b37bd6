# SPDX-License-Identifier: GPL-2.0-only
"""A rule of iptables in the copy: rules of one condition each, put in front of it.

They have no target, so that they change nothing; the trace shows which of them the packet met.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ipttrace.text import clean
from ipttrace.trace.rules import NFT, family_name
from ipttrace.whatif.answer.ask import Answer, ask
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.whynot import values
from ipttrace.whatif.whynot.apart import Apart, Asked, visit
from ipttrace.whatif.whynot.conditions import Condition, take_apart
from ipttrace.whatif.whynot.place import Place

_MOST: Final = 4096  # rules in front of one
_CHAIN: Final = re.compile(r"[A-Za-z0-9_.:+/@#%][A-Za-z0-9_.:+/@#%-]{0,63}")


@dataclass(slots=True)
class _Unit:
    """Rules that are put in together: of a condition, or of the values that it may have.

    `refused`: iptables does not take them.  `at`: how many are in front of them.
    """

    rules: Sequence[tuple[str, ...]]
    at: int = 0
    refused: str = ""
    more: tuple[str, ...] = ()  # words that iptables may need


@dataclass(slots=True)
class _Asking:
    condition: Condition
    whether: _Unit
    possible: values.Questions = field(default_factory=list)
    which: _Unit | None = None


def apart(copy: Copy, packet: Packet, place: Place) -> Apart:
    """Returns the conditions of a rule that the packet comes to.  Raises WhatIfError."""
    program = _program(place)
    if not _CHAIN.fullmatch(place.chain) or not _CHAIN.fullmatch(place.table.table):
        raise WhatIfError(f"{place}: the chain's name has characters that cannot be given")
    rule = _text(copy, program, place)
    units = [_Unit([()])]  # met by every packet that comes here
    asking = [_asking(one, units) for one in take_apart(rule)]
    if sum(len(one.rules) for one in units) > _MOST:
        raise WhatIfError(f"{place}: too many conditions")
    count = _put_in(copy, program, place, units)
    try:
        answer = ask(copy, packet)
    finally:
        _restore(copy, program, place, [f"-D {place.chain} {place.number}"] * count)
    row, hits = visit(answer, copy.trace.rulesets, place, count)
    met = [_asked(one, hits) for one in asking]
    failed_protocol = next(
        (one for one, state in zip(asking, met, strict=True)
         if one.condition.option == "-p" and state is False), None,
    )  # fmt: skip
    found = []
    for one, state in zip(asking, met, strict=True):
        value = ""
        if state is None:
            value = one.whether.refused
        elif state is False:
            if one.whether.more and failed_protocol and one.condition.module:
                state, value = None, f"asks for {' '.join(one.condition.prefix)}"
            else:
                value = _value(one, hits, answer, row)
        found.append(Asked(one.condition.shown, state, value))
    return Apart(place, tuple(found))


def _program(place: Place) -> str:
    table = place.table
    six = "6" if table.family == 6 or (table.family > NFT and _is_six(table.family)) else ""
    return f"ip{six}tables-{'legacy' if table.family < NFT else 'nft'}"


def _is_six(family: int) -> bool:
    return family_name(family) == "ip6"


def _text(copy: Copy, program: str, place: Place) -> str:
    argv = [program, "-t", place.table.table, "-S", place.chain, str(place.number)]
    done = copy.run(argv)
    begin = f"-A {place.chain}"
    text = done.output.strip("\n")
    if done.status or not text.startswith(begin) or "\n" in text:
        raise WhatIfError(f"{place}: {program} does not print it: {clean(done.reason, 120)}")
    return text.removeprefix(begin)


def _asking(condition: Condition, units: list[_Unit]) -> _Asking:
    """Adds the units of a condition."""
    more = condition.prefix if condition.needs_prefix else ()
    one = _Asking(condition, _Unit([condition.words], more=more))
    units.append(one.whether)
    one.possible = values.questions(condition)
    if one.possible:
        one.which = _Unit([words for _, words in one.possible])
        units.append(one.which)
    return one


def _put_in(copy: Copy, program: str, place: Place, units: Sequence[_Unit]) -> int:
    """Puts all rules in front of the rule; returns how many there are."""
    count = 0
    lines: list[str] = []
    for unit in units:
        unit.at = count
        lines += _lines(place, unit)
        count += len(unit.rules)
    if not _restore(copy, program, place, lines):
        return count
    # One of them is refused: which?
    count = 0
    for unit in units:
        unit.at = count
        reason = _restore(copy, program, place, _lines(place, unit))
        if reason and not unit.more and (prefix := _prefix_of(unit, units)):
            unit.more = prefix
            reason = _restore(copy, program, place, _lines(place, unit))
        unit.refused = reason
        count += 0 if reason else len(unit.rules)
    return count


def _prefix_of(unit: _Unit, units: Sequence[_Unit]) -> tuple[str, ...]:
    """The words of the rule's protocol, for a unit of another condition."""
    for one in units:
        words = one.rules[0]
        if "-p" in words[:2] and one is not unit and not one.refused:
            return words
    return ()


def _lines(place: Place, unit: _Unit) -> list[str]:
    return [
        " ".join(["-I", place.chain, str(place.number + unit.at + at), *unit.more, *words])
        for at, words in enumerate(unit.rules)
    ]


def _restore(copy: Copy, program: str, place: Place, lines: Sequence[str]) -> str:
    """Runs lines; returns why they are refused, "" if they are not."""
    text = "\n".join([f"*{place.table.table}", *lines, "COMMIT", ""])
    done = copy.run([f"{program}-restore", "--noflush"], text)
    return f"cannot be asked by itself: {clean(done.reason, 120)}" if done.status else ""


def _asked(one: _Asking, hits: frozenset[int]) -> bool | None:
    return None if one.whether.refused else one.whether.at in hits


def _value(one: _Asking, hits: frozenset[int], answer: Answer, row: object) -> str:
    if one.which is not None and not one.which.refused:
        found = [
            value for at, (value, _) in enumerate(one.possible, one.which.at) if at in hits
        ]  # fmt: skip
        return values.answered(one.condition, found)
    return values.of_row(one.condition, row, answer.sent)  # type: ignore[arg-type]
