# SPDX-License-Identifier: GPL-2.0-only
"""Why a packet did not meet a rule, as lines and as an object.  Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from ipttrace.whatif.answer import words as answer_words
from ipttrace.whatif.whynot.apart import Apart
from ipttrace.whatif.whynot.explain import WhyNot

MATCHED: Final = 0
NOT_MATCHED: Final = 3
_MARKS: Final = {True: "✓", False: "✗", None: "?"}


def status(found: WhyNot) -> int:
    """Returns the exit status: 0 the packet met the rule, 3 it did not."""
    return MATCHED if found.matched else NOT_MATCHED


def lines(found: WhyNot, notes: list[str]) -> list[str]:
    """Returns the answer's lines; `notes`: what the copy lacks."""
    asked = found.apart or Apart(found.place, ())
    listed = _apart(asked)
    if found.matched:
        listed.append("matched: the packet meets this rule")
    elif found.reached:
        listed.append(f"not matched: {_missed(asked)}")
    else:
        listed.append(f"not reached: {found.why}")
        for one in found.jumps:
            listed += _apart(one)
    rest = answer_words.lines(found.answer, notes)
    if found.why and rest[0] in found.why:
        rest = rest[1:]
    return listed + rest


def _missed(asked: Apart) -> str:
    missed = [one.text for one in asked.conditions if one.met is False]
    return ", ".join(missed) or "a condition that cannot be asked by itself"


def _apart(one: Apart) -> list[str]:
    width = max((len(asked.text) for asked in one.conditions), default=0)
    found = [f"{one.place}: {one.place.text or '(asks nothing)'}"]
    for asked in one.conditions:
        value = ""
        if asked.value:
            value = f" ({'is ' if asked.met is False else ''}{asked.value})"
        found.append(f"  {asked.text:{min(width, 60)}}  {_MARKS[asked.met]}{value}")
    return found


def as_json(found: WhyNot, notes: list[str]) -> dict[str, Any]:
    """Returns the answer as an object for JSON lines."""
    return {
        "why_not": {
            **_place(found.apart or Apart(found.place, ())),
            "matched": found.matched,
            "reached": found.reached,
            "why": found.why or None,
            "jumps": [_place(one) for one in found.jumps],
        },
        **answer_words.as_json(found.answer, notes),
    }


def _place(one: Apart) -> dict[str, Any]:
    return {
        "table": one.place.table.table,
        "tables": str(one.place).split(" ", 1)[0] if one.place.table.backend == "nft" else "ip",
        "chain": one.place.chain,
        "rulenum": one.place.number,
        "rule": one.place.text,
        "conditions": [asdict(asked) for asked in one.conditions],
    }
