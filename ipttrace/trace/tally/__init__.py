# SPDX-License-Identifier: GPL-2.0-only
"""Counts over the rows of a store, updated as rows arrive: rules, flows, totals.

``tallies.pull(store)`` counts the rows that were added since the last pull; they stay
counted when the store drops them.  Tallies with a mask count only the rows that it
matches.  Runs in one thread.

- __init__.py: all tallies over one store
- rules.py: hits, verdicts and costs of each rule
- listing.py: a namespace's rules with those figures, for the rules view
- flows.py: packets, drops and costs of each flow
- drops.py: drops by reason and place, and by rule
- totals.py: verdicts by second, hooks and tables, protocols, losses
- matching.py: the rows of a part that a mask matches, as a part
- row_facts.py: what each tally reads from the rows' columns
- slots.py: a bounded table of counters by key
- clock.py: rings of counters by time
- costs.py: histograms of costs and their quantiles

Must not do I/O, and must not loop over rows in Python.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from ipttrace.trace.store import Part, Store
from ipttrace.trace.tally.drops import DropsTally
from ipttrace.trace.tally.flows import FlowsTally
from ipttrace.trace.tally.matching import Mask, Matching
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.trace.tally.totals import TotalsTally

# Rows counted in one pull: about 3 ms, which fits into a frame of the screen.
PORTION: Final = 8_000
# Steps of paths counted in one pull: a row may have thousands.
_STEPS: Final = 20_000


class Tallies:
    """All tallies over one store."""

    def __init__(
        self,
        rules: RulesTally | None = None,
        flows: FlowsTally | None = None,
        totals: TotalsTally | None = None,
        mask: Mask | None = None,
        drops: DropsTally | None = None,
    ) -> None:
        """`mask`: counts only rows that it matches; None: all."""
        self.rules = RulesTally() if rules is None else rules
        self.flows = FlowsTally() if flows is None else flows
        self.totals = TotalsTally() if totals is None else totals
        self.drops = DropsTally() if drops is None else drops
        self._matching = None if mask is None else Matching(mask)
        self.skipped = 0  # rows that the store dropped before they were counted
        self._next = 0

    @property
    def counted(self) -> int:
        """One past the newest row counted."""
        return self._next

    def behind(self, store: Store) -> int:
        """Number of rows that the store holds and that are not counted yet."""
        return store.end - max(self._next, store.first)

    def pull(self, store: Store, budget_rows: int = PORTION) -> bool:
        """Count up to `budget_rows` new rows; True if more are waiting.

        Fewer if paths are very long, but at least one.
        """
        if store.first > self._next:
            self.skipped += store.first - self._next
            self._next = store.first
        until = min(store.end, self._next + max(budget_rows, 1))
        steps = _STEPS
        while self._next < until and steps > 0:
            # The store may drop rows meanwhile: the part's own `first` counts.
            part = next(store.parts(self._next, until), None)
            if part is None:
                break
            part, used = _first_of(part, steps)
            steps -= used
            self._next = part.first + len(part)
            some = part if self._matching is None else self._matching.of(part)
            self.rules.feed(some)
            self.flows.feed(some)
            self.totals.feed(some)
            self.drops.feed(some)
            if some is not part:
                # Rates and plots go on to the newest row, whether it matches or not.
                self.rules.note_newest(part)
                self.totals.note_newest(part)
                self.drops.note_newest(part)
        return self._next < store.end


def _first_of(part: Part, steps: int) -> tuple[Part, int]:
    """The part's first rows with at most `steps` steps, at least one row; and their steps."""
    begin = int(part.begins[0])
    if int(part.ends[-1]) - begin <= steps:
        return part, int(part.ends[-1]) - begin
    rows = max(1, int(np.searchsorted(part.ends, begin + steps, "right")))
    columns = {name: column[:rows] for name, column in part.columns.items()}
    some = replace(part, columns=columns, begins=part.begins[:rows], ends=part.ends[:rows])
    return some, int(part.ends[rows - 1]) - begin
