# SPDX-License-Identifier: GPL-2.0-only
"""Which rows are fragments of one packet, and what is wrong with them.

- pieces.py: rows of fragments, and of packets that may have been reassembled, as columns
- groups.py: the fragments of each packet, and the packet itself
- faults.py: first fragments that are too short, overlaps, packets that never completed
- index.py: all of it for the rows of a store

Fragments have rows of their own only where a table sees them before reassembly: at a
priority before conntrack's (-400), or where nothing reassembles.  What cannot be known is
left out, never guessed.  Must not do I/O, and must not loop over rows in Python.
"""

from __future__ import annotations

from ipttrace.trace.fragments.faults import FAULTS, INCOMPLETE, OVERLAP, SHORT
from ipttrace.trace.fragments.index import Fragment, FragmentIndex, Fragments, index_of

__all__ = [
    "FAULTS",
    "INCOMPLETE",
    "OVERLAP",
    "SHORT",
    "Fragment",
    "FragmentIndex",
    "Fragments",
    "index_of",
]
