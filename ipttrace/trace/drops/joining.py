# SPDX-License-Identifier: GPL-2.0-only
"""Which records are of the same packet: runs through tables, and stations between them.

A packet is its skb, whose address is used again at once.  Two records of one address, with
none between them, are of the same packet only if its bytes are the same, and something shows
that it is not another one: nf_trace is still set, no packet has come from a device since, it
was not dropped.  Otherwise it is another packet.  Records of an address between two calls of one
journey are of that journey, whatever a tunnel has made of the bytes.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.drops.facts import BY_NETFILTER, DROPPED, FIRST, STOLEN_, TRACED, alike

_REMEMBERED: Final = 1 << 15  # facts
NOBODY: Final = -1
FRESH: Final = -2
# What may precede the first table of a packet that a device has received.
_EARLY: Final = tuple(map(record.STATIONS.index, ("received", "routed", "forwarded")))
_SENT: Final = record.STATIONS.index("sent")
_RECEIVED: Final = record.STATIONS.index("received")
_OUTPUT: Final = 3  # NF_INET_LOCAL_OUT: of a packet that this host sends
# By enum ipttrace_what: how far a packet is on its way.  A drop may follow anything.
_STAGES: Final = np.array([0, 9, 1, 2, 3, 4, 5, 5], np.uint8)


@dataclass(frozen=True, slots=True)
class Joined:
    """What is known of n fresh facts."""

    journeys: Array  # uint64 (n,)
    causes: Array  # int64 (n,): the row whose rule dropped it; see Joiner.join
    moved: Array  # int64 (k,): older rows that turned out to be of other journeys
    to: Array  # uint64 (k,): these


class Joiner:
    """The facts of recent records."""

    def __init__(self) -> None:
        self._facts: Array | None = None
        self._fresh = 0  # at the end of these

    def join(self, fresh: Array) -> Joined:
        """Adds facts, FACTS (n,), whose journeys are those that they have by themselves.

        `number` must follow.  A cause is the number of an older row, FRESH - i for the fact i,
        NOBODY if no rule is known to have dropped it.
        """
        old = self._facts if self._facts is not None else fresh[:0]
        facts = np.concatenate([old, fresh])
        facts["seq"][len(old) :] = FRESH - np.arange(len(fresh))
        causes = np.full(len(facts), NOBODY, np.int64)
        before = facts["journey"].copy()
        if len(facts):
            order = np.lexsort((facts["time"], facts["skb"]))
            ordered = facts[order]
            same = _same(ordered[:-1], ordered[1:]) | _between(ordered)
            groups = np.cumsum(np.append(True, ~same)) - 1
            facts["journey"][order] = _journeys(ordered, groups)
            found = np.flatnonzero(_by_rule(ordered[:-1], ordered[1:]))
            causes[order[found + 1]] = ordered["seq"][found]
            # Its packet is gone.
            facts["key"][order[found]] = 0
        self._facts, self._fresh = facts, len(fresh)
        moved = np.flatnonzero(before[: len(old)] != facts["journey"][: len(old)])
        journeys = facts["journey"]
        return Joined(
            journeys[len(old) :].copy(), causes[len(old) :], facts["seq"][moved], journeys[moved]
        )

    def number(self, seqs: Array) -> None:
        """Numbers the rows, int64 (n,), of the facts that were added last; NOBODY: no row."""
        facts = self._facts
        if facts is None:
            return
        fresh = facts[len(facts) - self._fresh :]
        fresh["seq"] = seqs
        if (seqs == NOBODY).any():
            facts = np.concatenate([facts[: len(facts) - self._fresh], fresh[seqs != NOBODY]])
        self._facts, self._fresh = facts[-_REMEMBERED:], 0


def _same(before: Array, after: Array) -> Array:
    """Returns bool (n,): are consecutive records of one address of the same packet?"""
    here, there = before["what"], after["what"]
    are = before["skb"] == after["skb"]
    is_alike = alike(before, after)
    was, now = before["is"], after["is"]
    follows = is_alike & (now & FIRST == 0)
    calls = before["journey"] == after["journey"]
    # From a call to a station.
    onwards = follows & (now & TRACED != 0) & (was & (DROPPED | STOLEN_) == 0)
    onwards |= is_alike & (was & STOLEN_ != 0) & (after["time"] <= before["end"])
    # From a station to a call.
    alive = is_alike & (here != record.DROPPED)
    early = np.isin(here, _EARLY) & (was & TRACED == 0) & (before["netns"] == after["netns"])
    early &= (now & FIRST != 0) & (after["hook"] != _OUTPUT)
    # In another namespace it is the same one, whose nf_trace was cleared on the way.
    carried = follows & np.isin(here, _EARLY) & (was & TRACED == 0)
    carried &= (before["netns"] == after["netns"]) & (after["hook"] != _OUTPUT)
    into = alive & (early | carried | (follows & (was & TRACED != 0)))
    # From a station to a station.
    further = _stage(there) > _stage(here)
    passes = (here == _SENT) & (there == _RECEIVED)
    further = ((was & TRACED == 0) & further) | passes
    between = follows & alive & ((was & now & TRACED != 0) | further)
    call, next_call = here == 0, there == 0
    found: Array = are & np.where(
        call, np.where(next_call, calls, onwards), np.where(next_call, into, between)
    )
    return found


def _between(facts: Array) -> Array:
    """Returns bool (n - 1,): are a record and the next one between calls of one journey?

    `facts`: in order of address and time.  An address is the packet's as long as it lives.
    """
    place, last = np.arange(len(facts)), len(facts) - 1
    is_call = facts["what"] == 0
    before = np.maximum.accumulate(np.where(is_call, place, -1))
    after = np.minimum.accumulate(np.where(is_call, place, last + 1)[::-1])[::-1]
    # The call at or before each record but the last, and the call behind or at the next one.
    one, other = before[:-1], after[1:]
    known = (one >= 0) & (other <= last)
    one, other = facts[np.maximum(one, 0)], facts[np.minimum(other, last)]
    found: Array = known & (one["skb"] == other["skb"]) & (one["journey"] == other["journey"])
    return found


def _stage(what: Array) -> Array:
    stages: Array = _STAGES[np.minimum(what, len(_STAGES) - 1)]
    return stages


def _by_rule(before: Array, after: Array) -> Array:
    """Returns bool (n,): is `after` the drop that the verdict of `before` caused?"""
    found: Array = (before["skb"] == after["skb"]) & alike(before, after)
    found &= (before["what"] == 0) & (after["what"] == record.DROPPED)
    found &= before["netns"] == after["netns"]
    found &= (before["is"] & DROPPED != 0) & (after["is"] & BY_NETFILTER != 0)
    return found


def _journeys(facts: Array, groups: Array) -> Array:
    """Returns uint64 (n,): the journey of each group, which a call names if it has one."""
    is_call = facts["what"] == 0
    heads = np.zeros(int(groups[-1]) + 1, np.int64)
    # Written from behind: the first of a group counts, and a call before all stations.
    for rows in (np.flatnonzero(~is_call)[::-1], np.flatnonzero(is_call)[::-1]):
        heads[groups[rows]] = rows
    own: Array = facts["journey"]
    journeys: Array = np.where(is_call, own, own[heads[groups]])
    return journeys
