# SPDX-License-Identifier: GPL-2.0-only
"""Keyed hashes of many rows at once.

Multilinear hashing over 32-bit words with random 64-bit multipliers (Lemire and Kaser,
"Strongly universal string hashing is fast"): senders of packets do not know the
multipliers and therefore cannot make flows or names collide.  Must not do I/O, except
for reading random numbers from the system.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _multipliers(count: int) -> list[np.uint64]:
    # Odd, so that no multiplier is zero.
    return [np.uint64(secrets.randbits(64) | 1) for _ in range(count)]


class Hash:
    """A hash of up to `words` 32-bit words, with its own multipliers."""

    def __init__(self, words: int) -> None:
        self._rounds = (_multipliers(words + 1), _multipliers(words + 1))

    def quick(self, words: Sequence[Array]) -> Array:
        """Returns uint64 (n,), for callers that verify equality afterwards."""
        return self._sum(words, 0)

    def full(self, words: Sequence[Array]) -> Array:
        """Returns uint64 (n,): two rows collide with a probability of 2**-64.

        `words`: arrays (n,) of unsigned integers below 2**32.
        """
        high = self._sum(words, 0)
        low = self._sum(words, 1)
        # Only the upper half of a multilinear sum is universal.
        high &= np.uint64(0xFFFFFFFF00000000)
        low >>= np.uint64(32)
        high |= low
        return high

    def _sum(self, words: Sequence[Array], which: int) -> Array:
        keys = self._rounds[which]
        total = np.full(len(words[0]), keys[0], np.uint64)
        term = np.empty_like(total)
        for word, key in zip(words, keys[1:], strict=False):
            np.multiply(word, key, out=term)
            total += term
        return total
