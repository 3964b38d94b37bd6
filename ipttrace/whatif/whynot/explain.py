# SPDX-License-Identifier: GPL-2.0-only
"""Why a packet did not meet a rule, or that it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ipttrace.trace.rules import Table, family_name
from ipttrace.whatif.answer import words as answer_words
from ipttrace.whatif.answer.ask import Answer, ask
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.whynot import iptables, nftables, place, reach
from ipttrace.whatif.whynot.apart import Apart
from ipttrace.whatif.whynot.place import Place, Words

_MAPS: Final = 64  # named maps that are read


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Whether a packet met a rule, and why not.

    `reached`: it was compared with the rule, whose conditions are in `apart`; else `why` says
    what happened, and `jumps` are the rules on its way that would have led there.
    """

    place: Place
    answer: Answer
    matched: bool
    reached: bool
    why: str
    apart: Apart | None
    jumps: tuple[Apart, ...]


def why_not(copy: Copy, packet: Packet, rule: Words) -> WhyNot:
    """Returns why the packet does not meet the rule.  Raises WhatIfError.

    The packet is sent several times; the copy's rules are afterwards as before.
    """
    answer = ask(copy, packet)
    netns = next(iter(copy.names), 0)
    asked = place.resolve(rule, copy.trace.rulesets.tables(netns), answer.sent[0] >> 4)
    way = reach.way(asked.table, answer.own, copy.trace.rulesets, _maps(copy, asked.table))
    came = reach.reached(asked, way, answer_words.outcome(answer))
    taken = _apart(copy, packet, asked) if came.compared else None
    jumps = tuple(_apart(copy, packet, one) for one in came.jumps)
    return WhyNot(asked, answer, came.hit, came.compared, came.why, taken, jumps)


def _apart(copy: Copy, packet: Packet, one: Place) -> Apart:
    if one.table.backend == "nft":
        return nftables.apart(copy, packet, one)
    return iptables.apart(copy, packet, one)


def _maps(copy: Copy, table: Table) -> dict[str, str]:
    """The elements of named maps that rules jump through."""
    if table.backend != "nft":
        return {}
    names = sorted(set(_named_maps(table)))[:_MAPS]
    argv = ["nft", "list", "map", family_name(table.family), table.table]
    return {name: copy.run([*argv, name]).output for name in names}


def _named_maps(table: Table) -> Iterator[str]:
    for chain in table.chains.values():
        for text in chain.rules:
            yield from reach.maps_in(text)
