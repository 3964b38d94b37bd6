# SPDX-License-Identifier: GPL-2.0-only
"""The rows of a part that a mask matches, for tallies that count only those.

Must not do I/O, and must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array, Recent
from ipttrace.trace.store import Part
from ipttrace.trace.tally.row_facts import BEGINS, SEQUENCE

Mask = Callable[[Part], Array]

# Journeys that are remembered, so that one with several matching rows counts as one packet.
_JOURNEYS: Final = 1 << 16


class Matching:
    """The matching rows of consecutive parts."""

    def __init__(self, mask: Mask) -> None:
        """`mask`: returns bool (n,) for a part of n rows."""
        self._mask = mask
        self._counted = Recent(_JOURNEYS)

    def of(self, part: Part) -> Part:
        """A part of the matching rows with their steps; BEGINS and SEQUENCE are among its columns.

        Its rows are not consecutive.
        """
        rows = np.flatnonzero(self._mask(part))
        columns = {name: column[rows] for name, column in part.columns.items()}
        columns[SEQUENCE] = rows.astype(np.int64) + part.first
        columns[BEGINS] = self._first_matches(columns["journey"])
        begins = part.begins[rows].astype(np.int64)
        lengths = part.ends[rows].astype(np.int64) - begins
        ends = np.cumsum(lengths)
        at = np.repeat(begins - (ends - lengths), lengths) + np.arange(lengths.sum())
        steps = {name: column[at] for name, column in part.steps.items()}
        return Part(part.first, columns, ends - lengths, ends, steps, part.aliases)

    def _first_matches(self, journeys: Array) -> Array:
        """Whether each row is the first of its journey that matches, bool (n,)."""
        found, first = np.unique(journeys, return_index=True)
        _, known = self._counted.get(found)
        begins = np.zeros(len(journeys), bool)
        begins[first[~known]] = True
        self._counted.put(found, found)
        return begins
