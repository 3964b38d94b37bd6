# SPDX-License-Identifier: GPL-2.0-only
"""A bounded table of counters: each key has a slot, an index into every column.

When it is full, the keys that were not counted for longest are evicted and their sums
added to slot 0, which stands for all keys without a slot.  Must not do I/O, and must
not loop over keys in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array

OTHER: Final = 0

_LEAST: Final = 64


class Slots:
    """Maps uint64 keys to slots, at most `limit` besides slot 0.

    `columns`: dtype and shape of an element by name.  `added`: the columns that are
    sums, which slot 0 keeps when a key is evicted.
    """

    def __init__(
        self,
        limit: int,
        columns: Mapping[str, tuple[str, tuple[int, ...]]],
        added: Collection[str],
    ) -> None:
        self.limit = limit
        self.evicted = 0  # number of keys
        self.columns: dict[str, Array] = {
            name: np.zeros((_LEAST, *shape), dtype) for name, (dtype, shape) in columns.items()
        }
        self._added = frozenset(added)
        self._keys = np.zeros(0, np.uint64)  # ascending
        self._slots = np.zeros(0, np.intp)  # by index of the key
        self._counted = np.zeros(_LEAST, np.int64)  # by slot: the last round that counted it
        self._made = 1  # slots that were ever given, with slot 0
        self._free: Array = np.zeros(0, np.intp)
        self._round = 0  # calls of `assign`

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def live(self) -> Array:
        """Slots that have a key, unordered."""
        return self._slots

    def assign(self, keys: Array) -> tuple[Array, Array, Array]:
        """The slots of `keys`, uint64 of shape (n,); new keys get one.

        Returns the slots, shape (n,), and for each new key its first index in `keys`
        and its slot, both of shape (m,).  New keys beyond the limit get slot 0.
        """
        self._round += 1
        if len(self._keys):
            at = np.searchsorted(self._keys, keys)
            at[at == len(self._keys)] = 0
            known = self._keys[at] == keys
            slots = self._slots[at]
            if known.all():
                self._counted[slots] = self._round
                return slots, np.zeros(0, np.intp), np.zeros(0, np.intp)
            self._counted[slots[known]] = self._round
        else:
            known = np.zeros(len(keys), bool)
            slots = np.zeros(len(keys), np.intp)
        missing = np.flatnonzero(~known)
        fresh, first = np.unique(keys[missing], return_index=True)
        room = self._make_room(len(fresh))
        given = np.full(len(fresh), OTHER, np.intp)
        some = self._take(min(room, len(fresh)))
        given[: len(some)] = some
        slots[missing] = given[np.searchsorted(fresh, keys[missing])]
        self._counted[some] = self._round
        where = np.searchsorted(self._keys, fresh[: len(some)])
        self._keys = np.insert(self._keys, where, fresh[: len(some)])
        self._slots = np.insert(self._slots, where, some)
        return slots, missing[first[: len(some)]], some

    def rekey(self, slots: Array, keys: Array) -> tuple[Array, Array]:
        """Gives `slots`, shape (n,), other keys.

        Returns pairs of slots, both (m,), that have one key now.  The second ones are
        free afterwards: the caller must add their columns to the first ones' and clear them.
        """
        at = np.zeros(len(self._counted), np.intp)
        at[self._slots] = np.arange(len(self._slots))
        changed = self._keys.copy()
        changed[at[slots]] = keys
        order = np.argsort(changed, kind="stable")
        changed, held = changed[order], self._slots[order]
        first = np.append(True, changed[1:] != changed[:-1])
        kept = held[first][np.cumsum(first) - 1]
        self._keys, self._slots = changed[first], held[first]
        gone = held[~first]
        self._free = np.concatenate([self._free, gone])
        self._counted[kept] = np.maximum(self._counted[kept], self._counted[held])
        return kept[~first], gone

    def _make_room(self, count: int) -> int:
        """Evict keys so that `count` new ones fit, if possible; returns how many fit."""
        room = self.limit - len(self._keys)
        if count <= room:
            return room
        counted = self._counted[self._slots]
        old = np.flatnonzero(counted < self._round)  # not those being counted now
        most = min(len(old), max(count - room, self.limit // 16))
        if most < len(old):
            old = old[np.argpartition(counted[old], most)[:most]]
        self._evict(old)
        return room + len(old)

    def _evict(self, at: Array) -> None:
        slots = self._slots[at]
        for name, column in self.columns.items():
            if name in self._added:
                column[OTHER] += column[slots].sum(axis=0, dtype=column.dtype)
            column[slots] = 0
        keep = np.ones(len(self._keys), bool)
        keep[at] = False
        self._keys, self._slots = self._keys[keep], self._slots[keep]
        self._free = np.concatenate([self._free, slots])
        self.evicted += len(slots)

    def _take(self, count: int) -> Array:
        """`count` unused slots."""
        reused, self._free = self._free[:count], self._free[count:]
        more = count - len(reused)
        if not more:
            return reused
        new = np.arange(self._made, self._made + more)
        self._made += more
        if self._made > len(self._counted):
            size = min(max(self._made, 2 * len(self._counted)), self.limit + 1)
            self._counted = _grown(self._counted, size)
            self.columns = {name: _grown(one, size) for name, one in self.columns.items()}
        return np.concatenate([reused, new])


def _grown(column: Array, size: int) -> Array:
    grown = np.zeros((size, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
