# SPDX-License-Identifier: GPL-2.0-only
"""What every tally reads from a part's columns: outcome, drop, first row, cost.

Must not loop over rows in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.netfilter import DROP, VERDICTS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.store import NETLINK, Part

OUTCOMES: Final = (*VERDICTS, "other")
# Columns of selected rows only, see matching: bool, whether the row counts a packet; int64,
# its sequence number.
BEGINS: Final = "begins"
SEQUENCE: Final = "sequence"

_HOST_SHIFT: Final = np.uint64(56)  # as store.schema puts hosts into journeys
_MOST_NS: Final = np.uint64(1 << 50)  # two weeks; larger costs are not credible


def outcomes(columns: dict[str, Array]) -> Array:
    """Index into OUTCOMES of each row, intp of shape (n,); a drop outside the tables is a drop."""
    verdicts, what = columns["verdict"] & 0xFF, columns["what"]
    found: Array = np.minimum(verdicts, len(OUTCOMES) - 1).astype(np.intp)
    if what.any():
        found[what == record.DROPPED] = DROP
    return found


def dropped(columns: dict[str, Array]) -> Array:
    """Whether each row's packet died there: by a rule, or outside the tables; bool (n,)."""
    what = columns["what"]
    found: Array = columns["verdict"] & 0xFF == DROP
    return found | (what == record.DROPPED) if what.any() else found


def sequence(part: Part) -> Array:
    """The sequence number of each row, int64 (n,)."""
    known = part.columns.get(SEQUENCE)
    return np.arange(part.first, part.first + len(part)) if known is None else known


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
    what = columns["what"]
    known: Array = columns["engine"] != NETLINK
    return known & (what == 0) if what.any() else known


def capped_costs(columns: dict[str, Array]) -> Array:
    """Costs in ns, int64 of shape (n,), small enough to add up."""
    return np.minimum(columns["cost"], _MOST_NS).astype(np.int64)
