# SPDX-License-Identifier: GPL-2.0-only
"""What is wrong with fragments, as bits per row.

- SHORT: a first fragment that ends before its transport header does, at worst before the
  ports: rules on ports cannot match it (RFC 1858, RFC 7112)
- OVERLAP: it has bytes that another fragment of the packet has too; the kernel then drops
  the packet (RFC 5722)
- INCOMPLETE: the kernel dropped a fragment because others did not come; or no row of the
  packet came while reassembly waits, fragments are missing, and the kernel counted as many
  timeouts then as there are such packets

Must not loop over rows in Python, except for packets whose fragments overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.fragments.groups import Groups, packed, unpacked
from ipttrace.trace.fragments.pieces import Pieces
from ipttrace.trace.tables import IPV4, IPV6, Growth, KernelTables

SHORT: Final = 1
OVERLAP: Final = 2
INCOMPLETE: Final = 4
FAULTS: Final = {"short": SHORT, "overlap": OVERLAP, "incomplete": INCOMPLETE}

_SECOND: Final = 1_000_000_000
# Timers of the kernel fire late; looks are a second apart, or more if they take long.
_LATE: Final = 3 * _SECOND
_MOST_SIMULATED: Final = 2048  # packets, the newest
_MOST_SPANS: Final = 64  # fragments of a packet that are compared with each other
_LONGEST_WAIT: Final = 1 << 20  # s; more is no reasonable setting, but a forged one


def intrinsic(pieces: Pieces, groups: Groups) -> Array:
    """Returns SHORT and OVERLAP, uint8 (n,)."""
    bits = np.where(pieces.short, np.uint8(SHORT), np.uint8(0))
    which, start, end, _ = unpacked(
        np.unique(packed(groups.group, pieces.start, pieces.end, np.zeros(len(pieces), np.int64)))
    )
    # One after another, so that the end of one packet is below the starts of the next.
    base = which << 20
    highest = np.maximum.accumulate(base + end)
    overlaps = np.zeros(len(which), bool)
    overlaps[1:] = (base + start)[1:] < highest[:-1]
    suspects = np.unique(which[overlaps])[-_MOST_SIMULATED:]
    for group in suspects.tolist():
        rows = groups.rows(group)
        bits[rows[_overlapping(pieces, rows)]] |= np.uint8(OVERLAP)
    return bits


def _overlapping(pieces: Pieces, rows: Array) -> list[int]:
    """Returns which of a packet's rows, as they came, are of fragments that overlap others.

    As the kernel does it: an overlap ends the packet, and what comes after that, or after
    all bytes, is of another packet with the same number.
    """
    found: set[int] = set()
    journeys: dict[int, tuple[int, int, bool]] = {}
    for row, journey in zip(rows.tolist(), pieces.journey[rows].tolist(), strict=True):
        span = int(pieces.start[row]), int(pieces.end[row]), bool(pieces.more[row])
        journeys.setdefault(journey, span)
    spans: dict[tuple[int, int], int] = {}  # and the journey of each
    covered = total = 0
    for journey, (start, end, more) in journeys.items():
        if (start, end) in spans:
            continue  # a copy, which the kernel ignores
        if (total and covered == total) or len(spans) >= _MOST_SPANS:
            spans, covered, total = {}, 0, 0
        hits = [one for (first, last), one in spans.items() if start < last and first < end]
        if hits:
            found |= {journey, *hits}
            spans, covered, total = {}, 0, 0
            continue
        spans[start, end] = journey
        covered += end - start
        total = total if more else end
    return np.flatnonzero(np.isin(pieces.journey[rows], list(found))).tolist() if found else []


def incomplete(
    pieces: Pieces, groups: Groups, bits: Array, tables: Mapping[int, KernelTables]
) -> Array:
    """Returns which rows are of packets that never completed, bool (n,).

    `bits`: those of `intrinsic`; `tables`: by host.
    """
    marked = np.zeros(len(groups.begins), bool)
    dropped = np.zeros(len(groups.begins), bool)
    dropped[groups.group[(bits & np.uint8(OVERLAP)) != 0]] = True
    waiting = np.flatnonzero(~groups.complete & ~groups.arrived & ~dropped)
    first = groups.order[groups.begins[waiting]]
    places = pieces.place[first] * np.uint64(2) + (pieces.version[first] == 6)
    for place in np.unique(places).tolist():
        held = tables.get(place >> 33)
        known = None if held is None else held.namespace(place >> 1 & 0xFFFFFFFF)
        if held is None or known is None or held.offset is None:
            continue
        history = known.table(IPV6 if place & 1 else IPV4)
        waits, growth = history.values.get("time"), history.growth("ReasmTimeout")
        if waits is not None and waits < _LONGEST_WAIT and growth is not None:
            which = places == np.uint64(place)
            due = pieces.time[first[which]] - held.offset + waits * _SECOND
            marked[waiting[which]] = _timed_out(due, growth)
    marked[groups.group[pieces.given_up]] = True
    return marked[groups.group]


def _timed_out(due: Array, growth: Growth) -> Array:
    """Returns which packets whose time was over at `due`, ns, were given up, bool (k,)."""
    ordered, times = np.sort(due), np.array(growth.times, np.int64)
    counts = np.array(growth.counts, np.int64)
    low, high = due - _SECOND, due + _LATE
    grown = counts[np.searchsorted(times, high, "right")] - counts[np.searchsorted(times, low)]
    rivals = np.searchsorted(ordered, high, "right") - np.searchsorted(ordered, low)
    found: Array = (low >= growth.since) & (high <= growth.until) & (grown >= rivals)
    return found
