# SPDX-License-Identifier: GPL-2.0-only
"""Copies of records as opaque bytes.

numpy copies structured arrays field by field, which is slow, and converts joined ones to native
byte order, which would swap the bytes of ports.  Must not know what records contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def picked(records: Array, which: Array) -> Array:
    """``records[which]``: a copy."""
    found: Array = plain(records)[which].view(records.dtype)
    return found


def joined(parts: Sequence[Array]) -> Array:
    """The records of one part or more, all of one dtype; of one part no copy."""
    if len(parts) == 1:
        return parts[0]
    found: Array = np.concatenate([plain(part) for part in parts]).view(parts[0].dtype)
    return found


def plain(records: Array) -> Array:
    """The records, shape (n,), as opaque bytes: no copy."""
    found: Array = records.view(f"V{records.dtype.itemsize}")
    return found
