# SPDX-License-Identifier: GPL-2.0-only
"""The totals view: verdicts, cost and losses over time as plots, and all counters.

Must not count: it shows a `TotalsTally`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Final

import numpy as np
from textual.binding import Binding, BindingType

from ipttrace.trace.arrays import Array
from ipttrace.trace.store import Names
from ipttrace.trace.tally.row_facts import OUTCOMES
from ipttrace.trace.tally.totals import TotalsTally
from ipttrace.tui.cells import Cells, beside, counted, spread, verdict_cell
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.totals.plots import axis, mean_cost, plot
from ipttrace.tui.totals.tables import TEXTS, Order, clicked, places, protocols
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import REVERSE, SortedLedger

WIDE: Final = 120  # cells; from this width on, the counters are beside the plots
SPANS: Final = (15, 30, 60, 120, 300, 600)  # s
_COUNTERS: Final = 62  # cells that the counters need
_TALLEST: Final = 12  # lines of a plot
_ORDER: Final = ("ACCEPT", "DROP", *(name for name in OUTCOMES if name not in ("ACCEPT", "DROP")))
_EMPTY: Final = "No packets yet."
_NONE: Final = "No row matches the filter."


class TotalsView(SortedLedger):
    """The view."""

    SORTS = ("hook", "rows", "drops", "p99")
    ASCENDING = TEXTS

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "z",
            "zoom",
            "Time",
            tooltip="how far back the plots go: 15 seconds to 10 minutes",
            id="zoom",
        ),
        Binding("s", "sort", "Sort", tooltip="by hook, rows, drops or cost", id="sort"),
        REVERSE,
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tally: TotalsTally | None = None
        self._store_names: Names | None = None
        self._now: int | None = None
        self._skipped = 0
        self._version: Hashable = None
        self._span: int | None = None  # s; None: as long as there are rows
        self._lines: list[Cells] = []

    def show(
        self, tally: TotalsTally, names: Names, now: int | None = None, skipped: int = 0
    ) -> None:
        """Show the tally; does nothing if nothing has changed.

        `names`: the store's; `now`: ns since the epoch by the stream's clock, so
        that the plots move on without new rows; `skipped`: rows that were not
        counted (`Tallies.skipped`).
        """
        version = (tally.version, None if now is None else now // 1_000_000_000, skipped)
        if tally is self._tally and version == self._version:
            return
        self._tally, self._store_names, self._version = tally, names, version
        self._now, self._skipped = now, skipped
        self.changed()

    @property
    def span(self) -> int:
        """Seconds that the plots cover."""
        if self._span is not None:
            return self._span
        if self._tally is None:
            return SPANS[0]
        used = np.zeros(SPANS[-1], bool)
        for series in self._tally.seconds(SPANS[-1], self._now).outcomes.values():
            used[-len(series) :] |= series > 0
        since = SPANS[-1] - int(np.argmax(used)) if used.any() else 0
        return next((span for span in SPANS if span >= since), SPANS[-1])

    def action_zoom(self) -> None:
        at = SPANS.index(self.span)
        self._span = SPANS[(at + 1) % len(SPANS)]
        self.fill()

    # Lines.

    def pickable(self, key: Hashable) -> bool:
        return False

    def refill(self) -> Sequence[Hashable]:
        tally, names = self._tally, self._store_names
        if tally is None or names is None or not tally.rows:
            self._lines = [[], [("  " + (_NONE if self.about else _EMPTY), "dim")]]
        elif self.width >= WIDE:
            left = self.width - _COUNTERS - 3
            plots = self._plots(tally, left, self.size.height - 1)
            lines = beside(plots, self._counters(tally, names), left, "  ")
            self._lines = [[(" ", "text"), *line] for line in lines]
        else:
            # All plots are visible without scrolling, and some of the counters.
            height = max(self.size.height * 3 // 5, 9)
            lines = self._plots(tally, max(self.width - 2, 1), height)
            lines += [[], *self._counters(tally, names)]
            self._lines = [[(" ", "text"), *line] for line in lines]
        return range(len(self._lines))

    def heading(self) -> list[Cells]:
        span = self.span
        by = f"  {{sort}} by {self.sort}{', reversed' if self.reversed else ''}"
        time = f"{span} seconds" if span <= 60 else f"{span // 60} minutes"
        right = with_keys(f"{by}  {{zoom}} last {time} ", chosen(self))
        return [[(spread(f" Totals{self.about}", right, self.width), "title")]]

    def cells(self, key: Hashable) -> Cells:
        return self._lines[key] if isinstance(key, int) else []

    def order_at(self, x: int, y: int) -> str | None:
        at = y - len(self._head) + self.scroll_offset.y
        return clicked(self._lines[at], x) if 0 <= at < len(self._lines) else ""

    # Plots.

    def _plots(self, tally: TotalsTally, width: int, height: int) -> list[Cells]:
        """A plot for each verdict and loss that occurred, in at most `height` lines."""
        seconds = tally.seconds(self.span + 1, self._now)
        drawn = [
            name
            for number, name in enumerate(OUTCOMES)
            if tally.outcomes[number] or name == "ACCEPT"
        ]
        if "DROP" not in drawn:
            drawn.insert(0, "DROP")
        drawn.sort(key=_ORDER.index)
        plots: list[tuple[str, str, Array, bool]] = [
            (*verdict_cell(name), seconds.outcomes[name].astype(np.float64), False)
            for name in drawn
        ]
        if tally.costs.any():
            plots.append(("cost of a row, mean", "table", mean_cost(seconds), True))
        plots += [
            (name, "warn", seconds.series[name].astype(np.float64), False)
            for name, total in (("lost", tally.lost), ("missed", tally.missed))
            if total
        ]
        each = (height - 1) // len(plots) - 1
        tall = min(max(each, 1), _TALLEST)
        lines: list[Cells] = []
        for title, role, values, is_cost in plots:
            lines += plot(title, role, values, is_cost, width, tall)
        lines.append([(axis(width, self.span), "dim")])
        return lines

    # Counters.

    def _counters(self, tally: TotalsTally, names: Names) -> list[Cells]:
        order = Order(self.sort, self.reversed, self.mark)
        return [
            *self._summary(tally),
            [],
            *places(tally, names, order),
            [],
            *protocols(tally, order),
        ]

    def _summary(self, tally: TotalsTally) -> list[Cells]:
        lines: list[Cells] = [
            [(f"{counted(tally.rows, 'row')} of {counted(tally.packets, 'packet')}", "text")],
        ]
        verdicts: Cells = []
        for name in _ORDER:
            if count := int(tally.outcomes[OUTCOMES.index(name)]):
                text, role = verdict_cell(name)
                part = figures.share(count / tally.rows)
                verdicts.append((f"{text} {count:,} ({part})  ", role))
        lines.append(verdicts)
        p50, p99 = (figures.cost(tally.quantile(share)) for share in (0.5, 0.99))
        if p50:
            lines.append([(f"cost of a row  p50 {p50}  p99 {p99}", "value")])
        else:
            lines.append([("cost of a row  unknown: traced over netlink", "dim")])
        losses: Cells = []
        if self.about:
            # What is lost has no fields that a filter could match.
            return [*lines, [("lost and missed: of all rows, see the last line", "dim")]]
        for name, number in (("lost", tally.lost), ("missed", tally.missed)):
            losses.append((f"{name} {number:,}  ", "drop" if number else "dim"))
        if not tally.lost and not tally.missed:
            losses.append(("the trace is complete", "dim"))
        lines.append(losses)
        if self._skipped:
            end = (
                "was evicted before it was"
                if self._skipped == 1
                else "were evicted before they were"
            )
            text = f"{counted(self._skipped, 'row')} {end} counted"
            lines.append([(text, "warn")])
        return lines
