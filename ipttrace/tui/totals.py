# SPDX-License-Identifier: GPL-2.0-only
"""The totals view: verdicts, cost and losses over time as plots, and all counters.

Plots are drawn here from block characters: a plotting library takes about a
hundred times as long.  Must not count: it shows a `TotalsTally`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import ClassVar, Final

import numpy as np
from textual.binding import Binding, BindingType

from ipttrace.trace.arrays import Array
from ipttrace.trace.rules import table_name
from ipttrace.trace.store import Names
from ipttrace.trace.tally.row_facts import OUTCOMES
from ipttrace.trace.tally.totals import Seconds, TotalsTally
from ipttrace.tui.cells import Cells, beside, column, spread, verdict_cell
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import Ledger

WIDE: Final = 120  # cells; from this width on, the counters are beside the plots
SPANS: Final = (15, 30, 60, 120, 300, 600)  # s
_COUNTERS: Final = 62  # cells that the counters need
_TALLEST: Final = 12  # lines of a plot
_ORDER: Final = ("ACCEPT", "DROP", *(name for name in OUTCOMES if name not in ("ACCEPT", "DROP")))
_EMPTY: Final = "No packets yet."


class TotalsView(Ledger):
    """The view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "zoom", "Time", tooltip="how far back the plots go: 15 seconds to 10 minutes"),
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
            self._lines = [[], [("  " + _EMPTY, "dim")]]
        elif self.width >= WIDE:
            left = self.width - _COUNTERS - 3
            plots = self._plots(tally, left, self.size.height - 1)
            lines = beside(plots, self._counters(tally, names), left, "  ")
            self._lines = [[(" ", "text"), *line] for line in lines]
        else:
            # All plots are visible without scrolling, and some of the counters.
            height = max(self.size.height * 3 // 5, 9)
            lines = self._plots(tally, self.width - 2, height)
            lines += [[], *self._counters(tally, names)]
            self._lines = [[(" ", "text"), *line] for line in lines]
        return range(len(self._lines))

    def heading(self) -> list[Cells]:
        span = self.span
        right = f"  z last {f'{span} seconds' if span <= 60 else f'{span // 60} minutes'} "
        return [[(spread(" Totals", right, self.width), "title")]]

    def cells(self, key: Hashable) -> Cells:
        return self._lines[key] if isinstance(key, int) else []

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
            plots.append(("cost of a row, mean", "table", _mean_cost(seconds), True))
        plots += [
            (name, "warn", seconds.series[name].astype(np.float64), False)
            for name, total in (("lost", tally.lost), ("missed", tally.missed))
            if total
        ]
        each = (height - 1) // len(plots) - 1
        tall = min(max(each, 1), _TALLEST)
        lines: list[Cells] = []
        for title, role, values, is_cost in plots:
            lines += _plot(title, role, values, is_cost, width, tall)
        lines.append([(_axis(width, self.span), "dim")])
        return lines

    # Counters.

    def _counters(self, tally: TotalsTally, names: Names) -> list[Cells]:
        return [
            *self._summary(tally),
            [],
            *_places(tally, names),
            [],
            *_protocols(tally),
        ]

    def _summary(self, tally: TotalsTally) -> list[Cells]:
        lines: list[Cells] = [
            [(f"{tally.rows:,} rows of {tally.packets:,} packets", "text")],
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
        for name, number in (("lost", tally.lost), ("missed", tally.missed)):
            losses.append((f"{name} {number:,}  ", "drop" if number else "dim"))
        if not tally.lost and not tally.missed:
            losses.append(("the trace is complete", "dim"))
        lines.append(losses)
        if self._skipped:
            text = f"{self._skipped:,} rows were evicted before they were counted"
            lines.append([(text, "warn")])
        return lines


def _mean_cost(seconds: Seconds) -> Array:
    mean: Array = seconds.series["cost_ns"] / np.maximum(seconds.series["costed"], 1)
    return mean


def _binned(values: Array, width: int, mean_of_some: bool) -> Array:
    """`values` per second, shape (n,), as at most `width` means of several seconds each.

    `mean_of_some`: seconds with the value 0 are left out, as rows without a cost are.
    """
    if len(values) <= width:
        return values
    each = -(-len(values) // width)
    padded = np.concatenate([np.zeros(-len(values) % each), values]).reshape(-1, each)
    if not mean_of_some:
        binned: Array = padded.mean(axis=1)
        return binned
    some = np.count_nonzero(padded, axis=1)
    mean: Array = padded.sum(axis=1) / np.maximum(some, 1)
    return mean


def _plot(
    title: str, role: str, values: Array, is_cost: bool, width: int, tall: int
) -> list[Cells]:
    # The last second is incomplete; show it only if there are few others.
    values = values[:-1] if np.count_nonzero(values) > 5 else values[1:]
    most = float(values.max(initial=0.0))
    now = float(values[-1]) if len(values) else 0.0
    if is_cost:
        right = f"now {figures.cost(now) if now else '-':>6}  most {figures.cost(most)}"
    else:
        right = f"now {figures.rate(now):>6}/s  most {figures.rate(most)}/s"
    bins = _binned(values, width, is_cost)
    wide = np.repeat(bins, max(1, width // max(len(bins), 1)))[-width:]
    lines: list[Cells] = [[(spread(title, right, width)[:width], role)]]
    plot = figures.plot(wide.tolist(), tall, float(bins.max(initial=0.0)))
    return lines + [[(line.rjust(width), role)] for line in plot]


def _axis(width: int, span: int) -> str:
    """The time axis below the plots, for `span` seconds."""
    begin, half = f"-{figures.span(span)}", f"-{figures.span(span / 2)}"
    cells = min(width, max(1, width // span) * span) if span < width else width
    line = begin + half.center(cells - len(begin) - 3) + "now"
    return line.rjust(width)


def _places(tally: TotalsTally, names: Names) -> list[Cells]:
    titles = (("hook", 13, False), ("table", 12, False), ("rows", 7, True), ("drops", 6, True))
    head = [column(name, width, "titles", right) for name, width, right in titles]
    head += [column(name, 6, "titles") for name in ("p50", "p99")]
    lines: list[Cells] = [head]
    # Places with equal counts are sorted by name, since their order depends on the input.
    alike = groupby(tally.hooks(names), lambda one: (one.family, one.hook, one.rows))
    for place in (
        one for _, some in alike for one in sorted(some, key=lambda one: (one.table, one.tables))
    ):
        family = {4: "", 6: "6 ", 3: "ARP ", 7: "bridge "}.get(place.family, f"{place.family} ")
        drops = figures.count(place.drops) if place.drops else ""
        lines.append(
            [
                column(family + (place.hook or "?"), 13, "text", right=False),
                column(table_name(place.tables, place.table), 12, "text", right=False),
                column(figures.count(place.rows), 7),
                column(drops, 6, "drop"),
                column(figures.cost(place.p50_ns), 6, "dim"),
                column(figures.cost(place.p99_ns), 6, "dim"),
            ]
        )
    return lines


def _protocols(tally: TotalsTally) -> list[Cells]:
    titles = ("rows", "drops", "packets", "bytes")
    head = [column("protocol", 13, "titles", right=False)]
    head += [column(name, 7, "titles") for name in titles]
    lines: list[Cells] = [head]
    for one in tally.protocols():
        drops = figures.count(one.drops) if one.drops else ""
        lines.append(
            [
                column(one.proto or "(unreadable)", 13, "text", right=False),
                column(figures.count(one.rows), 7),
                column(drops, 7, "drop"),
                column(figures.count(one.packets), 7),
                column(figures.count(one.bytes), 7),
            ]
        )
    return lines
