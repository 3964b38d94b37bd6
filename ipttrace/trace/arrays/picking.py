# SPDX-License-Identifier: GPL-2.0-only
"""Joins and indexes arrays of records as opaque bytes.

numpy copies structured arrays field by field, and converts them to native byte order
when it joins them; opaque items are copied at once and unchanged.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ipttrace.trace.arrays.hashing import Array


def join(parts: Sequence[Array], dtype: np.dtype[np.void]) -> Array:
    """Returns the arrays of this dtype as one; a single array is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.zeros(0, dtype)
    opaque = np.dtype(("V", dtype.itemsize))
    joined: Array = np.concatenate([part.view(opaque) for part in parts]).view(dtype)
    return joined


def pick(records: Array, which: Array) -> Array:
    """Returns ``records[which]``, for indices or a mask; a copy."""
    picked: Array = records.view(np.dtype(("V", records.dtype.itemsize)))[which]
    return picked.view(records.dtype)
