# SPDX-License-Identifier: GPL-2.0-only
"""A bounded table that is counted in whole arrays at once: a key gets a slot of each column.

What has not been counted for longest gives way, and is added to slot 0, which
stands for all that has no slot of its own.  Must not do I/O, and must not loop
over keys in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array

OTHER: Final = 0

_LEAST: Final = 64


class Slots:
    """uint64 keys → slots, at most `limit` of them beside slot 0.

    `columns`: dtype and, for more than one element a slot, shape.  `added`:
    those columns that are sums, so that slot 0 takes over what gives way.
    """

    def __init__(
        self,
        limit: int,
        columns: Mapping[str, tuple[str, tuple[int, ...]]],
        added: Collection[str],
    ) -> None:
        self.limit = limit
        self.gone = 0  # slots that gave way
        self.columns: dict[str, Array] = {
            name: np.zeros((_LEAST, *shape), dtype) for name, (dtype, shape) in columns.items()
        }
        self._added = frozenset(added)
        self._keys = np.zeros(0, np.uint64)  # ascending
        self._slots = np.zeros(0, np.intp)  # of each of them
        self._told = np.zeros(_LEAST, np.int64)
        self._made = 1
        self._free: Array = np.zeros(0, np.intp)
        self._round = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def live(self) -> Array:
        """Slots that have a key, in no order."""
        return self._slots

    def find(self, key: int) -> int | None:
        """The slot of one key; None where it has none."""
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        if at == len(self._keys) or int(self._keys[at]) != key:
            return None
        return int(self._slots[at])

    def assign(self, keys: Array) -> tuple[Array, Array, Array]:
        """Slots of `keys`, uint64 of shape (n,); new ones get one.

        Returns the slots, shape (n,); of the new ones the first index in
        `keys` and the slot, both of shape (m,).  Of more new keys than there
        can be room for, some get slot 0.
        """
        self._round += 1
        if len(self._keys):
            at = np.searchsorted(self._keys, keys)
            at[at == len(self._keys)] = 0
            known = self._keys[at] == keys
            slots = self._slots[at]
            if known.all():
                self._told[slots] = self._round
                return slots, np.zeros(0, np.intp), np.zeros(0, np.intp)
            self._told[slots[known]] = self._round
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
        self._told[some] = self._round
        where = np.searchsorted(self._keys, fresh[: len(some)])
        self._keys = np.insert(self._keys, where, fresh[: len(some)])
        self._slots = np.insert(self._slots, where, some)
        return slots, missing[first[: len(some)]], some

    def _make_room(self, count: int) -> int:
        """For so many, as far as can be; how many there is room for."""
        room = self.limit - len(self._keys)
        if count <= room:
            return room
        told = self._told[self._slots]
        old = np.flatnonzero(told < self._round)  # not what is counted right now
        most = min(len(old), max(count - room, self.limit // 16))
        if most < len(old):
            old = old[np.argpartition(told[old], most)[:most]]
        self._forget(old)
        return room + len(old)

    def _forget(self, at: Array) -> None:
        slots = self._slots[at]
        for name, column in self.columns.items():
            if name in self._added:
                column[OTHER] += column[slots].sum(axis=0, dtype=column.dtype)
            column[slots] = 0
        keep = np.ones(len(self._keys), bool)
        keep[at] = False
        self._keys, self._slots = self._keys[keep], self._slots[keep]
        self._free = np.concatenate([self._free, slots])
        self.gone += len(slots)

    def _take(self, count: int) -> Array:
        """Slots that nobody has."""
        again, self._free = self._free[:count], self._free[count:]
        more = count - len(again)
        if not more:
            return again
        new = np.arange(self._made, self._made + more)
        self._made += more
        if self._made > len(self._told):
            size = min(max(self._made, 2 * len(self._told)), self.limit + 1)
            self._told = _grown(self._told, size)
            self.columns = {name: _grown(one, size) for name, one in self.columns.items()}
        return np.concatenate([again, new])


def _grown(column: Array, size: int) -> Array:
    grown = np.zeros((size, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
