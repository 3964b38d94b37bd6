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
_NARROW: Final = 16  # bits of what is worth packing
_ROUNDS: Final = 4


def alike(columns: list[Array]) -> tuple[Array, Array]:
    """Of each kind of row one, and the kind of each row: int64, shape (k,) and (n,).

    `columns`: integers, shape (n,) each; rows are of one kind if they are equal in all of them.
    """
    count = len(columns[0])
    kinds = np.zeros(count, np.int64)
    if not count:
        return kinds, kinds
    varying, bits = _packed(columns)
    if not varying:
        return kinds[:1].copy(), kinds
    rows = np.arange(count)
    if bits <= _BITS:
        return _by_value(varying[0].view(np.int64), rows, bits)
    ones: list[Array] = []
    total = 0
    for turn in range(_ROUNDS):
        # One row stands for all that have its slot: those that differ have another turn.
        slots = _slots(varying, turn)
        one_of = np.full(1 << _BITS, -1, np.int64)
        one_of[slots] = rows if not turn else np.arange(len(rows))
        used = one_of >= 0
        number = np.cumsum(used) + (total - 1)
        like = one_of[slots]
        same = varying[0][like] == varying[0]
        for column in varying[1:]:
            same &= column[like] == column
        ones.append(rows[one_of[used]])
        total += len(ones[-1])
        if same.all():
            if not turn:
                return ones[0], number[slots]
            kinds[rows] = number[slots]
            return np.concatenate(ones), kinds
        kinds[rows[same]] = number[slots[same]]
        rows, varying = rows[~same], [column[~same] for column in varying]
    _, one, inverse = np.unique(
        np.stack(varying, axis=1), axis=0, return_index=True, return_inverse=True
    )
    kinds[rows] = inverse.reshape(-1) + total
    return np.concatenate([*ones, rows[one]]), kinds


def _packed(columns: list[Array]) -> tuple[list[Array], int]:
    """The columns as few words, uint64, that differ exactly where these do; the bits of all."""
    wide: list[Array] = []
    packed: Array | None = None
    total = used = 0
    for column in columns:
        values = column.view(np.uint8) if column.dtype == np.bool_ else column
        low, high = values.min(), values.max()
        if low == high:
            continue
        bits = int(high - low).bit_length()
        total += bits
        if bits > _NARROW:
            wide.append(values.astype(np.uint64, copy=False))
            continue
        part = (values - low).astype(np.uint64)
        if packed is None or used + bits > 64:
            wide += [] if packed is None else [packed]
            packed, used = part, bits
        else:
            part <<= np.uint64(used)
            packed |= part
            used += bits
    return wide if packed is None else [packed, *wide], total


def _by_value(values: Array, rows: Array, bits: int) -> tuple[Array, Array]:
    """As `alike`, of one column of so many bits; `rows`: 0, 1, 2 and so on."""
    one_of = np.full(1 << bits, -1, np.int64)
    one_of[values] = rows
    used = one_of >= 0
    return one_of[used], (np.cumsum(used) - 1)[values]


def _slots(columns: list[Array], turn: int) -> Array:
    """A number of _BITS bits for each row, another one in each turn; equal rows have the same.

    `columns`: uint64, shape (n,) each.
    """
    mixed = columns[0] * _FACTORS[turn]
    for at, column in enumerate(columns[1:], 1):
        mixed ^= mixed >> np.uint64(32)
        mixed ^= column
        mixed *= _FACTORS[(at + turn) % len(_FACTORS)]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _FACTORS[turn]
    mixed >>= np.uint64(64 - _BITS)
    return mixed.view(np.int64)


def words_of(records: Array, name: str) -> list[Array]:
    """The words of the field `name` of `records`, shape (n,), as columns for `alike`."""
    assert records.dtype.fields is not None
    field, offset = records.dtype.fields[name][:2]
    size = 4 if (offset | field.itemsize | records.dtype.itemsize) & 4 else 8
    words = records.view(f"u{size}").reshape(len(records), records.dtype.itemsize // size)
    return [words[:, at] for at in range(offset // size, (offset + field.itemsize) // size)]
