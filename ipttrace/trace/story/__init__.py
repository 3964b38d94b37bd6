# SPDX-License-Identifier: GPL-2.0-only
"""The story of one packet: the journey that a row is part of, told in order.

What the detail of a row shows: each traversal of the skb with its path, the
text of the rules that it hit, and what changed on the way; around and between
them the calls that one made from inside another (REJECT's answer).  Searches a
bounded number of rows around the row that was asked for.  Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules.history import Rulesets
from ipttrace.trace.store import Part, Store
from ipttrace.trace.story.changes import Change, Look, between, inside, status_names

REACH: Final = 1 << 18  # rows searched to each side
LIMIT: Final = 64  # traversals told
_FIRST_LOOK: Final = 1 << 10  # rows; each further look is twice as wide
_NEARBY: Final = 1 << 12  # calls made from inside come up within so many rows
_DEEPEST: Final = 4  # calls inside calls
_CALL: Final = (1 << 56) - 1  # a journey's number is its first call's, below the host's

_OVER: Final = (0, 2)  # NF_DROP, NF_STOLEN: the skb is gone
_LAST_HOOKS: Final = ("INPUT", "POSTROUTING")


@dataclass(frozen=True, slots=True)
class RuleHit:
    """One step of a path and the rule's text in the generation that was hit."""

    step: Step
    rule: str | None


@dataclass(frozen=True, slots=True)
class Traversal:
    """One line of the story."""

    row: Row
    own: bool  # of the row's skb; else of one inside of whose call it was made, or the reverse
    depth: int  # calls of the story around this one
    since: int  # ns since the journey began; negative for what is around it
    gap: int | None  # ns since the traversal before let go of the skb; None: not known, or none
    steps: tuple[RuleHit, ...]
    before: tuple[Change, ...]  # since the traversal before of the same skb
    here: tuple[Change, ...]  # made by this traversal


@dataclass(frozen=True, slots=True)
class Conntrack:
    """What conntrack knew of the packet as it came in."""

    address: int
    state: str | None  # NEW, ESTABLISHED reply, …
    status: tuple[str, ...]
    mark: int
    zone: int
    proto: int
    orig: str
    reply: str


@dataclass(frozen=True, slots=True)
class Packet:
    """What was captured."""

    data: bytes  # from the network header on
    length: int  # of the whole packet
    mac: bytes  # link-layer header
    ethertype: int
    vlan: int  # tag control information; 0: none


@dataclass(frozen=True, slots=True)
class Story:
    """A row and the journey around it."""

    row: Row
    tid: int | None
    socket: int | None  # address of struct sock
    interrupted: bool  # pid and comm are of whom a softirq interrupted
    conntrack: Conntrack | None
    packet: Packet
    traversals: tuple[Traversal, ...]  # in time order
    earlier: bool  # its beginning is not among them: no longer held, or too far
    later: bool  # there may be more than were told or searched


def story(store: Store, seq: int, limit: int = LIMIT, reach: int = REACH) -> Story | None:
    """The story of row `seq`; None when it is not, or no longer, held.

    At most `limit` traversals, those nearest to the row, and as many of calls
    inside and around; found among `reach` rows to each side.
    """
    part = next(iter(store.parts(seq, seq + 1)), None)
    if part is None:
        return None
    journey, call = int(part.columns["journey"][0]), int(part.columns["call"][0])
    found, over, cut = _journey(store, seq, journey, call, reach, limit)
    rows = store.rows(found)
    if not rows:
        return None  # it has just left
    # Where nothing follows as a rule, it is no news that nothing did.
    far = not over and seq + 1 + reach < store.end and rows[-1].hook not in _LAST_HOOKS
    rows += store.rows(_around(store, rows, limit))
    looks = _looks(store, rows)
    look = next((each for each in looks if each.row.index == seq), None)
    if look is None:
        return None
    row, began = look.row, journey & _CALL
    return Story(
        row=row,
        tid=look.number("tid") if row.pid is not None else None,
        socket=look.number("sk") or None,
        interrupted=bool(look.number("flags") & record.F_SOFTIRQ),
        conntrack=_conntrack(look) if look.tracked else None,
        packet=_packet(look),
        traversals=_tell(looks, row.journey, store.rulesets),
        earlier=not any(each.row.call == began for each in looks),
        later=cut or far,
    )


def _looks(store: Store, rows: list[Row]) -> list[Look]:
    """The columns' side of these rows; without those that have just left."""
    seqs = [row.index for row in rows]
    parts = list(store.parts(min(seqs), max(seqs) + 1)) if seqs else []
    firsts = [part.first for part in parts]
    looks = []
    for row in rows:
        which = bisect_right(firsts, row.index) - 1
        if which >= 0 and row.index - firsts[which] < len(parts[which]):
            looks.append(Look(row, parts[which].columns, row.index - firsts[which]))
    return looks


# Finding.


def _journey(
    store: Store, seq: int, journey: int, call: int, reach: int, limit: int
) -> tuple[Array, bool, bool]:
    """Rows of the journey, ascending; whether its end is known; whether later ones were cut."""
    first, end = max(store.first, seq - reach), min(store.end, seq + 1 + reach)
    began = call == journey & _CALL
    over = False
    backward: list[Array] = []
    count = 0
    for a, b in _wider(seq, first):
        # A journey holds nothing before the call that it is named after.
        if began or count >= limit:
            break
        found, began, _ = _among(store, journey, a, b)
        backward.append(found)
        count += len(found)
    forward: list[Array] = []
    count = 0
    for a, b in _wider(seq, end):
        if over or count > limit:
            break
        found, _, over = _among(store, journey, a, b)
        forward.append(found)
        count += len(found)
    seqs = np.concatenate([*reversed(backward), *forward])
    near = np.sort(np.argsort(np.abs(seqs - seq), kind="stable")[:limit])
    cut = bool(near.size) and int(near[-1]) < len(seqs) - 1
    return seqs[near], over, cut


def _wider(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches (first, end) from `start` towards `stop`, each twice as wide as the last."""
    at, wide = start, _FIRST_LOOK
    while at != stop:
        then = min(at + wide, stop) if stop > start else max(at - wide, stop)
        yield min(at, then), max(at, then)
        at, wide = then, 2 * wide


def _among(store: Store, journey: int, first: int, end: int) -> tuple[Array, bool, bool]:
    """The journey's rows of this stretch; whether it begins, whether it ends there."""
    seqs: list[Array] = []
    began = over = False
    for part in store.parts(first, end):
        at = np.flatnonzero(part.columns["journey"] == np.uint64(journey))
        if at.size:
            seqs.append(at.astype(np.int64) + part.first)
            began |= bool((part.columns["call"][at] == np.uint64(journey & _CALL)).any())
            verdicts = part.columns["verdict"][at] & np.uint32(0xFF)
            over |= bool(np.isin(verdicts, _OVER).any())
    return (np.concatenate(seqs) if seqs else np.zeros(0, np.int64)), began, over


def _around(store: Store, rows: list[Row], limit: int) -> Array:
    """Calls made from inside of these rows' calls, and those around them."""
    seqs = [each.index for each in rows]
    parts = list(store.parts(min(seqs) - _NEARBY, max(seqs) + 1 + _NEARBY))
    host = rows[0].host
    calls = {each.call for each in rows}
    found: dict[int, int] = {}
    # Down: calls whose parents are among those that are known.
    latest = calls
    for _ in range(_DEEPEST):
        below: dict[int, int] = {}
        for part in parts:
            at = _rows_of(part, "parent", latest, host)[:limit]
            below.update(
                zip(part.columns["call"][at].tolist(), (at + part.first).tolist(), strict=True)
            )
        latest = below.keys() - calls
        if not latest:
            break
        calls |= latest
        found.update({call: below[call] for call in latest})
    # Up: the parents themselves.
    wanted = {each.parent for each in rows if each.parent} - calls
    for _ in range(_DEEPEST):
        if not wanted:
            break
        calls |= wanted
        above: set[int] = set()
        for part in parts:
            at = _rows_of(part, "call", wanted, host)[:limit]
            found.update(
                zip(part.columns["call"][at].tolist(), (at + part.first).tolist(), strict=True)
            )
            above.update(part.columns["parent"][at].tolist())
        wanted = above - calls - {0}
    return np.sort(np.array(list(found.values())[:limit], np.int64))


def _rows_of(part: Part, column: str, values: set[int], host: int) -> Array:
    """Places in the part of the host's rows that have one of `values` in this column."""
    wanted = np.array(list(values), np.uint64)
    hit: Array = np.isin(part.columns[column], wanted)
    return np.flatnonzero(hit & (part.columns["host"] == host))


# Telling.


def _tell(
    looks: list[Look], journey: int, rulesets: Mapping[int, Rulesets]
) -> tuple[Traversal, ...]:
    looks.sort(key=lambda look: (look.row.time, look.row.index))
    began = next((look.row.time for look in looks if look.row.journey == journey), 0)
    parents = {look.row.call: look.row.parent for look in looks}
    latest: dict[int, Look] = {}  # by journey
    told = []
    for look in looks:
        row = look.row
        before = latest.get(row.journey)
        latest[row.journey] = look
        told.append(
            Traversal(
                row=row,
                own=row.journey == journey,
                depth=_depth(row, parents),
                since=row.time - began,
                gap=None if before is None else _gap(before.row, row),
                steps=tuple(_hits(row, rulesets)),
                before=() if before is None else between(before, look),
                here=inside(look),
            )
        )
    return tuple(told)


def _gap(before: Row, after: Row) -> int | None:
    if before.cost_ns is None or after.cost_ns is None:
        return None
    return max(0, after.time - before.time - before.cost_ns)


def _depth(row: Row, parents: Mapping[int, int | None]) -> int:
    depth, parent = 0, row.parent
    while parent is not None and parent in parents and depth < 2 * _DEEPEST:
        depth += 1
        parent = parents[parent]
    return depth


def _hits(row: Row, rulesets: Mapping[int, Rulesets]) -> Iterator[RuleHit]:
    rules = rulesets.get(row.host)
    for step in row.path:
        text = None
        if rules is not None and row.ruleset and step.match != "policy":
            text = rules.text(
                row.netns, row.rules_family, row.table, step.chain, step.rulenum, row.ruleset
            )
        yield RuleHit(step, text)


def _conntrack(look: Look) -> Conntrack:
    return Conntrack(
        address=look.number("ct"),
        state=look.state,
        status=status_names(look.number("ct_status")),
        mark=look.number("ct_mark"),
        zone=look.number("ct_zone"),
        proto=look.number("ct_proto"),
        orig=look.tuple("orig"),
        reply=look.tuple("reply"),
    )


def _packet(look: Look) -> Packet:
    return Packet(
        data=look.bytes,
        length=look.number("len"),
        mac=look.octets("mac")[: look.number("mac_len")],
        ethertype=look.number("protocol"),
        vlan=look.number("vlan_tci"),
    )
