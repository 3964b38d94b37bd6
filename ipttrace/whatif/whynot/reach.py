# SPDX-License-Identifier: GPL-2.0-only
"""How far a packet came towards a rule: compared with it, taken before, or not sent there.

Pure: from the rows of the packet and the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ipttrace.rule_words import target
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import Rulesets, Table
from ipttrace.whatif.answer.differs import compared, table_of
from ipttrace.whatif.whynot.place import Place, named

_JUMP: Final = re.compile(r"\b(?:jump|goto) ([^\s,{}]+)")
_NAMED_MAP: Final = re.compile(r"\bvmap @(\S+)")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Reached:
    """`hit`: the packet met the rule; `compared`: it was compared with it.

    Otherwise `why` says what happened, and `jumps` are the rules that would have led there
    and that the packet did not meet.
    """

    hit: bool
    compared: bool
    why: str = ""
    jumps: tuple[Place, ...] = ()


@dataclass(slots=True)
class Way:
    """The packet's way through one table.

    `maps`: the chains that the elements of named maps lead to, by map.
    """

    table: Table
    rows: list[Row]
    maps: Mapping[str, str] = field(default_factory=dict)
    compared: set[tuple[str, int]] = field(default_factory=set)
    hit: set[tuple[str, int]] = field(default_factory=set)

    def jumps_to(self, chain: str) -> list[Place]:
        """Returns the rules that lead to a chain."""
        return [
            Place(self.table, name, number)
            for name, one in self.table.chains.items()
            for number, text in enumerate(one.rules, 1)
            if chain in _targets(text, self.table.backend, self.maps)
        ]


def way(
    table: Table, rows: Sequence[Row], rulesets: Rulesets, maps: Mapping[str, str] | None = None
) -> Way:
    """Returns the way of a packet with these rows through a table."""
    found = Way(table, [], maps or {})
    for row in rows:
        of = table_of(row, rulesets)
        if of is None or (of.family, of.table) != (table.family, table.table):
            continue
        found.rows.append(row)
        found.compared.update(compared(row, table))
        found.hit.update((one.chain, one.rulenum) for one in row.path if one.match == "rule")
    return found


def reached(place: Place, way: Way, fate: str) -> Reached:
    """Returns how far the packet came; `fate`: what became of it, in words."""
    key = (place.chain, place.number)
    if key in way.compared:
        return Reached(key in way.hit, True)
    return _not_reached(place, way, fate, frozenset())


def _not_reached(place: Place, way: Way, fate: str, seen: frozenset[str]) -> Reached:
    chain = place.chain
    if steps := [
        (row, at, step)
        for row in way.rows
        for at, step in enumerate(row.path)
        if step.chain == chain and step.match == "rule" and step.rulenum < place.number
    ]:
        row, at, step = steps[-1]
        return Reached(False, False, _taken(way.table, row, at, step))
    callers = way.jumps_to(chain)
    missed = [
        one
        for one in callers
        if (one.chain, one.number) in way.compared and (one.chain, one.number) not in way.hit
    ]
    if missed:
        return Reached(False, False, f"no jump to {chain} was taken", tuple(missed[:3]))
    if way.table.chains[chain].policy is not None or (not callers and way.table.backend == "nft"):
        return Reached(False, False, f"it did not come to {named(way.table)} {chain}: {fate}")
    if not callers:
        return Reached(False, False, f"no rule leads to {chain}")
    for one in callers:
        if one.chain not in seen and one.chain != chain:
            return _not_reached(one, way, fate, seen | {chain})
    return Reached(False, False, f"it did not come to {named(way.table)} {chain}: {fate}")


def _taken(table: Table, row: Row, at: int, step: Step) -> str:
    """What took the packet in a chain before the rule."""
    verdict = row.verdict or "its verdict"
    last = row.path[-1]
    where = Place(table, step.chain, step.rulenum)
    if at + 1 < len(row.path) and (last.chain, last.rulenum) != (step.chain, step.rulenum):
        if last.match == "rule":
            decided = Place(table, last.chain, last.rulenum)
            return (
                f"{where} sent it to {row.path[at + 1].chain},"
                f" where {decided} took it: {verdict}: {decided.text}"
            )
        return f"{where} sent it away: {where.text}"
    return f"{where} took it before: {verdict}: {where.text}"


def _targets(text: str, backend: str, maps: Mapping[str, str]) -> Iterator[str]:
    if backend != "nft":
        if found := target(text):
            yield found.name
        return
    yield from _JUMP.findall(_QUOTED.sub('""', text))
    for name in maps_in(text):
        yield from _JUMP.findall(maps.get(name, ""))


def maps_in(text: str) -> list[str]:
    """Returns the named maps of verdicts in a rule of nftables."""
    return _NAMED_MAP.findall(_QUOTED.sub('""', text))
