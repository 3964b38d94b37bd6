# SPDX-License-Identifier: GPL-2.0-only
"""Rows as strips: takes rows from a selection, draws them, and remembers both.

Rows and strips are remembered by position, which eviction never changes.  A row is
fetched and drawn only when its line is on the screen.  Must not scroll, move the
cursor or post messages: `list` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rich.segment import Segment
from rich.style import Style
from textual.cache import LRUCache
from textual.strip import Strip
from textual.widget import Widget

from ipttrace.trace.row import Row
from ipttrace.trace.rules import table_name
from ipttrace.trace.selection import Selection
from ipttrace.trace.story import endpoint
from ipttrace.tui.cells import cell_len, fit
from ipttrace.tui.rows import layout
from ipttrace.tui.rows.layout import Placed
from ipttrace.tui.rows.row_cells import NETNS_LOOKS, Context, decided_by, short_names, text_of
from ipttrace.tui.widgets.strips import component_style

# Lines remembered; more than any terminal shows at once, so that the lines of
# a paused picture are always among them.
REMEMBERED: Final = 1024
ALL_COLUMNS: Final = 260  # cells that have room for every column
SIDEWAYS: Final = 20  # cells that ← and → move
PREFIX: Final = "rows--"
ROLES: Final = frozenset(
    (
        *("accept", "chain", "cost", "cursor", "device", "drop", "endpoints", "filter", "gone"),
        *("lost", "mangle", "nat", "other", "policy", "process", "proto", "raw", "rule"),
        *(f"netns{number}" for number in range(NETNS_LOOKS)),
        *("rail0", "rail1", "rail2", "rail3", "rulenum", "same", "security", "table", "time"),
    )
)


class RowStrips:
    """Draws the rows of a selection for the list `widget`, whose styles it uses."""

    def __init__(
        self, widget: Widget, selection: Selection, window: Callable[[], tuple[int, int]]
    ) -> None:
        """`window`: positions of the first line on the screen and of one past the last."""
        self._widget = widget
        self._window = window
        self.selection = selection
        self.columns: tuple[Placed, ...] = layout.choose(80)
        self.left: int | None = None  # cells cut off at the left; None: the columns that fit
        self.width = 80  # cells of a line, without the scroll bar
        self.netns: Mapping[tuple[int, int], str] = {}  # see `Context`
        self.short_netns: Mapping[tuple[int, int], str] = {}
        self.hosts: tuple[str, ...] = ()
        self.engine = "kernel"  # of all hosts, as `layout.choose` has it
        self.wanted: layout.Wanted = ()  # the user's columns
        self.marks: frozenset[int] = frozenset()  # sequence numbers of marked rows
        self.unresolved: Callable[[Row], str] = lambda row: ""
        self._ranks: dict[tuple[int, int], int] = {}  # of named namespaces, by host and inode
        self._in_view: dict[int, set[int]] = {}  # namespaces of the selection, by host
        self._needs: dict[str, int] = {}  # see `layout.choose`
        self.rule_need = 0  # cells of the longest rule text seen
        self.outgrown = False  # rows were seen that need other columns: call `fit`
        self._rows: LRUCache[int, Row] = LRUCache(REMEMBERED)
        self._strips: LRUCache[int, Strip] = LRUCache(REMEMBERED)
        self._styles: dict[str, dict[str, Style]] = {}  # by background role, then by role

    def select(self, selection: Selection) -> None:
        """Draws the rows of this selection from now on."""
        self.selection = selection
        self._rows.clear()
        self._strips.clear()
        self._in_view.clear()
        self._needs.clear()
        self.rule_need = 0
        self.outgrown = True

    @property
    def several_netns(self) -> bool:
        """Whether rows of more than one namespace of a host were seen in the selection."""
        return any(len(inodes) > 1 for inodes in self._in_view.values())

    def rule_room(self, width: int) -> int:
        """See `Rows.rule_room`; `width`: of a line."""
        placed = {one.column.key: one.width for one in self._choose(width)}
        return min(self.rule_need, placed.get("rule", 0))

    def _note(self, row: Row) -> None:
        """Notes what the columns depend on: lengths only grow, so that columns seldom move."""
        inodes = self._in_view.setdefault(row.host, set())
        if row.netns not in inodes and len(inodes) < 2:
            inodes.add(row.netns)
            self.outgrown |= len(inodes) == 2
        ends = endpoint(row.src, row.sport), endpoint(row.dst, row.dport)
        for name, length in (
            ("table", cell_len(table_name(row.tables, row.table))),
            ("chain", cell_len(decided_by(row))),
            ("devices", cell_len(row.in_ or "") + cell_len(row.out or "") + 1),
            ("endpoints", len(ends[0]) + len(ends[1]) + 3),
        ):
            if length > self._needs.get(name, 0):
                self._needs[name] = length
                self.outgrown = True
        text = text_of(row, self.netns.get((row.host, row.netns)))
        self.rule_need = max(self.rule_need, cell_len(text))

    def name(self, netns: Mapping[tuple[int, int], str]) -> None:
        """Uses these names of namespaces; `clear` must follow."""
        self.netns, self.short_netns = netns, short_names(netns)
        self._ranks = {key: rank for rank, key in enumerate(sorted(netns))}

    def clear(self) -> None:
        """Forgets all strips, but not the rows."""
        self._strips.clear()

    def restyle(self) -> None:
        """Forgets all strips and styles."""
        self._styles.clear()
        self._strips.clear()

    def fit(self, width: int) -> None:
        """Chooses the columns for lines of `width` cells."""
        self.width = width
        self.outgrown = False
        if self.left is not None and width >= self._all_columns:
            self.left = None
        self.columns = self._choose(width if self.left is None else ALL_COLUMNS)
        self._strips.clear()

    def move_sideways(self, step: int) -> None:
        """Cuts off more (1) or less (-1) at the left; `fit` must follow.

        The first step shows all columns, the last one back those that fit.
        """
        most = self._all_columns - self.width
        if self.left is None:
            self.left = 0 if step > 0 and most > 0 else None
        elif step < 0 and not self.left:
            self.left = None
        else:
            self.left = min(max(0, self.left + step * SIDEWAYS), most)

    @property
    def _all_columns(self) -> int:
        return layout.width_of(self._choose(ALL_COLUMNS))

    def _choose(self, width: int) -> tuple[Placed, ...]:
        return layout.choose(
            width,
            hosts=bool(self.hosts),
            engine=self.engine,
            netns=self.several_netns,
            needs=self._needs,
            wanted=self.wanted,
        )

    def row(self, position: int) -> Row | None:
        """The row at `position`; None if it is not held.

        Fetches all rows of the window that are not yet remembered along with it.
        """
        if (row := self._rows.get(position)) is not None:
            return row
        first, end = self.selection.first, self.selection.end
        if not first <= position < end:
            return None
        top, bottom = self._window()
        window = range(max(first, top - 1), min(end, bottom))
        wanted = [held for held in window if held not in self._rows]
        if position not in window:
            wanted.append(position)
        for at, row in zip(wanted, self.selection.rows(wanted), strict=True):
            self._rows[at] = row
            self._note(row)
        return self._rows.get(position)

    def blank(self) -> Strip:
        """A line below the last row."""
        return Strip.blank(self.width, self._style("gone"))

    def strip(self, position: int, cursor: bool) -> Strip:
        """The line at `position`; `cursor`: whether the cursor is on it."""
        if cursor:
            return self._draw(position, "cursor") or self._evicted(position, "cursor")
        if (strip := self._strips.get(position)) is not None:
            return strip
        if (strip := self._draw(position)) is not None:
            self._strips[position] = strip
            return strip
        return self._evicted(position)

    def _draw(self, position: int, under: str = "") -> Strip | None:
        if (row := self.row(position)) is None:
            return None
        context = Context(
            self.row(position - 1),
            self.netns,
            self.hosts,
            marked=row.index in self.marks,
            unresolved=self.unresolved(row),
            short_netns=self.short_netns,
            netns_rank=self._ranks.get((row.host, row.netns), row.netns),
        )
        segments: list[Segment] = []
        held, last = "", None
        styles = self._styles.setdefault(under, {})
        for text, role in layout.cells(row, self.columns, context):
            if (style := styles.get(role)) is None:
                style = self._style(role, under)
            if style is last:
                held += text
                continue
            # Fewer segments are cheaper to crop and filter.
            if last is not None:
                segments.append(Segment(held, last))
            held, last = text, style
        segments.append(Segment(held, last))
        strip = Strip(segments, layout.width_of(self.columns))
        if self.left is not None:
            strip = strip.crop(self.left, self.left + self.width)
        return strip.adjust_cell_length(self.width, self._style("gone", under))

    def _evicted(self, position: int, under: str = "") -> Strip:
        text = fit(f"  row {position + 1:,} is no longer held", self.width)
        return Strip([Segment(text, self._style("gone", under))], self.width)

    def _style(self, role: str, under: str = "") -> Style:
        """The colours of a role on the list's background, or on the cursor's."""
        styles = self._styles.setdefault(under, {})
        if (style := styles.get(role)) is None:
            style = component_style(self._widget, PREFIX + role, under and PREFIX + under)
            # Equal styles become one object, which `_draw` compares by identity.
            style = next((other for other in styles.values() if other == style), style)
            styles[role] = style
        return style
