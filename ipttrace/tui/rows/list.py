# SPDX-License-Identifier: GPL-2.0-only
"""The live list of rows: a window on a lens, drawn line by line.

Holds no rows but those it has drawn: a row is taken through the lens and put
into words only when its line is on the screen, and both are remembered by
place, which eviction never shifts.  All is known by place; a line number is
`place - base` and lives only as long as one frame.

Following, the window ends with the lens.  Paused, it keeps its rows whatever
comes or goes: the lines on the screen stay drawn even when the store has let
go of them.  Otherwise a person reads: the window grows below and the lines
stay under the eyes, until eviction reaches them.

Must not feed or change the store; must be touched from the app's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from ipttrace.trace.lens import Lens
from ipttrace.trace.row import Row
from ipttrace.tui.messages import ColumnsChanged, CursorMoved, ViewChanged
from ipttrace.tui.rows import columns
from ipttrace.tui.rows.columns import Context, Placed

# Lines remembered; more than any terminal shows at once, so that the lines of
# a paused picture are always among them.
REMEMBERED: Final = 1024
BAR: Final = 0.25  # s between two moves of the scroll bar while following
ALL_COLUMNS: Final = 260  # cells that have room for every column
ASIDE: Final = 20  # cells that a key goes aside
PREFIX: Final = "rows--"
ROLES: Final = frozenset(
    {"time", "same", "netns", "process", "device", "proto", "endpoints", "cursor", "gone"}
    | {"chain", "policy", "rulenum", "accept", "drop", "other", "cost", "table"}
    | {
        "lost",
        "rule",
        "raw",
        "mangle",
        "nat",
        "filter",
        "security",
        "rail0",
        "rail1",
        "rail2",
        "rail3",
    }
)


class Rows(ScrollView, can_focus=True):
    """The list.  `pull` takes over what the lens has by now."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "up one row", show=False),
        Binding("down,j", "step(1)", "down one row", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "up one page", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "down one page", show=False),
        Binding("home,g", "oldest", "the oldest row held", show=False),
        Binding("end,G", "newest", "the newest row, and follow", show=False),
        Binding("right", "aside(1)", "all columns, and further to the right", show=False),
        Binding("left", "aside(-1)", "back to the left", show=False),
    ]

    follow: var[bool] = var(True, init=False)
    paused: var[bool] = var(False, init=False)
    cursor: var[int] = var(-1, init=False)  # a place; -1: no row yet

    def __init__(self, lens: Lens, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lens = lens
        self._base = lens.first
        self._end = lens.end
        self._marks: frozenset[int] = frozenset()
        self._lost: Callable[[Row], bool] = lambda row: False
        self._slid = 0
        self._own_scroll = False
        self._bar_timer: Timer | None = None
        self._netns: Mapping[tuple[int, int], str] = {}
        self._hosts: tuple[str, ...] = ()
        self._engine = "kernel"
        self._rows: LRUCache[int, Row] = LRUCache(REMEMBERED)
        self._strips: LRUCache[int, Strip] = LRUCache(REMEMBERED)
        self._styles_of: dict[str, dict[str, Style]] = {}  # what is under it, role
        self._fitted = Size(0, 0)
        self._width = 80  # cells of a line, the scroll bar's left out
        self._told: tuple[bool, ...] = ()  # of what the bars show, when they last were told
        self.columns: tuple[Placed, ...] = columns.choose(80)
        self.aside: int | None = None  # cells cut off at the left; None: the columns that fit

    # What the bars show.

    @property
    def newer(self) -> int:
        """Rows that came since the picture was frozen, or that are below the last line."""
        if self.paused:
            return self._lens.end - self._end
        return max(0, self._end - self._base - self._top - self.size.height)

    @property
    def gone(self) -> int:
        """Rows of a paused picture that the store no longer holds."""
        return max(0, min(self._lens.first, self._end) - self._base) if self.paused else 0

    @property
    def slid(self) -> int:
        """Rows that slid away under the eyes since the last key."""
        return self._slid

    @property
    def _tailing(self) -> bool:
        return self.follow and not self.paused

    @property
    def _top(self) -> int:
        """The line of the window that is on the screen's first."""
        if self._tailing:
            return max(0, self._end - self._base - self.size.height)
        return self.scroll_offset.y

    @property
    def at(self) -> Row | None:
        """The row under the cursor, if it is held."""
        return None if self._end == self._base else self._row(self.cursor)

    @property
    def lens(self) -> Lens:
        """What the list looks through."""
        return self._lens

    def look_through(self, lens: Lens) -> None:
        """Another lens.  The cursor stays on its row, or goes to the next one that is left."""
        here = self._lens.seq(self.cursor)
        last = self._lens.seq(self._end - 1)
        line = self.cursor - self._base - self._top
        self._lens = lens
        self._rows.clear()
        self._strips.clear()
        self._slid = 0
        self._base, self._end = lens.first, lens.end
        if self.paused and last is not None:
            self._end = min(lens.place(last + 1), lens.end)
        self._resize_to(self._end - self._base)
        if self._tailing or self._end == self._base:
            self.cursor = self._end - 1
            self._to_tail()
        else:
            place = self._base if here is None else lens.place(here)
            self.cursor = min(max(place, self._base), self._end - 1)
            self._scroll(self.cursor - self._base - max(0, line))
        self.refresh()
        self.post_message(ViewChanged())
        self.post_message(CursorMoved())

    def ask_lost(self, lost: Callable[[Row], bool]) -> None:
        """`lost` says whether a row was accepted and yet cannot leave; asked anew from now on."""
        self._lost = lost
        self._redraw()

    def mark(self, marks: frozenset[int]) -> None:
        """Sequence numbers of rows that a person has marked."""
        self._marks = marks
        self._redraw()

    # The store moves.

    def pull(self) -> None:
        """Show what the store has by now.  At most some 20 times a second."""
        first, top = self._lens.first, self._base + self._top
        empty = self._end == self._base
        if not self.paused:
            if self._end == self._lens.end and self._base == first and not self.follow:
                return
            self._end = self._lens.end
        base = max(self._base, min(first, top) if self.paused else first)
        shift = min(base, self._end) - self._base
        self._base += shift
        height = self._end - self._base
        if self._tailing:
            self._slid = 0
            self.cursor = self._end - 1
            if self._bar_timer is None:
                self._bar_timer = self.set_timer(BAR, self._move_bar)
        else:
            if shift:
                if self._top < shift and not self.paused:
                    self._slid += shift - self._top
                # Before the height shrinks: it would clamp the position.
                self._scroll(self._top - shift)
            self._resize_to(height)
            # A recording that is gone back in ends earlier than it did.
            self.cursor = max(min(self.cursor, self._end - 1), self._base)
        if not self.paused:
            self.refresh()
        # Counts may be old for a moment; that there is something may not.
        told = empty, self.newer > 0, self.gone > 0, self._slid > 0
        if told != self._told:
            self._told = told
            self.post_message(ViewChanged())

    def name_places(
        self,
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str],
        engine: str = "kernel",
    ) -> None:
        """Names of namespaces by host and inode and of several hosts, safe for a terminal.

        `engine`: of all of them together, as `columns.choose` has it.
        """
        before = bool(self._hosts), self._engine
        self._netns, self._hosts, self._engine = netns, tuple(hosts), engine
        self._redraw()
        if (bool(hosts), engine) != before:
            self._fit()

    @property
    def nftables(self) -> bool:
        """Whether there may be rows of nftables' tables."""
        return "netlink" in self._engine

    def _choose(self, width: int) -> tuple[Placed, ...]:
        return columns.choose(width, hosts=bool(self._hosts), engine=self._engine)

    def _move_bar(self) -> None:
        """Take the scroll bar to the tail.

        While we follow a few times a second is often enough; what is drawn
        does not depend on it.
        """
        if self._bar_timer is not None:
            self._bar_timer.stop()
            self._bar_timer = None
        if self.follow:
            self._to_tail()

    def _to_tail(self) -> None:
        self._resize_to(self._end - self._base)
        self._scroll(self.max_scroll_y)

    def _resize_to(self, lines: int) -> None:
        size = Size(self._width, lines)
        if size != self.virtual_size:
            # By itself it would have all of the screen laid out again; but the bar
            # is always there, and nothing else depends on what is below the window.
            self.set_reactive(Rows.virtual_size, size)
            self._scroll_update(size)

    def _scroll(self, line: float) -> None:
        self._own_scroll = True
        try:
            self.scroll_to(y=max(0, line), animate=False, force=True)
        finally:
            self._own_scroll = False

    # A person moves.

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._own_scroll or round(old_value) == round(new_value):
            return
        # The wheel or the scroll bar.  At the very end it is the layout that
        # clamped, or somebody who wants to be there.
        if new_value < min(old_value, self.max_scroll_y) and self.follow:
            # That was meant from where the bar stood, a moment behind the tail.
            self.follow = False
            self._scroll(self.max_scroll_y + new_value - old_value)
        self._slid = 0
        if self._end > self._base:
            last = max(self._top, self._top + self.size.height - 1)
            line = min(max(self.cursor - self._base, self._top), last)
            self.cursor = min(self._base + line, self._end - 1)
        self.post_message(ViewChanged())

    def move_to(self, seq: int) -> None:
        """Put the cursor on row `seq`, or the nearest one held, and leave the tail."""
        if self._end == self._base:
            return
        self.follow = False
        self._slid = 0
        self.cursor = min(max(seq, self._base), self._end - 1)
        line = self.cursor - self._base
        if line < self._top:
            self._scroll(line)
        elif line >= self._top + self.size.height:
            self._scroll(line - self.size.height + 1)
        self.post_message(ViewChanged())

    def action_step(self, rows: int) -> None:
        if not (rows > 0 and self.cursor >= self._end - 1):
            self.move_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        self.action_step(pages * max(1, self.size.height - 1))

    def action_oldest(self) -> None:
        self.move_to(self._base)

    def action_newest(self) -> None:
        self.move_to(self._end - 1)
        self.follow = True

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is not None and (seq := self._base + self._top + offset.y) < self._end:
            self.move_to(seq)

    def action_aside(self, step: int) -> None:
        """All columns, seen through the list's width, or those that fit again."""
        most = columns.width_of(self._choose(ALL_COLUMNS)) - self._width
        if self.aside is None:
            self.aside = 0 if step > 0 and most > 0 else None
        elif step < 0 and not self.aside:
            self.aside = None
        else:
            self.aside = min(max(0, self.aside + step * ASIDE), most)
        self._fit()
        self.refresh()

    def toggle_pause(self) -> None:
        """Freeze the picture, or go on."""
        self.paused = not self.paused

    def toggle_follow(self) -> None:
        """Follow the newest row, going on if paused; or stay where we are."""
        if self.follow and not self.paused:
            self.follow = False
        else:
            self.follow = True
            self.paused = False

    def watch_paused(self, paused: bool) -> None:
        if paused and self.follow:
            self._to_tail()
        self._turn()

    def watch_follow(self, follow: bool) -> None:
        if not self.paused or follow:
            self._to_tail()
        self._turn()

    def _turn(self) -> None:
        """We follow, pause or go on: the picture may be another."""
        self.pull()
        self.refresh()
        self.post_message(ViewChanged())

    def watch_cursor(self, old: int, new: int) -> None:
        self.post_message(CursorMoved())
        if not self._tailing:  # else all lines are drawn anew anyway
            for seq in (old, new):
                self.refresh(Region(0, seq - self._base - self._top, self.size.width, 1))

    # Drawing.

    def on_resize(self, event: events.Resize) -> None:
        self._fit()
        self.refresh()

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, at the width that the list now has."""
        if self.size != self._fitted:
            # A list that is hidden and shown between two layouts gets no Resize.
            self._fit()
        # Without border and padding there is nothing that Textual would add to a
        # line, and the lines are remembered here.
        background, filters = self.background_colors[1], self.get_line_filters()
        first = self._base + self._top
        strips = []
        for y in crop.line_range:
            strip = self._line(first + y)
            for each in filters:
                strip = strip.apply_filter(each, background)
            strips.append(strip)
        if crop.column_span == (0, self.size.width):
            return strips
        return [strip.crop(*crop.column_span) for strip in strips]

    def _fit(self) -> None:
        """Take in a new size."""
        self._fitted = self.size
        # Not the scrollable region: at first the bar may not be there yet.
        self._width = max(1, self.size.width - self.styles.scrollbar_size_vertical)
        if self.aside is not None and self._width >= columns.width_of(self._choose(ALL_COLUMNS)):
            self.aside = None
        self.columns = self._choose(self._width if self.aside is None else ALL_COLUMNS)
        self._strips.clear()
        # Not now: a message posted while the screen draws stops at the screen.
        self.call_later(self._settle)

    def _settle(self) -> None:
        """Bring the rest in line with a new size."""
        self.post_message(ColumnsChanged())
        self._resize_to(self._end - self._base)
        if self.follow:
            self._to_tail()
        elif self._end > self._base:
            # A lower window must not hide the cursor.
            line = self.cursor - self._base
            if line >= self._top + self.size.height:
                self._scroll(line - self.size.height + 1)

    def notify_style_update(self) -> None:
        """Another theme, or focus came or went."""
        super().notify_style_update()
        self._styles_of.clear()
        self._redraw()

    def _redraw(self) -> None:
        self._strips.clear()
        self.refresh()

    def _style(self, role: str, under: str = "") -> Style:
        """The colours of a role on the list's background, or on the cursor's."""
        styles = self._styles_of.setdefault(under, {})
        if (style := styles.get(role)) is None:
            ground = self.get_component_rich_style(PREFIX + under) if under else self.rich_style
            if under and self.app.no_color and self.app.native_ansi_color:
                ground += Style(reverse=True)  # no background would show it
            full = self.get_component_rich_style(PREFIX + role)
            style = ground + Style(color=full.color, bold=full.bold or None)
            # What looks the same is the same, so that `_draw` sees it.
            style = next((other for other in styles.values() if other == style), style)
            styles[role] = style
        return style

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        return self._line(self._base + self._top + y)

    def _line(self, seq: int) -> Strip:
        if seq >= self._end:
            return Strip.blank(self._width, self._style("gone"))
        if seq == self.cursor:
            return self._draw(seq, "cursor") or self._held_no_more(seq, "cursor")
        if (strip := self._strips.get(seq)) is not None:
            return strip
        if (strip := self._draw(seq)) is not None:
            self._strips[seq] = strip
            return strip
        return self._held_no_more(seq)

    def _draw(self, seq: int, under: str = "") -> Strip | None:
        if (row := self._row(seq)) is None:
            return None
        context = Context(
            self._row(seq - 1),
            self._netns,
            self._hosts,
            marked=row.index in self._marks,
            lost=self._lost(row),
        )
        segments: list[Segment] = []
        held, last = "", None
        styles = self._styles_of.setdefault(under, {})
        for text, role in columns.cells(row, self.columns, context):
            if (style := styles.get(role)) is None:
                style = self._style(role, under)
            if style is last:
                held += text
                continue
            # The fewer pieces, the less there is to cut and to filter.
            if last is not None:
                segments.append(Segment(held, last))
            held, last = text, style
        segments.append(Segment(held, last))
        strip = Strip(segments, columns.width_of(self.columns))
        if self.aside is not None:
            strip = strip.crop(self.aside, self.aside + self._width)
        return strip.adjust_cell_length(self._width, self._style("gone", under))

    def _held_no_more(self, seq: int, under: str = "") -> Strip:
        text = columns.fit(f"  row {seq + 1:,} is no longer held", self._width)
        return Strip([Segment(text, self._style("gone", under))], self._width)

    def _row(self, seq: int) -> Row | None:
        """Row `seq`, taken with all others that the screen now needs."""
        if (row := self._rows.get(seq)) is not None:
            return row
        first, end = self._lens.first, self._lens.end
        if not first <= seq < end:
            return None
        top = self._base + self._top
        window = range(max(first, top - 1), min(end, top + self.size.height))
        wanted = [held for held in window if held not in self._rows]
        if seq not in window:
            wanted.append(seq)
        for place, row in zip(wanted, self._lens.rows(wanted), strict=True):
            self._rows[place] = row
        return self._rows.get(seq)
