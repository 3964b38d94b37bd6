# SPDX-License-Identifier: GPL-2.0-only
"""What the rows add up to, counted as they come: rules, flows and totals.

``tallies.pull(store)`` counts the rows that came since the last time; what is
counted stays counted when the store lets go of the rows.  Must not do I/O, and
must not loop over rows in Python; one thread, that of the store's readers.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.trace.store import Part, Store
from ipttrace.trace.tally.flows import FlowsTally
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.trace.tally.totals import TotalsTally

# Rows counted in one go: some 3 ms, which a frame can bear.
PORTION: Final = 8_000
# Steps: a row may have thousands.
_STEPS: Final = 20_000


class Tallies:
    """All tallies over one store."""

    def __init__(
        self,
        rules: RulesTally | None = None,
        flows: FlowsTally | None = None,
        totals: TotalsTally | None = None,
    ) -> None:
        self.rules = RulesTally() if rules is None else rules
        self.flows = FlowsTally() if flows is None else flows
        self.totals = TotalsTally() if totals is None else totals
        self.skipped = 0  # rows that the store had let go of before they were counted
        self._next = 0

    @property
    def counted(self) -> int:
        """One past the newest row that is counted."""
        return self._next

    def behind(self, store: Store) -> int:
        """Rows that are held and not counted yet."""
        return store.end - max(self._next, store.first)

    def pull(self, store: Store, budget_rows: int = PORTION) -> bool:
        """Count up to `budget_rows` of the rows that came; True when there are more.

        Less where paths are very long; at least one row.
        """
        if store.first > self._next:
            self.skipped += store.first - self._next
            self._next = store.first
        until = min(store.end, self._next + max(budget_rows, 1))
        steps = _STEPS
        while self._next < until and steps > 0:
            # The rows may have begun to leave: a part says itself where it begins.
            part = next(store.parts(self._next, until), None)
            if part is None:
                break
            part, used = _first_of(part, steps)
            steps -= used
            self.rules.feed(part)
            self.flows.feed(part)
            self.totals.feed(part)
            self._next = part.first + len(part)
        return self._next < store.end


def _first_of(part: Part, steps: int) -> tuple[Part, int]:
    """The first rows of the part that have so many steps, at least one; and the steps."""
    begin = int(part.begins[0])
    if int(part.ends[-1]) - begin <= steps:
        return part, int(part.ends[-1]) - begin
    rows = max(1, int(np.searchsorted(part.ends, begin + steps, "right")))
    columns = {name: column[:rows] for name, column in part.columns.items()}
    some = Part(part.first, columns, part.begins[:rows], part.ends[:rows], part.steps)
    return some, int(part.ends[rows - 1]) - begin
