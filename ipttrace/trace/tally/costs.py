# SPDX-License-Identifier: GPL-2.0-only
"""Histograms of costs: eight buckets per doubling, from 32 ns to a minute.

A quantile is off by at most a sixteenth.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array

_PARTS: Final = 3  # 2**3 buckets per doubling
_LOWEST: Final = 5  # 2**5 ns; lower costs go into the first bucket
BUCKETS: Final = 256

# A float64 has 52 bits of fraction, and an exponent biased by 1023.
_SHIFT: Final = np.int64(52 - _PARTS)
_BASE: Final = np.int64((1023 + _LOWEST) << _PARTS)


def buckets(costs: Array) -> Array:
    """The bucket of each cost (ns, integers of shape (n,)): int64, 0 to BUCKETS - 1."""
    bits = costs.astype(np.float64).view(np.int64)
    bits >>= _SHIFT
    bits -= _BASE
    np.clip(bits, 0, BUCKETS - 1, out=bits)
    return bits


def _middles() -> Array:
    number = np.arange(BUCKETS)
    part = 1 << _PARTS
    return 2.0 ** (_LOWEST + number // part) * (1 + (number % part + 0.5) / part)


_MIDDLES: Final = _middles()


def quantiles(counts: Array, share: float) -> Array:
    """The `share` quantile of each histogram in ns, float64 of shape (n,); NaN if empty.

    `counts`: shape (n, BUCKETS).
    """
    cumulative = np.cumsum(counts, axis=1, dtype=np.int64)
    total = cumulative[:, -1]
    rank = np.maximum(np.ceil(share * total), 1)
    found = _MIDDLES[np.argmax(cumulative >= rank[:, None], axis=1)]
    return np.where(total > 0, found, np.nan)
