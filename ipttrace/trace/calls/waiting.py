# SPDX-License-Identifier: GPL-2.0-only
"""Records that wait for the rest of their call, in bounded memory.  Must not do I/O."""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array, pick

# Records lie in blocks of so many: a growing number never has to be copied as a whole.
_BLOCK: Final = 1 << 12


class Waiting:
    """Records of one kind, each with a number beside it; the oldest are evicted."""

    def __init__(self, dtype: np.dtype[np.void], limit: int) -> None:
        """`limit`: records that are held at most."""
        self._dtype = dtype
        self._limit = limit
        self._blocks: list[Array | None] = []  # None: none of its records is held any more
        self._beside: Array = np.zeros(0, np.uint64)
        self._calls: Array = np.zeros(0, np.uint64)
        self._times: Array = np.zeros(0, np.uint64)
        self._held: Array = np.zeros(0, bool)
        self._used = 0  # rows of the arrays in use, held or not
        self._count = 0
        self._order: Array | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes of the records that are held."""
        return self._count * self._dtype.itemsize

    def add(self, records: Array, beside: Array | None = None) -> Array:
        """Adds records; returns the calls of those that were evicted for them, uint64 (k,)."""
        count = len(records)
        if not count:
            return self._calls[:0]
        if not self._count:
            self._used = 0
        elif self._used > 2 * self._count + 4 * _BLOCK:
            self._compact()
        rows = slice(self._used, self._used + count)
        self._put(records)
        self._beside[rows] = 0 if beside is None else beside
        self._calls[rows] = records["call"]
        self._times[rows] = records["time"]
        self._held[rows] = True
        self._count += count
        self._order = None
        return self.trim(self._limit)

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
        taken = np.empty(len(indices), self._dtype)
        opaque = taken.view(np.dtype(("V", self._dtype.itemsize)))
        order = np.argsort(indices, kind="stable")
        where = indices[order]
        numbers = np.unique(where // _BLOCK)
        cuts = np.searchsorted(where, [numbers * _BLOCK, (numbers + 1) * _BLOCK])
        for number, first, last in zip(numbers.tolist(), *cuts.tolist(), strict=True):
            block = self._blocks[number]
            assert block is not None
            opaque[order[first:last]] = block.view(opaque.dtype)[
                where[first:last] - number * _BLOCK
            ]
        beside = self._beside[indices]
        self._remove(indices)
        return taken, beside

    def expire(self, before: int) -> Array:
        """Removes records with an earlier time; returns their calls, uint64 (k,)."""
        held = self._held[: self._used]
        return self._evict(np.flatnonzero(held & (self._times[: self._used] < before)))

    def trim(self, limit: int) -> Array:
        """Removes the oldest records if there are more than `limit`; returns their calls."""
        if self._count <= limit:
            return self._calls[:0]
        held = np.flatnonzero(self._held[: self._used])
        # A quarter at once, so that this is rare.
        count = self._count - limit + limit // 4
        return self._evict(held[np.argsort(self._times[held], kind="stable")[:count]])

    def clear(self) -> Array:
        """Removes all records; returns their calls, uint64 (k,)."""
        return self._evict(np.flatnonzero(self._held[: self._used]))

    def _evict(self, indices: Array) -> Array:
        calls: Array = self._calls[indices]
        self._remove(indices)
        return calls

    def _remove(self, indices: Array) -> None:
        if not len(indices):
            return
        self._held[indices] = False
        self._count -= len(indices)
        self._order = None
        for number in np.unique(indices // _BLOCK).tolist():
            if number and not self._held[number * _BLOCK : (number + 1) * _BLOCK].any():
                self._blocks[number] = None

    def _sorted(self) -> tuple[Array, Array]:
        if self._order is None:
            held = np.flatnonzero(self._held[: self._used])
            self._order = held[np.argsort(self._calls[held], kind="stable")]
        return self._order, self._calls[self._order]

    def _put(self, records: Array) -> None:
        """Copies records into the blocks, behind all others, and makes room beside them."""
        opaque = np.dtype(("V", self._dtype.itemsize))
        done = 0
        while done < len(records):
            number, at = divmod(self._used, _BLOCK)
            if number == len(self._blocks):
                self._blocks.append(None)
            block = self._blocks[number]
            if block is None:
                block = self._blocks[number] = np.empty(_BLOCK, self._dtype)
            some = min(_BLOCK - at, len(records) - done)
            block.view(opaque)[at : at + some] = records[done : done + some].view(opaque)
            done += some
            self._used += some
        if self._used > len(self._calls):
            room = -(-2 * self._used // _BLOCK) * _BLOCK
            for name in ("_beside", "_calls", "_times", "_held"):
                old: Array = getattr(self, name)
                new = np.zeros(room, old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)

    def _compact(self) -> None:
        """Moves the records that are held to the front, block by block."""
        held = np.flatnonzero(self._held[: self._used])
        blocks, self._blocks, self._used, self._order = self._blocks, [], 0, None
        for number in np.unique(held // _BLOCK).tolist():
            block, blocks[number] = blocks[number], None
            assert block is not None
            first, last = np.searchsorted(held, [number * _BLOCK, (number + 1) * _BLOCK])
            self._put(pick(block, held[first:last] - number * _BLOCK))
        for name in ("_beside", "_calls", "_times"):
            column: Array = getattr(self, name)
            column[: len(held)] = column[held]
        self._held[:] = False
        self._held[: len(held)] = True
