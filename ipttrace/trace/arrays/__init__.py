# SPDX-License-Identifier: GPL-2.0-only
"""What numpy lacks, for many rows at once.

hashing   keyed hashes
recent    a bounded map of integers
picking   joining and indexing arrays of records
"""

from __future__ import annotations

from ipttrace.trace.arrays.hashing import Array, Hash
from ipttrace.trace.arrays.picking import join, pick
from ipttrace.trace.arrays.recent import Recent

__all__ = ["Array", "Hash", "Recent", "join", "pick"]
