# SPDX-License-Identifier: GPL-2.0-only
"""The story of one packet: the journey that a row belongs to, for the detail pane.

Each traversal of the skb with its path, the texts of the rules it hit and what changed
between and inside the tables, and each station between them; around them, the calls that
one made from inside another (the answer of a REJECT rule).

- search.py: finds the rows, within a bounded distance of the one asked for
- observation.py: one packet as it entered one table
- changes.py: what changed between two observations, or inside a table
- leaving.py: what source NAT made of it behind the last table
- __init__.py: puts the story together

Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ipttrace.stream import record
from ipttrace.trace.fragments import Fragments, index_of
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import Rulesets
from ipttrace.trace.store import Store
from ipttrace.trace.story.changes import PacketChange, changes_between, changes_by_table
from ipttrace.trace.story.leaving import changed_behind
from ipttrace.trace.story.observation import Observation, endpoint, status_names
from ipttrace.trace.story.search import MOST_NESTED, find_journey, find_nested, first_call

__all__ = (
    "LIMIT",
    "REACH",
    "Conntrack",
    "Packet",
    "PacketChange",
    "RuleHit",
    "Story",
    "Traversal",
    "endpoint",
    "story",
)

REACH: Final = 1 << 18  # rows searched in each direction
LIMIT: Final = 64  # traversals of the journey

# Hooks after which nothing follows.
_LAST_HOOKS: Final = ("INPUT", "POSTROUTING")


@dataclass(frozen=True, slots=True)
class RuleHit:
    """One step of a path, and the rule's text and handle in the generation that was hit."""

    step: Step
    rule: str | None
    handle: int | None = None  # of nftables; None: none, or unknown


@dataclass(frozen=True, slots=True)
class Traversal:
    """One line of the story: a traversal or a station."""

    row: Row
    own: bool  # of this journey's skb; False: of a call around or inside one of its calls
    depth: int  # number of calls of the story around this one
    since: int  # ns since the journey began; negative for calls around it
    gap: int | None  # ns since the end of the skb's previous traversal; None: none or unknown
    steps: tuple[RuleHit, ...]
    changed_before: tuple[PacketChange, ...]  # since the skb's previous traversal
    changed_here: tuple[PacketChange, ...]  # by this traversal
    changed_behind: tuple[PacketChange, ...] = ()  # after the skb's last one, by NAT


@dataclass(frozen=True, slots=True)
class Conntrack:
    """The packet's conntrack entry as it entered the table.  None: unknown."""

    address: int
    state: str | None  # NEW, ESTABLISHED reply, …
    status: tuple[str, ...]
    mark: int | None
    zone: int | None
    proto: int | None
    orig: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class Packet:
    """The captured bytes."""

    data: bytes  # from the network header on
    length: int | None  # of the complete packet; None: unknown
    mac: bytes  # link-layer header
    ethertype: int
    vlan: int  # tag control information; 0: none


@dataclass(frozen=True, slots=True)
class Story:
    """A row and the journey around it."""

    row: Row
    tid: int | None
    socket: int | None  # address of struct sock
    interrupted: bool  # pid and comm belong to the process that a softirq interrupted
    conntrack: Conntrack | None
    packet: Packet
    traversals: tuple[Traversal, ...]  # in time order
    starts_earlier: bool  # the journey's first rows are missing: no longer held, or too far
    ends_later: bool  # further rows were left out, or may lie beyond the rows searched
    fragments: Fragments | None = None  # of which it was made, or is one; None: unknown


def story(store: Store, seq: int, limit: int = LIMIT, reach: int = REACH) -> Story | None:
    """The story of row `seq`; None if the store does not hold it.

    `limit`: the most traversals, the nearest to the row, and as many calls around and
    inside them; `reach`: rows searched in each direction.
    """
    part = next(iter(store.parts(seq, seq + 1)), None)
    if part is None:
        return None
    journey, call = int(part.columns["journey"][0]), int(part.columns["call"][0])
    found = find_journey(store, seq, journey, call, reach, limit)
    rows = store.rows(found.seqs)
    if not rows:
        return None  # the store has just dropped it
    # Only a journey that should go on is incomplete when no end was found.
    unfinished = (
        not found.ended and seq + 1 + reach < store.end and rows[-1].hook not in _LAST_HOOKS
    )
    rows += store.rows(find_nested(store, rows, limit))
    packets = _observations(store, rows)
    packet = next((each for each in packets if each.row.index == seq), None)
    if packet is None:
        return None
    row, first = packet.row, first_call(journey)
    return Story(
        row=row,
        tid=packet.number("tid") if row.pid is not None else None,
        socket=packet.number("sk") or None,
        interrupted=bool(packet.number("flags") & record.F_SOFTIRQ),
        conntrack=_conntrack(packet) if packet.has_state else None,
        packet=_captured(packet),
        traversals=_leaving(store, packets, _traversals(packets, row.journey, store.rulesets)),
        starts_earlier=not any(each.row.call == first for each in packets),
        ends_later=found.cut or unfinished,
        fragments=index_of(store).of_row(seq, journey),
    )


def _observations(store: Store, rows: list[Row]) -> list[Observation]:
    """Each row with its columns, except rows that the store has just dropped."""
    seqs = [row.index for row in rows]
    parts = list(store.parts(min(seqs), max(seqs) + 1)) if seqs else []
    firsts = [part.first for part in parts]
    found = []
    for row in rows:
        which = bisect_right(firsts, row.index) - 1
        if which >= 0 and row.index - firsts[which] < len(parts[which]):
            found.append(Observation(row, parts[which].columns, row.index - firsts[which]))
    return found


def _traversals(
    packets: list[Observation], journey: int, rulesets: Mapping[int, Rulesets]
) -> tuple[Traversal, ...]:
    packets.sort(key=lambda packet: (packet.row.time, packet.row.index))
    began = next((packet.row.time for packet in packets if packet.row.journey == journey), 0)
    parents = {packet.row.call: packet.row.parent for packet in packets}
    latest: dict[int, Observation] = {}  # by journey
    made = []
    for packet in packets:
        row = packet.row
        previous = latest.get(row.journey)
        latest[row.journey] = packet
        made.append(
            Traversal(
                row=row,
                own=row.journey == journey,
                depth=_depth(row, parents),
                since=row.time - began,
                gap=None if previous is None else _gap(previous.row, row),
                steps=tuple(_hits(row, rulesets)),
                changed_before=() if previous is None else changes_between(previous, packet),
                changed_here=changes_by_table(packet),
            )
        )
    return tuple(made)


def _leaving(
    store: Store, packets: list[Observation], traversals: tuple[Traversal, ...]
) -> tuple[Traversal, ...]:
    """Adds to the skb's last traversal what changed behind it.  `packets`: in the same order."""
    at = max((at for at, each in enumerate(traversals) if each.own), default=None)
    if at is None or not (behind := changed_behind(store, packets[at])):
        return traversals
    last = replace(traversals[at], changed_behind=behind)
    return (*traversals[:at], last, *traversals[at + 1 :])


def _gap(before: Row, after: Row) -> int | None:
    if before.cost_ns is None or after.cost_ns is None:
        return None
    return max(0, after.time - before.time - before.cost_ns)


def _depth(row: Row, parents: Mapping[int, int | None]) -> int:
    depth, parent = 0, row.parent
    while parent is not None and parent in parents and depth < 2 * MOST_NESTED:
        depth += 1
        parent = parents[parent]
    return depth


def _hits(row: Row, rulesets: Mapping[int, Rulesets]) -> Iterator[RuleHit]:
    rules = rulesets.get(row.host)
    for step in row.path:
        text = handle = None
        if rules is not None and row.ruleset and step.match != "policy":
            where = row.netns, row.rules_family, row.table, step.chain, step.rulenum, row.ruleset
            text, handle = rules.text(*where), rules.handle(*where)
        yield RuleHit(step, text, handle)


def _conntrack(packet: Observation) -> Conntrack:
    tracked = packet.tracked
    return Conntrack(
        address=packet.number("ct"),
        state=packet.state,
        status=status_names(packet.number("ct_status")),
        mark=packet.ct_mark,
        zone=packet.row.ct_zone,
        proto=packet.number("ct_proto") if tracked else None,
        orig=packet.tuple("orig") if packet.has_tuple("orig") else None,
        reply=packet.tuple("reply") if packet.has_tuple("reply") else None,
    )


def _captured(packet: Observation) -> Packet:
    return Packet(
        data=packet.bytes,
        length=packet.row.len,
        mac=packet.octets("mac")[: packet.number("mac_len")],
        ethertype=packet.number("protocol"),
        vlan=packet.number("vlan_tci"),
    )
