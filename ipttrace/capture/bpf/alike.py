# SPDX-License-Identifier: GPL-2.0-only
"""Finds equal rows among many, so that work is done once for all of a kind.

Of 10,000 rule hits, a hundred differ in more than their times.  Must not do I/O.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Odd, so that none maps two words to one; random, so that none can choose words that collide.
_FACTORS: Final = [np.uint64(secrets.randbits(64) | 1) for _ in range(8)]
_BITS: Final = 12  # of a slot's number
_ROUNDS: Final = 4


def alike(columns: list[Array]) -> tuple[Array, Array]:
    """Of each kind of row one, and the kind of each row: int64, shape (k,) and (n,).

    `columns`: integers, shape (n,) each; rows are of one kind if they are equal in all of them.
    """
    count = len(columns[0])
    kinds = np.zeros(count, np.int64)
    if not count:
        return kinds, kinds
    varying = [column for column in columns if (column != column[0]).any()]
    if not varying:
        return kinds[:1].copy(), kinds
    rows = np.arange(count)
    ones: list[Array] = []
    total = 0
    for turn in range(_ROUNDS):
        # One row stands for all that have its slot: those that differ have another turn.
        slots = _slots(varying, turn)
        one_of = np.empty(1 << _BITS, np.int64)
        one_of[slots] = np.arange(len(rows))
        used = np.zeros(1 << _BITS, bool)
        used[slots] = True
        number = np.cumsum(used) + (total - 1)
        like = one_of[slots]
        same = np.ones(len(rows), bool)
        for column in varying:
            same &= column[like] == column
        ones.append(rows[one_of[used]])
        total += len(ones[-1])
        if same.all():
            kinds[rows] = number[slots]
            return np.concatenate(ones), kinds
        kinds[rows[same]] = number[slots[same]]
        rows, varying = rows[~same], [column[~same] for column in varying]
    _, one, inverse = np.unique(
        np.stack(varying, axis=1), axis=0, return_index=True, return_inverse=True
    )
    kinds[rows] = inverse.reshape(-1) + total
    return np.concatenate([*ones, rows[one]]), kinds


def _slots(columns: list[Array], turn: int) -> Array:
    """A number of _BITS bits for each row, another one in each turn; equal rows have the same."""
    mixed = np.full(len(columns[0]), turn, np.uint64)
    for at, column in enumerate(columns):
        mixed ^= column.astype(np.uint64, copy=False)
        mixed *= _FACTORS[(at + turn) % len(_FACTORS)]
        mixed ^= mixed >> np.uint64(32)
    mixed *= _FACTORS[turn]
    found: Array = (mixed >> np.uint64(64 - _BITS)).astype(np.int64)
    return found


def words_of(records: Array, name: str) -> list[Array]:
    """The words of the field `name` of `records`, shape (n,), as columns for `alike`."""
    assert records.dtype.fields is not None
    field, offset = records.dtype.fields[name][:2]
    size = 4 if (offset | field.itemsize | records.dtype.itemsize) & 4 else 8
    words = records.view(f"u{size}").reshape(len(records), records.dtype.itemsize // size)
    return [words[:, at] for at in range(offset // size, (offset + field.itemsize) // size)]
