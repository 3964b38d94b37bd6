# SPDX-License-Identifier: GPL-2.0-only
"""Questions that tests ask of a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.trace.store import Store


def seqs_with(
    store: Store, column: str, value: int, first: int | None = None, end: int | None = None
) -> npt.NDArray[Any]:
    """Sequence numbers, int64 and ascending, of the held rows with `value` in `column`."""
    found = [
        np.flatnonzero(part.columns[column] == value) + part.first
        for part in store.parts(first, end)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)
