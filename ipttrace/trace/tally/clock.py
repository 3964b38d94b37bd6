# SPDX-License-Identifier: GPL-2.0-only
"""Rings of counters by time: each cell is marked with the interval that it counts.

Time is that of the rows, so a recording played fast has the rates of the original.
Rows arrive in time order, except for moments; a clock set back by more than a few rings
starts over.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array

# A cell marked with an interval this many rings later is from before the clock was set back.
_RINGS: Final = 4


def claim(marks: Array, at: Array, intervals: Array, ring: int) -> tuple[Array, Array]:
    """Mark cells with the intervals that they are to count.

    `marks`: int64, flat, the interval of each cell, updated; `at`, `intervals`: cells
    and their intervals, both of shape (n,); `ring`: number of cells of a ring.  Returns
    the cells that had counted another interval, which the caller has to clear and which
    may repeat, and a mask of shape (n,): False for intervals older than their cell's.
    """
    held = marks[at]
    if np.array_equal(held, intervals):
        return at[:0], np.ones(len(at), bool)
    other = (held < intervals) | (held > intervals + _RINGS * ring)
    reused = at[other]
    marks[reused] = intervals[other]
    # Read again: of two intervals for one cell, only one got it.
    return reused, marks[at] == intervals
