# SPDX-License-Identifier: GPL-2.0-only
"""Rules as packets hit them: how often, how it ended, what it cost.

Every step of a path is a hit; the step that decided also gets the verdict and
the cost of the call.  A change of the rules numbers them anew, so hits are
kept by the generation that the packet met.  Which of them are of the rules
that are there now is said by `tally_listing`, when it is asked: the text of a
generation may come after its packets.  Must not do I/O, and must not loop over
rows in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.netfilter import VERDICTS
from ipttrace.trace.arrays.hashing import Array, Hash
from ipttrace.trace.rules.families import NFT
from ipttrace.trace.store import Part
from ipttrace.trace.store.schema import NETLINK
from ipttrace.trace.tally import clock as tally_clock
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.slots import Slots

# A slot takes 1.2 kB: 40 MB when all of them are used.
LIMIT: Final = 1 << 15
ENDS: Final = (*VERDICTS, "other")

_STRETCH: Final = 500_000_000  # ns that a cell counts
_RING: Final = 8
_WINDOW: Final = 4  # stretches that a rate is of

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(32)

_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "host": ("u1", ()),
    "netns": ("u4", ()),
    "family": ("u1", ()),  # NFPROTO_*, or NFT and that of the nftables table
    "table": ("u4", ()),  # ids of Names
    "chain": ("u4", ()),
    "rulenum": ("u4", ()),
    "match": ("u1", ()),
    "ruleset": ("u4", ()),  # generation; 0: not known
    "hits": ("i8", ()),
    "ends": ("i8", (len(ENDS),)),  # how the calls ended that it decided, by ENDS
    "costs": ("u4", (tally_costs.BUCKETS,)),
    "marks": ("i8", (_RING,)),
    "recent": ("i8", (_RING,)),
}
_ROW: Final = ("host", "netns", "table", "ruleset")
_STEP: Final = ("chain", "rulenum", "match")


class RulesTally:
    """Counts of each rule, of the `limit` that were hit last."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.slots = Slots(limit, _COLUMNS, ("hits", "ends", "costs"))
        self.version = 0  # rises with every part that is counted
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
        self._count_recent(slots, (columns["time"] // _STRETCH)[row])
        rows = np.flatnonzero((columns["chain"] != 0) & (lengths > 0))
        if len(rows):
            deciding = slots[part.ends[rows].astype(np.intp) - 1 - first]
            told = columns["engine"][rows] != NETLINK  # what it cost
            self._count_ends(deciding, columns["verdict"][rows], columns["cost"][rows], told)

    def _keys(self, part: Part, row: Array, steps: dict[str, Array]) -> Array:
        columns = part.columns
        kind = columns["host"].astype(np.uint32) | _families(part).astype(np.uint32) << 8
        of_row = self._row_hash.full(
            [columns["netns"], columns["ruleset"], columns["table"], kind]
        )[row]
        # Ids of names have less than 24 bits.
        chain = steps["chain"] | steps["match"].astype(np.uint32) << 24
        return self._step_hash.full([of_row >> _HIGH, of_row & _LOW, chain, steps["rulenum"]])

    def _count_recent(self, slots: Array, stretch: Array) -> None:
        marks = self.slots.columns["marks"].reshape(-1)
        recent = self.slots.columns["recent"].reshape(-1)
        at = slots * _RING + stretch % _RING
        taken, good = tally_clock.claim(marks, at, stretch, _RING)
        recent[taken] = 0
        if not good.all():
            at = at[good]
        np.add.at(recent, at, 1)

    def _count_ends(self, slots: Array, verdicts: Array, costs: Array, told: Array) -> None:
        held = self.slots.columns
        end = np.minimum(verdicts & 0xFF, len(ENDS) - 1)
        np.add.at(held["ends"].reshape(-1), slots * len(ENDS) + end, 1)
        at = (slots * tally_costs.BUCKETS + tally_costs.buckets(costs))[told]
        np.add.at(held["costs"].reshape(-1), at, np.uint32(1))

    def rates(self, slots: Array, now: int | None = None) -> Array:
        """Hits per second, float64 of shape (n,), over the last two seconds of whole stretches.

        `now`: ns since the epoch, for a stream in which nothing comes; else the
        newest row of each host is now.
        """
        held = self.slots.columns
        if now is None:
            times = np.array([self.newest.get(at, 0) for at in range(256)], np.int64)
            until = (times // _STRETCH)[held["host"][slots]]
        else:
            until = np.full(len(slots), now // _STRETCH, np.int64)
        marks = held["marks"][slots]
        inside = (marks < until[:, None]) & (marks >= until[:, None] - _WINDOW)
        hits = np.where(inside, held["recent"][slots], 0).sum(axis=1)
        rates: Array = hits / (_WINDOW * _STRETCH / 1e9)
        return rates

    def namespaces(self) -> list[tuple[int, int]]:
        """Host and inode of the namespaces in which rules were hit, ascending."""
        held, live = self.slots.columns, self.slots.live
        both = held["host"][live].astype(np.uint64) << _HIGH | held["netns"][live]
        return [(both >> 32, both & 0xFFFFFFFF) for both in np.unique(both).tolist()]

    @property
    def other(self) -> int:
        """Hits of rules that gave way: only their sum is known."""
        return int(self.slots.columns["hits"][0])


def _families(part: Part) -> Array:
    """uint8, shape (n,): a packet's, or that of the nftables table that it was in."""
    tables = part.columns["tables"]
    return np.where(tables == 0, part.columns["family"], tables + np.uint8(NFT))


def _note_newest(newest: dict[int, int], hosts: Array, times: Array) -> None:
    """The time of the last row of each host: later rows of it may be earlier by moments."""
    low, high = int(hosts.min()), int(hosts.max())
    if low == high:
        newest[low] = int(times.max())
        return
    for host in np.unique(hosts).tolist():
        newest[host] = int(times[hosts == host].max())
