# SPDX-License-Identifier: GPL-2.0-only
"""A bounded map of integers that is read and written by arrays.

It forgets the keys that were written longest ago: for things whose end is not reported,
such as skbs.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array

_HOPS: Final = 4  # of `follow`; values that lead back to their keys must not loop for ever


class Recent:
    """uint64 → uint64, at most `limit` keys."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys = np.zeros(0, np.uint64)
        self._values = np.zeros(0, np.uint64)
        self._written = np.zeros(0, np.int64)
        self._round = 0

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, keys: Array) -> tuple[Array, Array]:
        """Returns the values (n,), 0 if unknown, and whether they are known, bool (n,)."""
        if not len(self._keys):
            return np.zeros(len(keys), np.uint64), np.zeros(len(keys), bool)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        known = self._keys[at] == keys
        return np.where(known, self._values[at], np.uint64(0)), known

    def follow(self, keys: Array) -> Array:
        """Returns the value of each key, that value's own value and so on; the key if unknown."""
        found = keys
        some = np.arange(len(keys))
        for _ in range(_HOPS if len(self._keys) else 0):
            values, known = self.get(found[some])
            if not known.any():
                break
            some, values = some[known], values[known]
            found = found.copy() if found is keys else found
            found[some] = values
        return found

    def put(self, keys: Array, values: Array) -> None:
        """Writes values; of equal keys the last one counts."""
        if not len(keys):
            return
        self._round += 1
        if len(keys) > 1 and not bool((keys[1:] > keys[:-1]).all()):
            order = np.argsort(keys, kind="stable")
            keys, values = keys[order], values[order]
            last = np.append(keys[1:] != keys[:-1], True)
            keys, values = keys[last], values[last]
        at = np.searchsorted(self._keys, keys)
        if len(self._keys):
            known = self._keys[np.minimum(at, len(self._keys) - 1)] == keys
            self._values[at[known]] = values[known]
            self._written[at[known]] = self._round
            if known.all():
                return
            at, keys, values = at[~known], keys[~known], values[~known]
        self._keys = np.insert(self._keys, at, keys)
        self._values = np.insert(self._values, at, values)
        self._written = np.insert(self._written, at, self._round)
        if len(self._keys) > self._limit:
            self._forget()

    def _forget(self) -> None:
        # Down to half, so that this is rare.
        keep = np.sort(np.argsort(-self._written, kind="stable")[: max(self._limit // 2, 1)])
        self._keys = self._keys[keep]
        self._values = self._values[keep]
        self._written = self._written[keep]
