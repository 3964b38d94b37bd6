# SPDX-License-Identifier: GPL-2.0-only
"""The fragments of each packet, and the packet that was made of them.

An identification is used again after some time: fragments with the same key belong to one
packet until the packet itself comes, or nothing comes for longer than any reassembly
waits.  Must not loop over rows in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.fragments.pieces import Pieces, Wholes

# The longest that reassembly waits by default (IPv6), and what a timer may be late, ns.
LONGEST: Final = 65_000_000_000


@dataclass(frozen=True, slots=True)
class Groups:
    """g packets with fragments among n rows.  Rows are indices into the Pieces."""

    order: Array  # int64 (n,): rows by packet, and by time in each
    begins: Array  # int64 (g,): where each packet begins in `order`
    group: Array  # int64 (n,): the packet of each row
    complete: Array  # bool (g,): the rows are all fragments, without gap or overlap
    whole: Array  # int64 (g,): index of the packet's first row into the Wholes; -1: none known
    arrived: Array  # bool (g,): such a row came, but whether it is of this packet is unknown

    def rows(self, group: int) -> Array:
        """Returns the rows of a packet."""
        end = self.begins[group + 1] if group + 1 < len(self.begins) else len(self.order)
        return self.order[self.begins[group] : end]


def grouped(pieces: Pieces, wholes: Wholes) -> Groups:
    """Returns the packets of at least one fragment."""
    count = len(pieces)
    keys, rank = np.unique(pieces.key, return_inverse=True)
    order = np.lexsort((pieces.seq, rank))
    ranks, seqs, times = rank[order], pieces.seq[order], pieces.time[order]
    # Of both, a place in the order of keys, and of rows in each.
    marks = _whole_marks(keys, wholes)
    here = _place(ranks, seqs)
    before = np.searchsorted(marks[0], here)
    fresh = np.ones(count, bool)
    fresh[1:] = (
        (ranks[1:] != ranks[:-1]) | (before[1:] != before[:-1]) | (times[1:] - times[:-1] > LONGEST)
    )
    begins = np.flatnonzero(fresh)
    numbers = np.cumsum(fresh) - 1
    group = np.empty(count, np.int64)
    group[order] = numbers
    lasts = np.append(begins[1:], count)[: len(begins)] - 1
    complete, size = _complete(pieces, group, len(begins))
    after = np.searchsorted(marks[0], here[lasts])
    runs = order, begins, lasts
    whole, arrived = _whole_of(pieces, wholes, marks[1], after, runs, complete, size)
    return Groups(order, begins, group, complete, whole, arrived)


def packed(group: Array, start: Array, end: Array, more: Array) -> Array:
    """Returns fragments as int64, in the order of packets and bytes; below 2**27 packets."""
    spans: Array = group << 36 | start << 18 | end << 1 | more
    return spans


def unpacked(spans: Array) -> tuple[Array, Array, Array, Array]:
    """Returns group, start, end and more of `packed`."""
    mask = np.int64((1 << 17) - 1)
    return spans >> 36, spans >> 18 & mask, spans >> 1 & mask, (spans & 1).astype(bool)


def _place(ranks: Array, seqs: Array) -> Array:
    places: Array = ranks.astype(np.int64) << 40 | seqs
    return places


def _whole_marks(keys: Array, wholes: Wholes) -> tuple[Array, Array]:
    """Returns the places of the wholes, ascending, and their indices."""
    at = np.minimum(np.searchsorted(keys, wholes.key), max(len(keys) - 1, 0))
    known = np.flatnonzero(keys[at] == wholes.key) if len(keys) else np.zeros(0, np.int64)
    places = _place(at[known], wholes.seq[known])
    order = np.argsort(places, kind="stable")
    return places[order], known[order]


def _complete(pieces: Pieces, group: Array, count: int) -> tuple[Array, Array]:
    """Returns which packets have all their fragments as rows, and how far these reach."""
    # A fragment has several rows, and may come twice.
    spans = np.unique(packed(group, pieces.start, pieces.end, pieces.more))
    which, start, end, more = unpacked(spans)
    first = np.ones(len(spans), bool)
    first[1:] = which[1:] != which[:-1]
    previous = np.zeros(len(spans), np.int64)
    previous[1:] = end[:-1]
    previous[first] = 0
    last = np.append(first[1:], True)
    good = (start == previous) & (more != last)
    begins = np.flatnonzero(first)
    size = np.zeros(count, np.int64)
    size[which[begins]] = np.maximum.reduceat(end, begins)
    complete = np.zeros(count, bool)
    complete[which[begins]] = np.logical_and.reduceat(good, begins)
    return complete, size


def _whole_of(
    pieces: Pieces,
    wholes: Wholes,
    marked: Array,
    after: Array,
    runs: tuple[Array, Array, Array],
    complete: Array,
    size: Array,
) -> tuple[Array, Array]:
    """Returns the packet of each group, -1 if none is known, and whether any may be it.

    `marked`: the wholes in the order of their keys; `after`: where in it the first one
    behind each group is; `runs`: the rows, and where in them each group begins and ends.
    """
    order, begins, lasts = runs
    none = np.full(len(begins), -1, np.int64)
    if not len(marked):
        return none, np.zeros(len(begins), bool)
    last = order[lasts]
    found = marked[np.minimum(after, len(marked) - 1)]
    there = (after < len(marked)) & (wholes.key[found] == pieces.key[last])
    there &= wholes.time[found] - pieces.time[last] <= LONGEST
    # The skb of the fragment that came last goes on as the packet.
    owner = np.repeat(np.arange(len(begins)), lasts - begins + 1)
    same = pieces.journey[order] == wholes.journey[found][owner]
    same_skb = np.zeros(len(begins), bool)
    np.logical_or.at(same_skb, owner, same)
    fits = (complete & (wholes.size[found] == size)) | (same_skb & (wholes.size[found] >= size))
    return np.where(there & fits, found, none), there
