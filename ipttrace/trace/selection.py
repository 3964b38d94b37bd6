# SPDX-License-Identifier: GPL-2.0-only
"""Selections: all rows of a store, or those that a query matches.

A selection numbers its rows by position, from 0 in order of arrival.  Positions are
never reused, so a list drawn by position does not move while the store grows at one
end and evicts at the other.  Must not do I/O or loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.row import Row
from ipttrace.trace.store import Part, Store

Mask = Callable[[Part], Array]

# Rows examined at once, within one frame of the screen.
PORTION: Final = 1 << 16


class Selection(Protocol):
    """Rows by position."""

    @property
    def first(self) -> int:
        """The position of the oldest row that is held."""
        ...

    @property
    def end(self) -> int:
        """One past the position of the newest row."""
        ...

    @property
    def behind(self) -> int:
        """The number of rows in the store that have not been examined yet."""
        ...

    def pull(self, most: int = PORTION) -> bool:
        """Examines up to `most` rows of the store; returns True if there are more."""
        ...

    def rows(self, positions: Sequence[int], /) -> list[Row]:
        """Returns the rows at `positions`, which are ascending and all held."""
        ...

    def seqs(self, first: int, end: int) -> Array:
        """Returns the sequence numbers, int64 (n,), at positions `first` to `end` - 1."""
        ...

    def seq(self, position: int) -> int | None:
        """Returns the sequence number at this position; None if that row is not held."""
        ...

    def position(self, seq: int) -> int:
        """Returns the position of row `seq` or else of the next one; `end` if there is none."""
        ...


class AllRows:
    """All rows of the store: positions are sequence numbers."""

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

    def rows(self, positions: Sequence[int], /) -> list[Row]:
        return self._store.rows(positions)

    def seqs(self, first: int, end: int) -> Array:
        return np.arange(max(first, self.first), min(end, self.end), dtype=np.int64)

    def seq(self, position: int) -> int | None:
        return position if self.first <= position < self.end else None

    def position(self, seq: int) -> int:
        return min(max(seq, self.first), self.end)


class MatchingRows:
    """The rows that `mask` matches, found a portion at a time.

    `mask`: returns bool (n,) for a Part of n rows.
    """

    def __init__(self, store: Store, mask: Mask) -> None:
        self._store = store
        self._mask = mask
        self._seqs: Array = np.zeros(1024, np.int64)
        self._count = 0
        self._dropped = 0  # the position of the array's first element
        self._examined = store.first

    @property
    def first(self) -> int:
        held = self._seqs[: self._count]
        return self._dropped + int(np.searchsorted(held, self._store.first))

    @property
    def end(self) -> int:
        return self._dropped + self._count

    @property
    def behind(self) -> int:
        return self._store.end - max(self._examined, self._store.first)

    def pull(self, most: int = PORTION) -> bool:
        until = min(self._store.end, max(self._examined, self._store.first) + most)
        for part in self._store.parts(self._examined, until):
            found = np.flatnonzero(self._mask(part))
            if found.size:
                self._add(found.astype(np.int64) + part.first)
        self._examined = until
        return until < self._store.end

    def rows(self, positions: Sequence[int], /) -> list[Row]:
        at = np.asarray(positions, np.int64) - self._dropped
        return self._store.rows(self._seqs[at]) if len(at) else []

    def seqs(self, first: int, end: int) -> Array:
        first, end = max(first, self.first) - self._dropped, min(end, self.end) - self._dropped
        return self._seqs[first:end].copy()

    def seq(self, position: int) -> int | None:
        if not self.first <= position < self.end:
            return None
        return int(self._seqs[position - self._dropped])

    def position(self, seq: int) -> int:
        held = self._seqs[: self._count]
        return max(self.first, self._dropped + int(np.searchsorted(held, seq)))

    def _add(self, seqs: Array) -> None:
        need = self._count + len(seqs)
        if need > len(self._seqs):
            # Reuse the room of rows that the store has evicted.
            evicted = self.first - self._dropped
            kept = self._seqs[evicted : self._count]
            grown = np.zeros(2 * (len(kept) + len(seqs)), np.int64)
            grown[: len(kept)] = kept
            self._seqs, self._count, self._dropped = grown, len(kept), self._dropped + evicted
            need = self._count + len(seqs)
        self._seqs[self._count : need] = seqs
        self._count = need
