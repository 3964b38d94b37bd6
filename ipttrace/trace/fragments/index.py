# SPDX-License-Identifier: GPL-2.0-only
"""The fragments among the rows of a store, found as rows come.

Several threads may ask at the same time.  What is wrong with a row may show later, by
other rows or by the kernel's counters: `version` then increases.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.fragments import faults
from ipttrace.trace.fragments.groups import Groups, grouped
from ipttrace.trace.fragments.pieces import (
    Extract,
    Pieces,
    Wholes,
    joined,
    joined_wholes,
    no_pieces,
    no_wholes,
)
from ipttrace.trace.store import Part, Store

_MOST: Final = 1 << 15  # rows of fragments, the newest; and of packets made of them
MOST_NAMED: Final = 64  # fragments of a packet that are named


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment: the first of its rows, and the bytes of the payload that it has."""

    seq: int
    time: int  # ns since the epoch
    journey: int
    start: int
    end: int  # one past the last
    more: bool
    portless: bool  # a first fragment that ends before the ports
    faults: int  # bits of faults.FAULTS
    own: bool  # it is the row that was asked for, or one of its journey


@dataclass(frozen=True, slots=True)
class Fragments:
    """The packet that a row is of, or is a fragment of."""

    pieces: tuple[Fragment, ...]  # by their first byte; the first MOST_NAMED
    left_out: int  # pieces that are not named
    complete: bool  # the pieces are all there are
    is_fragment: bool  # the row is of a fragment, not of the packet
    whole: tuple[int, int, int] | None  # sequence number, time and journey of its first row
    waits: int | None  # s for which reassembly waits; None: unknown


@dataclass(frozen=True, slots=True)
class _State:
    """What is known; replaced, never modified."""

    pieces: Pieces
    wholes: Wholes
    groups: Groups
    bits: Array  # of `faults`, uint8, by row of `pieces`
    intrinsic: Array  # those that only rows decide


class FragmentIndex:
    """The fragments of one store."""

    def __init__(self, store: Store) -> None:
        self._store = weakref.ref(store)
        self._lock = threading.Lock()
        self._extract = Extract()
        self._scanned = 0  # rows below this number were read
        self._tables: tuple[tuple[int, int, int], ...] = ()
        self._state = _State(
            no_pieces(),
            no_wholes(),
            grouped(no_pieces(), no_wholes()),
            np.zeros(0, np.uint8),
            np.zeros(0, np.uint8),
        )
        self.version = 0  # increases when rows that were read earlier have other faults

    def faults(self, part: Part) -> Array:
        """Returns the bits of `faults.FAULTS` of each row, uint8 (n,)."""
        self.update()
        state = self._state
        found = np.zeros(len(part), np.uint8)
        first, end = np.searchsorted(state.pieces.seq, (part.first, part.first + len(part)))
        found[state.pieces.seq[first:end] - part.first] = state.bits[first:end]
        return found

    def update(self) -> None:
        """Reads the rows that came since the last call."""
        store = self._store()
        if store is None:
            return
        with self._lock:
            fresh = self._read(store)
            tables = tuple(
                (host, id(one), one.version) for host, one in list(store.kernel_tables.items())
            )
            if fresh or (tables != self._tables and len(self._state.pieces)):
                self._judge(store, fresh)
            self._tables = tables

    def _read(self, store: Store) -> bool:
        """Returns whether there are new rows of fragments, or of packets made of them."""
        before = self._state
        pieces, wholes = before.pieces, before.wholes
        for part in store.parts(self._scanned):
            if len(more := self._extract.pieces(part, store.names)):
                pieces = joined(pieces, more)
            if len(pieces) and len(others := self._extract.wholes(part, pieces)):
                wholes = joined_wholes(wholes, others)
            self._scanned = part.first + len(part)
        if pieces is before.pieces and wholes is before.wholes:
            return False
        pieces, wholes = pieces.at(slice(-_MOST, None)), wholes.at(slice(-_MOST, None))
        self._state = _State(pieces, wholes, before.groups, before.bits, before.intrinsic)
        return True

    def _judge(self, store: Store, fresh: bool) -> None:
        state = self._state
        pieces, before = state.pieces, state.bits
        groups, intrinsic = state.groups, state.intrinsic
        if fresh:
            groups = grouped(pieces, state.wholes)
            intrinsic = faults.intrinsic(pieces, groups)
        bits = intrinsic.copy()
        never = faults.incomplete(pieces, groups, intrinsic, store.kernel_tables)
        bits[never] |= np.uint8(faults.INCOMPLETE)
        known = min(len(before), len(bits))
        # Rows that were read earlier are the first ones, unless the oldest were dropped.
        if len(before) > len(bits) or not np.array_equal(before[:known], bits[:known]):
            self.version += 1
        self._state = _State(pieces, state.wholes, groups, bits, intrinsic)

    def of_row(self, seq: int, journey: int) -> Fragments | None:
        """Returns the packet that row `seq` is of, or is a fragment of; None if neither is known.

        `journey`: the row's.
        """
        self.update()
        state = self._state
        pieces = state.pieces
        at = int(np.searchsorted(pieces.seq, seq))
        is_fragment = at < len(pieces) and int(pieces.seq[at]) == seq
        if is_fragment:
            group = int(state.groups.group[at])
        else:
            (of_journey,) = np.nonzero(state.wholes.journey == np.uint64(journey))
            (found,) = np.nonzero(np.isin(state.groups.whole, of_journey))
            if not found.size:
                return None
            group = int(found[-1])
        return self._described(state, group, journey, is_fragment)

    def _described(self, state: _State, group: int, journey: int, is_fragment: bool) -> Fragments:
        named = sorted(_pieces(state, group, journey if is_fragment else -1), key=_position)
        whole = int(state.groups.whole[group])
        first = None
        if whole >= 0:
            at = state.wholes
            first = int(at.seq[whole]), int(at.time[whole]), int(at.journey[whole])
        return Fragments(
            pieces=tuple(named[:MOST_NAMED]),
            left_out=max(0, len(named) - MOST_NAMED),
            complete=bool(state.groups.complete[group]),
            is_fragment=is_fragment,
            whole=first,
            waits=self._waits(state, group),
        )

    def _waits(self, state: _State, group: int) -> int | None:
        store, row = self._store(), int(state.groups.rows(group)[0])
        place = int(state.pieces.place[row])
        held = None if store is None else store.kernel_tables.get(place >> 32)
        known = None if held is None else held.namespace(place & 0xFFFFFFFF)
        if known is None:
            return None
        six = state.pieces.version[row] == 6
        return known.table("ipv6" if six else "ipv4").values.get("time")


def _pieces(state: _State, group: int, own: int) -> Iterator[Fragment]:
    """Yields each fragment of a packet once, by its first row."""
    pieces, seen = state.pieces, set()
    for row in state.groups.rows(group).tolist():
        journey = int(pieces.journey[row])
        if journey in seen:
            continue
        seen.add(journey)
        yield Fragment(
            seq=int(pieces.seq[row]),
            time=int(pieces.time[row]),
            journey=journey,
            start=int(pieces.start[row]),
            end=int(pieces.end[row]),
            more=bool(pieces.more[row]),
            portless=bool(pieces.portless[row]),
            faults=int(state.bits[row]),
            own=journey == own,
        )


def _position(one: Fragment) -> tuple[int, int, int]:
    return one.start, one.end, one.seq


_indices: weakref.WeakKeyDictionary[Store, FragmentIndex] = weakref.WeakKeyDictionary()
_indices_lock = threading.Lock()


def index_of(store: Store) -> FragmentIndex:
    """Returns the index of a store, the same each time."""
    with _indices_lock:
        if (found := _indices.get(store)) is None:
            found = _indices[store] = FragmentIndex(store)
        return found
