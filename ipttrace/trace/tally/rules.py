# SPDX-License-Identifier: GPL-2.0-only
"""Hits, verdicts and costs of each rule.

Every step of a path is a hit; the step that decided also gets the verdict and the cost
of the call.  A change of the rules renumbers them, so hits are kept by generation.
listing.py decides which of them belong to the current rules, and only when asked: a
generation's texts may arrive after its packets.  Must not do I/O, and must not loop
over rows in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.rules import NFT
from ipttrace.trace.store import Part
from ipttrace.trace.tally import clock as tally_clock
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.row_facts import OUTCOMES, cost_known, outcomes
from ipttrace.trace.tally.slots import Slots

# A slot takes 1.2 kB, all of them 40 MB.
LIMIT: Final = 1 << 15

_INTERVAL: Final = 500_000_000  # ns that a cell of the ring counts
_RING: Final = 8
_WINDOW: Final = 4  # intervals that a rate covers

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(32)

_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "host": ("u1", ()),
    "netns": ("u4", ()),
    "family": ("u1", ()),  # NFPROTO_*, or NFT + that of the nftables table
    "table": ("u4", ()),  # ids of Names
    "chain": ("u4", ()),
    "rulenum": ("u4", ()),
    "match": ("u1", ()),
    "ruleset": ("u4", ()),  # generation; 0: unknown
    "hits": ("i8", ()),
    "outcomes": ("i8", (len(OUTCOMES),)),  # of the calls that it decided
    "costs": ("u4", (tally_costs.BUCKETS,)),
    "marks": ("i8", (_RING,)),
    "recent": ("i8", (_RING,)),
}
_ROW: Final = ("host", "netns", "table", "ruleset")
_STEP: Final = ("chain", "rulenum", "match")
_DECIDED: Final = ("verdict", "cost", "engine", "what")


class RulesTally:
    """Counts of the `limit` rules that were hit last."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.slots = Slots(limit, _COLUMNS, ("hits", "outcomes", "costs"))
        self.version = 0  # increases with every part counted
        self.newest: dict[int, int] = {}  # by host: time of its newest row
        self._row_hash = Hash(4)
        self._step_hash = Hash(4)

    def feed(self, part: Part) -> None:
        """Count the rows of a part."""
        if not len(part):
            return
        self.version += 1
        columns, lengths = part.columns, part.ends - part.begins
        _note_newest(self.newest, columns["host"], columns["time"])
        first, last = int(part.begins[0]), int(part.ends[-1])
        if last == first:
            return
        steps = {name: part.steps[name][first:last] for name in _STEP}
        row = np.repeat(np.arange(len(part)), lengths)
        slots, index, fresh = self.slots.assign(self._keys(part, row, steps))
        held = self.slots.columns
        if len(fresh):
            for name in _ROW:
                held[name][fresh] = columns[name][row[index]]
            held["family"][fresh] = _families(part)[row[index]]
            for name in _STEP:
                held[name][fresh] = steps[name][index]
        held["hits"] += np.bincount(slots, minlength=len(held["hits"]))
        self._count_recent(slots, (columns["time"] // _INTERVAL)[row])
        rows = np.flatnonzero((columns["chain"] != 0) & (lengths > 0))
        if len(rows):
            deciding = slots[part.ends[rows].astype(np.intp) - 1 - first]
            decided = {name: columns[name][rows] for name in _DECIDED}
            self._count_decided(deciding, decided)

    def note_newest(self, part: Part) -> None:
        """Rates are those up to the newest row of this part, which is not counted."""
        if len(part):
            self.version += 1
            _note_newest(self.newest, part.columns["host"], part.columns["time"])

    def _keys(self, part: Part, row: Array, steps: dict[str, Array]) -> Array:
        columns = part.columns
        kind = columns["host"].astype(np.uint32) | _families(part).astype(np.uint32) << 8
        of_row = self._row_hash.full(
            [columns["netns"], columns["ruleset"], columns["table"], kind]
        )[row]
        # Ids of names have fewer than 24 bits.
        chain = steps["chain"] | steps["match"].astype(np.uint32) << 24
        return self._step_hash.full([of_row >> _HIGH, of_row & _LOW, chain, steps["rulenum"]])

    def _count_recent(self, slots: Array, intervals: Array) -> None:
        marks = self.slots.columns["marks"].reshape(-1)
        recent = self.slots.columns["recent"].reshape(-1)
        at = slots * _RING + intervals % _RING
        reused, good = tally_clock.claim(marks, at, intervals, _RING)
        recent[reused] = 0
        if not good.all():
            at = at[good]
        np.add.at(recent, at, 1)

    def _count_decided(self, slots: Array, columns: dict[str, Array]) -> None:
        held = self.slots.columns
        at = slots * len(OUTCOMES) + outcomes(columns)
        np.add.at(held["outcomes"].reshape(-1), at, 1)
        at = slots * tally_costs.BUCKETS + tally_costs.buckets(columns["cost"])
        at = at[cost_known(columns)]
        np.add.at(held["costs"].reshape(-1), at, np.uint32(1))

    def rates(self, slots: Array, now: int | None = None) -> Array:
        """Hits per second, float64 of shape (n,), over the last two seconds before now.

        `now`: ns since the epoch, for a stream that is idle; None: the time of each
        host's newest row.
        """
        held = self.slots.columns
        if now is None:
            times = np.array([self.newest.get(at, 0) for at in range(256)], np.int64)
            until = (times // _INTERVAL)[held["host"][slots]]
        else:
            until = np.full(len(slots), now // _INTERVAL, np.int64)
        marks = held["marks"][slots]
        inside = (marks < until[:, None]) & (marks >= until[:, None] - _WINDOW)
        hits = np.where(inside, held["recent"][slots], 0).sum(axis=1)
        rates: Array = hits / (_WINDOW * _INTERVAL / 1e9)
        return rates

    def namespaces(self) -> list[tuple[int, int]]:
        """Host and inode of each namespace in which rules were hit, ascending."""
        held, live = self.slots.columns, self.slots.live
        both = held["host"][live].astype(np.uint64) << _HIGH | held["netns"][live]
        return [(both >> 32, both & 0xFFFFFFFF) for both in np.unique(both).tolist()]

    @property
    def other(self) -> int:
        """Sum of the hits of evicted rules."""
        return int(self.slots.columns["hits"][0])


def _families(part: Part) -> Array:
    """NFPROTO_* of the packet, or NFT + that of its nftables table; uint8 of shape (n,)."""
    tables = part.columns["tables"]
    return np.where(tables == 0, part.columns["family"], tables + np.uint8(NFT))


def _note_newest(newest: dict[int, int], hosts: Array, times: Array) -> None:
    """Update the newest time of each host."""
    low, high = int(hosts.min()), int(hosts.max())
    if low == high:
        newest[low] = int(times.max())
        return
    for host in np.unique(hosts).tolist():
        newest[host] = int(times[hosts == host].max())
