# SPDX-License-Identifier: GPL-2.0-only
"""What is wrong with a fragment: `frag_fault`.

A row may have several faults, and may get them later: from fragments that come after it,
or when reassembly gives the packet up.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.fragments import FAULTS
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import Choice, Matcher
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.store import Part

_TEXTS: Final = tuple(
    ",".join(name for name, bit in FAULTS.items() if bits & bit)
    for bits in range(sum(FAULTS.values()) + 1)
)


class FragmentFault(Choice):
    """The faults of a fragment; unknown for rows without any."""

    skips_unknown = True
    changes = True

    def __init__(self) -> None:
        super().__init__(lambda part: np.zeros(len(part), np.uint8), _TEXTS, listed=tuple(FAULTS))

    def has_value(self, part: Part, context: Context) -> Array | None:
        found: Array = _faults(part, context) != 0
        return found

    def table(self, value: Value, test: Test) -> Array:
        if (bit := FAULTS.get(value.text.lower())) is None:
            return super().table(value, test)
        table: Array = (np.arange(len(_TEXTS)) & bit) != 0
        return table

    def by_table(self, table: Array) -> Matcher:
        table = table.copy()
        table[0] = False  # "" is no value, whatever a regular expression matches

        def in_table(part: Part, context: Context) -> Array:
            found: Array = table[_faults(part, context)]
            return found

        return in_table


def _faults(part: Part, context: Context) -> Array:
    if context.fragments is None:
        return np.zeros(len(part), np.uint8)
    return context.fragments.faults(part)
