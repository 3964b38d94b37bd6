# SPDX-License-Identifier: GPL-2.0-only
"""What an engine returned at once, cut into slices of complete calls.

After a stall, an engine may return the records of 100,000 calls.  A reader can make rows
only once it has the exits: slices let it begin at once, and hold little.  Must not do I/O
or loop over records in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from ipttrace.capture.opaque import picked
from ipttrace.stream.record import ENTRY, EXIT, RULE, Records

# Entries of a slice: more than arrive between two looks, since cutting copies records.
MOST: Final = 1 << 15


def whole_calls(taken: list[Records], most: int = MOST) -> Iterator[list[Records]]:
    """Yields slices, each entry, rule and exit records, with at most `most` entries.

    They are in order of the entries' times.  A call whose entry is among `taken` has all
    its records in one slice; records of calls that began earlier are in the first one.
    """
    entries = taken[ENTRY] if taken else ()
    if len(entries) <= most:
        yield taken
        return
    order = np.argsort(taken[ENTRY]["time"], kind="stable")
    cuts = np.arange(most, len(order), most)
    number = np.empty(len(order), np.intp)  # of each entry's slice
    number[order] = np.arange(len(order)) // most
    by_call = np.argsort(taken[ENTRY]["call"], kind="stable")
    calls = taken[ENTRY]["call"][by_call]

    parts = [np.split(order, cuts)]
    for kind in (RULE, EXIT):
        mine = taken[kind]["call"]
        at = np.minimum(np.searchsorted(calls, mine), len(calls) - 1)
        which = np.where(calls[at] == mine, number[by_call[at]], 0)
        inside = np.argsort(which, kind="stable")
        parts.append(np.split(inside, np.searchsorted(which[inside], np.arange(1, len(cuts) + 1))))
    for some in zip(*parts, strict=True):
        yield [picked(records, indices) for records, indices in zip(taken, some, strict=True)]
