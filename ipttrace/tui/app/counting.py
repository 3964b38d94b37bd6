# SPDX-License-Identifier: GPL-2.0-only
"""The tallies behind the views: of all rows, and of the rows of the filter in force.

The second ones begin when a view first needs them, with the rows that are held, and
catch up a portion at a time.  Also the rows per second.  Must not touch widgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Final

from ipttrace.trace.session import Trace
from ipttrace.trace.sockets import Listing
from ipttrace.trace.store import Store
from ipttrace.trace.tally import Tallies
from ipttrace.tui.rows import ShownRows

_BUDGET: Final = 0.01  # s of catching up before keys get their turn


class Counting:
    """The tallies over one store."""

    def __init__(self, store: Store, shown: ShownRows) -> None:
        self._store = store
        self._shown = shown
        self.all = Tallies()
        self.sockets = Listing()
        self._matching: Tallies | None = None
        self._counted = ("", 0)  # the query of `_matching`, and its revision
        self._due = 1  # rows that it had to count when it began

    def pull(self) -> None:
        """Counts new rows, or some of them."""
        self.all.pull(self._store)
        if self._counted != self._wanted:
            self._matching = None
        until = monotonic() + _BUDGET
        while self._matching is not None and self._matching.pull(self._store):
            if monotonic() >= until:
                break

    def pull_sockets(self, traces: Iterable[Trace]) -> None:
        """Takes the stages of sockets that have come."""
        for trace in traces:
            self.sockets.add(trace.host, trace.sockets.take())

    @property
    def _wanted(self) -> tuple[str, int]:
        return self._shown.filters.text, self._shown.revision

    def current(self) -> Tallies:
        """The tallies of the filter in force."""
        text = self._shown.filters.text
        if not text:
            self._matching = None
            return self.all
        if self._matching is None or self._counted != self._wanted:
            self._counted = self._wanted
            self._matching = Tallies(mask=self._shown.mask(text))
            self._due = max(1, self._matching.behind(self._store))
        return self._matching

    @property
    def about(self) -> str:
        """Which rows `current` counts, for the title of a view, see `with_keys`; "" for all."""
        if self._matching is None:
            return ""
        behind = self._matching.behind(self._store)
        done = 1 - behind / max(self._due, behind)
        counted = "" if done > 0.99 else f" ({done:.0%} counted)"
        return f"  filtered{counted}, {{all_rows}}: all rows"

    def behind(self) -> bool:
        """Whether held rows are still to be counted."""
        matching = self._matching
        return bool(
            self.all.behind(self._store)
            or (matching is not None and matching.behind(self._store))
            or (matching is not None and self._counted != self._wanted)
        )


class Pace:
    """Rows per second over the last eight samples."""

    def __init__(self, every: float) -> None:
        """`every`: s between two samples."""
        self._every = every
        self._samples: deque[tuple[float, int]] = deque(maxlen=9)  # time, rows

    def per_second(self, rows: int) -> float:
        """`rows`: those that have come until now."""
        now = monotonic()
        if not self._samples or now - self._samples[-1][0] >= self._every * 0.8:
            self._samples.append((now, rows))
        since, before = self._samples[0]
        return (rows - before) / (now - since) if now - since >= self._every else 0.0
