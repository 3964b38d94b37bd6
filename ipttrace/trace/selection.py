# SPDX-License-Identifier: GPL-2.0-only
"""Which rows are looked at: all of the store, or those that a query takes.

A lens numbers its rows by place: the first that it ever showed is 0, the next
1, and no place is ever given again, so a list that is drawn by places stands
still while the store grows at one end and forgets at the other.  Must not do
I/O, and must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.row import Row
from ipttrace.trace.store import Part, Store

Mask = Callable[[Part], Array]

# Rows looked at in one go: what a frame can bear.
PORTION: Final = 1 << 16


class Selection(Protocol):
    """Rows by place."""

    @property
    def first(self) -> int:
        """The place of the oldest row that is held."""
        ...

    @property
    def end(self) -> int:
        """One past the place of the newest."""
        ...

    @property
    def behind(self) -> int:
        """Rows of the store that have not been looked at yet."""
        ...

    def pull(self, most: int = PORTION) -> bool:
        """Look at up to so many rows of the store; True when there are more."""
        ...

    def rows(self, places: Sequence[int], /) -> list[Row]:
        """The rows in these places, all of them held, ascending."""
        ...

    def seqs(self, first: int, end: int) -> Array:
        """Sequence numbers, int64, of the rows in places `first` to `end`, `end` left out."""
        ...

    def seq(self, place: int) -> int | None:
        """The sequence number of the row in this place; None where it is not held."""
        ...

    def position(self, seq: int) -> int:
        """The place of row `seq`, or of the first one after it; `end` when there is none."""
        ...


class AllRows:
    """All rows of the store: the place is the sequence number."""

    behind = 0

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def first(self) -> int:
        return self._store.first

    @property
    def end(self) -> int:
        return self._store.end

    def pull(self, most: int = PORTION) -> bool:
        return False

    def rows(self, places: Sequence[int], /) -> list[Row]:
        return self._store.rows(places)

    def seqs(self, first: int, end: int) -> Array:
        return np.arange(max(first, self.first), min(end, self.end), dtype=np.int64)

    def seq(self, place: int) -> int | None:
        return place if self.first <= place < self.end else None

    def position(self, seq: int) -> int:
        return min(max(seq, self.first), self.end)


class MatchingRows:
    """The rows that `mask` takes, found a portion at a time.

    `mask`: for a Part of n rows, bool of shape (n,).
    """

    def __init__(self, store: Store, mask: Mask) -> None:
        self._store = store
        self._mask = mask
        self._seqs: Array = np.zeros(1024, np.int64)
        self._count = 0
        self._gone = 0  # places before the array's first
        self._looked = store.first

    @property
    def first(self) -> int:
        held = self._seqs[: self._count]
        return self._gone + int(np.searchsorted(held, self._store.first))

    @property
    def end(self) -> int:
        return self._gone + self._count

    @property
    def behind(self) -> int:
        return self._store.end - max(self._looked, self._store.first)

    def pull(self, most: int = PORTION) -> bool:
        until = min(self._store.end, max(self._looked, self._store.first) + most)
        for part in self._store.parts(self._looked, until):
            found = np.flatnonzero(self._mask(part))
            if found.size:
                self._add(found.astype(np.int64) + part.first)
        self._looked = until
        return until < self._store.end

    def rows(self, places: Sequence[int], /) -> list[Row]:
        return self._store.rows(
            self._seqs[np.asarray(places, np.int64) - self._gone].tolist() if len(places) else []
        )

    def seqs(self, first: int, end: int) -> Array:
        first, end = max(first, self.first) - self._gone, min(end, self.end) - self._gone
        return self._seqs[first:end].copy()

    def seq(self, place: int) -> int | None:
        if not self.first <= place < self.end:
            return None
        return int(self._seqs[place - self._gone])

    def position(self, seq: int) -> int:
        held = self._seqs[: self._count]
        return max(self.first, self._gone + int(np.searchsorted(held, seq)))

    def _add(self, seqs: Array) -> None:
        need = self._count + len(seqs)
        if need > len(self._seqs):
            # First of all the room of those that the store has let go of.
            gone = self.first - self._gone
            kept = self._seqs[gone : self._count]
            grown = np.zeros(2 * (len(kept) + len(seqs)), np.int64)
            grown[: len(kept)] = kept
            self._seqs, self._count, self._gone = grown, len(kept), self._gone + gone
            need = self._count + len(seqs)
        self._seqs[self._count : need] = seqs
        self._count = need
