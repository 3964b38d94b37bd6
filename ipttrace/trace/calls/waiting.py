# SPDX-License-Identifier: GPL-2.0-only
"""Records that wait for the rest of their call, in bounded memory.  Must not do I/O."""

from __future__ import annotations

import numpy as np

from ipttrace.trace.arrays import Array, pick


class Waiting:
    """Records of one kind, each with a number beside it; the oldest are evicted."""

    def __init__(self, dtype: np.dtype[np.void], limit: int) -> None:
        self._limit = limit
        self._records: Array = np.zeros(0, dtype)
        self._beside: Array = np.zeros(0, np.uint64)
        self._calls: Array = np.zeros(0, np.uint64)
        self._times: Array = np.zeros(0, np.uint64)
        self._held: Array = np.zeros(0, bool)
        self._used = 0  # rows of the arrays in use, held or not
        self._count = 0
        self._order: Array | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, records: Array, beside: Array | None = None) -> int:
        """Adds records; returns how many were evicted for them."""
        count = len(records)
        if not count:
            return 0
        if self._used + count > len(self._records):
            self._grow(count)
        rows = slice(self._used, self._used + count)
        self._records[rows] = records
        self._beside[rows] = 0 if beside is None else beside
        self._calls[rows] = records["call"]
        self._times[rows] = records["time"]
        self._held[rows] = True
        self._used += count
        self._count += count
        self._order = None
        return self._drop_oldest() if self._count > self._limit else 0

    def find(self, calls: Array) -> Array:
        """Returns the index of each (distinct) call's first record; -1 if it has none."""
        found = np.full(len(calls), -1, np.intp)
        if not self._count or not len(calls):
            return found
        order, known = self._sorted()
        at = np.searchsorted(known, calls)
        at[at == len(known)] = 0
        hit = known[at] == calls
        found[hit] = order[at[hit]]
        return found

    def find_all(self, calls: Array) -> Array:
        """Returns the indices of all records of these (sorted, distinct) calls."""
        if not self._count or not len(calls):
            return np.zeros(0, np.intp)
        held = np.flatnonzero(self._held[: self._used])
        mine = self._calls[held]
        at = np.searchsorted(calls, mine)
        at[at == len(calls)] = 0
        indices: Array = held[calls[at] == mine]
        return indices

    def take(self, indices: Array) -> tuple[Array, Array]:
        """Removes and returns the records at these indices and the numbers beside them."""
        self._held[indices] = False
        self._count -= len(indices)
        self._order = None
        return pick(self._records, indices), self._beside[indices]

    def expire(self, before: int) -> int:
        """Removes records with an earlier time; returns how many."""
        if not self._count:
            self._used = 0
            return 0
        old = self._held[: self._used] & (self._times[: self._used] < before)
        count = int(np.count_nonzero(old))
        if count:
            self._held[: self._used][old] = False
            self._count -= count
            self._order = None
        return count

    def clear(self) -> int:
        """Removes all records; returns how many."""
        count, self._count, self._used, self._order = self._count, 0, 0, None
        return count

    def _sorted(self) -> tuple[Array, Array]:
        if self._order is None:
            held = np.flatnonzero(self._held[: self._used])
            self._order = held[np.argsort(self._calls[held], kind="stable")]
        return self._order, self._calls[self._order]

    def _grow(self, count: int) -> None:
        """Makes room for `count` more, without those that were removed."""
        held = np.flatnonzero(self._held[: self._used])
        room = max(1024, 2 * (self._count + count))
        for name in ("_records", "_beside", "_calls", "_times", "_held"):
            old: Array = getattr(self, name)
            new = np.zeros(room, old.dtype)
            new[: len(held)] = pick(old, held)
            setattr(self, name, new)
        self._used = len(held)
        self._order = None

    def _drop_oldest(self) -> int:
        held = np.flatnonzero(self._held[: self._used])
        # A quarter at once, so that this is rare.
        count = self._count - self._limit + self._limit // 4
        oldest = held[np.argsort(self._times[held], kind="stable")[:count]]
        self._held[oldest] = False
        self._count -= len(oldest)
        self._order = None
        return len(oldest)
