# SPDX-License-Identifier: GPL-2.0-only
"""Counts by stretches of time: rings whose cells know which stretch they hold.

Time is that of the rows, so a recording played fast has the rates that it had.
Rows come in the order of time but for moments; a clock that was set back by
more than a ring counts anew.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array

# A cell that holds a stretch this many rings later is from before the clock was set back.
_RINGS: Final = 4


def claim(marks: Array, at: Array, stretch: Array, ring: int) -> tuple[Array, Array]:
    """Take cells for stretches of time.

    `marks`: int64, flat, the stretch that each cell holds; `at`: the cells
    wanted, `stretch`: what for, both of shape (n,); `ring`: cells of a ring.
    Returns the cells that held another stretch (the caller empties them; some
    may be there twice) and which of the n may be counted: the others are older
    than what their cell holds.
    """
    held = marks[at]
    if np.array_equal(held, stretch):
        return at[:0], np.ones(len(at), bool)
    other = (held < stretch) | (held > stretch + _RINGS * ring)
    taken = at[other]
    marks[taken] = stretch[other]
    # Again: where two stretches want one cell, one of them got it.
    return taken, marks[at] == stretch
