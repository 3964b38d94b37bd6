# SPDX-License-Identifier: GPL-2.0-only
"""What every tally reads from a part's columns: outcome, first row, cost.

Must not loop over rows in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.netfilter import VERDICTS
from ipttrace.trace.arrays import Array
from ipttrace.trace.store import NETLINK

OUTCOMES: Final = (*VERDICTS, "other")
# A column of selected rows only, see matching: bool, whether the row counts a packet.
BEGINS: Final = "begins"

_HOST_SHIFT: Final = np.uint64(56)  # as store.schema puts hosts into journeys
_MOST_NS: Final = np.uint64(1 << 50)  # two weeks; larger costs are not credible


def outcomes(verdicts: Array) -> Array:
    """Index into OUTCOMES of each verdict, intp of shape (n,)."""
    found: Array = np.minimum(verdicts & 0xFF, len(OUTCOMES) - 1).astype(np.intp)
    return found


def begins_journey(columns: dict[str, Array]) -> Array:
    """Whether each row is the first of its journey, so that it counts a packet; bool (n,)."""
    if BEGINS in columns:
        return columns[BEGINS]
    first: Array = (columns["call"] | columns["host"].astype(np.uint64) << _HOST_SHIFT) == columns[
        "journey"
    ]
    return first


def cost_known(columns: dict[str, Array]) -> Array:
    """Whether each row's cost was measured, bool of shape (n,)."""
    known: Array = columns["engine"] != NETLINK
    return known


def capped_costs(columns: dict[str, Array]) -> Array:
    """Costs in ns, int64 of shape (n,), small enough to add up."""
    return np.minimum(columns["cost"], _MOST_NS).astype(np.int64)
