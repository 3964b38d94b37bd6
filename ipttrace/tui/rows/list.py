# SPDX-License-Identifier: GPL-2.0-only
"""The list of rows: a window on a selection, its cursor and its keys.

Lines are known by position, which eviction never changes; a line number is
`position - base` and is valid within one frame only.  `row_strips` draws the lines.

- Following, the window ends with the selection.
- Paused, it keeps its rows whatever comes or is evicted: lines on the screen stay
  drawn even if the store no longer holds their rows.
- Otherwise the user has scrolled: the window grows at the end and the lines stay in
  place until eviction reaches them.

Must not feed or change the store; must be called from the app's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.reactive import var
from textual.strip import Strip
from textual.timer import Timer

from ipttrace.trace.row import Row
from ipttrace.trace.selection import Selection
from ipttrace.trace.store import traces_nftables
from ipttrace.tui.messages import ColumnsChanged, CursorMoved, ViewChanged
from ipttrace.tui.rows.layout import Placed, Wanted
from ipttrace.tui.rows.own_scroll import OwnScroll
from ipttrace.tui.rows.row_strips import PREFIX, ROLES, RowStrips
from ipttrace.tui.timers import once

BAR: Final = 0.25  # s between two moves of the scroll bar while following


class Rows(OwnScroll, can_focus=True):
    """The list.  `pull` shows what the selection has by now."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "up one row", show=False),
        Binding("down,j", "step(1)", "down one row", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "up one page", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "down one page", show=False),
        Binding("home,g", "oldest", "the oldest row held", show=False),
        Binding("end,G", "newest", "the newest row, and follow", show=False),
        Binding("right", "aside(1)", "all columns, then further to the right", show=False),
        Binding("left", "aside(-1)", "back to the left", show=False),
    ]

    follow: var[bool] = var(True, init=False)
    paused: var[bool] = var(False, init=False)
    cursor: var[int] = var(-1, init=False)  # a position; -1: no row yet

    def __init__(self, selection: Selection, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.selection = selection  # the rows that the list shows
        self._strips = RowStrips(self, selection, self._window)
        self._base = selection.first  # positions of the window's rows
        self._end = selection.end
        self.evicted = 0  # rows evicted from the top of the screen since the last key
        self._bar_timer: Timer | None = None
        self._fitted = Size(0, 0)
        self._reported: tuple[bool, ...] = ()  # of what the bars show

    # What other widgets show of it.

    @property
    def columns(self) -> tuple[Placed, ...]:
        """The columns, from left to right."""
        return self._strips.columns

    @property
    def left(self) -> int | None:
        """Cells cut off at the left while all columns are shown; None: the columns that fit."""
        return self._strips.left

    @property
    def width(self) -> int:
        """Cells of a line, without the scroll bar."""
        return self._strips.width

    def rule_room(self, width: int) -> int:
        """Cells of the longest rule text seen that a list of `width` cells would show."""
        return self._strips.rule_room(width - 1)  # the scroll bar

    @property
    def newer(self) -> int:
        """Rows that came since the picture was frozen, or that are below the last line."""
        if self.paused:
            return self.selection.end - self._end
        return max(0, self._end - self._base - self._top - self.size.height)

    @property
    def gone(self) -> int:
        """Rows of a paused picture that the store no longer holds."""
        return max(0, min(self.selection.first, self._end) - self._base) if self.paused else 0

    @property
    def _tailing(self) -> bool:
        return self.follow and not self.paused

    @property
    def _top(self) -> int:
        """The window's line that is first on the screen."""
        if self._tailing:
            return max(0, self._end - self._base - self.size.height)
        return self.scroll_offset.y

    def _window(self) -> tuple[int, int]:
        """Positions of the first line on the screen and of one past the last."""
        top = self._base + self._top
        return top, top + self.size.height

    @property
    def current(self) -> Row | None:
        """The row under the cursor, if it is held."""
        return None if self._end == self._base else self._strips.row(self.cursor)

    def show(self, selection: Selection) -> None:
        """Shows another selection.  The cursor stays on its row, else goes to the next one."""
        here = self.selection.seq(self.cursor)
        last = self.selection.seq(self._end - 1)
        line = self.cursor - self._base - self._top
        self.selection = selection
        self._strips.select(selection)
        self.evicted = 0
        self._base, self._end = selection.first, selection.end
        if self.paused and last is not None:
            self._end = min(selection.position(last + 1), selection.end)
        self._resize_to(self._end - self._base)
        if self._tailing or self._end == self._base:
            self.cursor = self._end - 1
            self._to_tail()
        else:
            position = self._base if here is None else selection.position(here)
            self.cursor = min(max(position, self._base), self._end - 1)
            self._scroll(self.cursor - self._base - max(0, line))
        self.refresh()
        self.post_message(ViewChanged())
        self.post_message(CursorMoved())

    def show_unresolved(self, unresolved: Callable[[Row], str]) -> None:
        """Redraws all rows.  `unresolved`: see `row_cells.Context`."""
        self._strips.unresolved = unresolved
        self._redraw()

    def show_marks(self, marks: frozenset[int]) -> None:
        """`marks`: sequence numbers of the rows that the user has marked."""
        self._strips.marks = marks
        self._redraw()

    # The store grows and evicts.

    def pull(self) -> None:
        """Shows what the selection has by now.  Called at most 20 times a second."""
        first, top = self.selection.first, self._base + self._top
        empty = self._end == self._base
        if not self.paused:
            if self._end == self.selection.end and self._base == first and not self.follow:
                return
            self._end = self.selection.end
        base = max(self._base, min(first, top) if self.paused else first)
        shift = min(base, self._end) - self._base
        self._base += shift
        height = self._end - self._base
        if self._tailing:
            self.evicted = 0
            self.cursor = self._end - 1
            if self._bar_timer is None:
                self._bar_timer = once(self, BAR, self._move_bar)
        else:
            if shift:
                if self._top < shift and not self.paused:
                    self.evicted += shift - self._top
                # Before the height shrinks: it would clamp the position.
                self._scroll(self._top - shift)
            self._resize_to(height)
            # Not behind the end, which playing back moves back.
            self.cursor = max(min(self.cursor, self._end - 1), self._base)
        if not self.paused:
            self.refresh()
        # The bars may show old counts for a moment, but not zero for something.
        reported = empty, self.newer > 0, self.gone > 0, self.evicted > 0
        if reported != self._reported:
            self._reported = reported
            self.post_message(ViewChanged())

    def show_names(
        self,
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str],
        engine: str = "kernel",
    ) -> None:
        """Names, safe for a terminal, of namespaces by host and inode, and of several hosts.

        `engine`: as `layout.choose` has it.
        """
        strips = self._strips
        before = bool(strips.hosts), strips.engine
        strips.name(netns)
        strips.hosts, strips.engine = tuple(hosts), engine
        self._redraw()
        if (bool(hosts), engine) != before:
            self._fit()

    def show_columns(self, wanted: Wanted) -> None:
        """Shows these columns, of those that `layout.choose` has room for; (): its own choice."""
        self._strips.wanted = wanted
        self._fit()

    @property
    def nftables(self) -> bool:
        """Whether there may be rows of nftables' tables."""
        return traces_nftables(self._strips.engine)

    def _move_bar(self) -> None:
        """Moves the scroll bar to the tail.

        While following, a few times a second is enough: the lines drawn do not depend
        on it.
        """
        if self._bar_timer is not None:
            self._bar_timer.stop()
            self._bar_timer = None
        if self.follow:
            self._to_tail()

    def _to_tail(self) -> None:
        self._resize_to(self._end - self._base)
        self._scroll(self.max_scroll_y)

    # The user moves.

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._own_scroll or round(old_value) == round(new_value):
            return
        # The wheel or the scroll bar, except at the very end: there either the layout
        # has clamped the position, or the user has scrolled to the tail.
        if new_value < min(old_value, self.max_scroll_y) and self.follow:
            # The bar that the user moved was a moment behind the tail.
            self.follow = False
            self._scroll(self.max_scroll_y + new_value - old_value)
        self.evicted = 0
        if self._end > self._base:
            last = max(self._top, self._top + self.size.height - 1)
            line = min(max(self.cursor - self._base, self._top), last)
            self.cursor = min(self._base + line, self._end - 1)
        self.post_message(ViewChanged())

    def move_to(self, position: int) -> None:
        """Moves the cursor to `position`, else to the nearest row held; stops following."""
        if self._end == self._base:
            return
        self.follow = False
        self.evicted = 0
        self.cursor = min(max(position, self._base), self._end - 1)
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
        if offset is not None and (at := self._base + self._top + offset.y) < self._end:
            self.move_to(at)

    def action_aside(self, step: int) -> None:
        """Shows all columns and moves along them, or the columns that fit again."""
        self._strips.move_sideways(step)
        self._fit()

    def toggle_pause(self) -> None:
        """Freezes the picture, or goes on."""
        self.paused = not self.paused

    def toggle_follow(self) -> None:
        """Follows the newest row, going on if paused; or stops following."""
        if self.follow and not self.paused:
            self.follow = False
        else:
            self.follow = True
            self.paused = False

    def watch_paused(self, paused: bool) -> None:
        if paused and self.follow:
            self._to_tail()
        self._mode_changed()

    def watch_follow(self, follow: bool) -> None:
        if not self.paused or follow:
            self._to_tail()
        self._mode_changed()

    def _mode_changed(self) -> None:
        """Following or paused has changed, and with it perhaps the rows on the screen."""
        self.pull()
        self.refresh()
        self.post_message(ViewChanged())

    def watch_cursor(self, old: int, new: int) -> None:
        self.post_message(CursorMoved())
        if not self._tailing:  # else `pull` refreshes all lines
            for position in (old, new):
                self.refresh(Region(0, position - self._base - self._top, self.size.width, 1))

    # Drawing.

    def on_resize(self, event: events.Resize) -> None:
        self._fit()

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, at the list's current width."""
        if self.size != self._fitted:
            # A list that was hidden and shown between two layouts got no Resize.
            self._fit()
        # Not Textual's own: it adds nothing to a line, and `row_strips` remembers the lines.
        background, filters = self.background_colors[1], self.get_line_filters()
        first = self._base + self._top
        strips = []
        for y in crop.line_range:
            strip = self._line(first + y)
            for each in filters:
                strip = strip.apply_filter(each, background)
            strips.append(strip)
        if self._strips.outgrown:
            self.call_later(self._fit)
        if crop.column_span == (0, self.size.width):
            return strips
        return [strip.crop(*crop.column_span) for strip in strips]

    def _fit(self) -> None:
        """Adapts columns and width to a new size, or to rows that need others."""
        self._fitted = self.size
        # Not the scrollable region: at first the bar may not be there yet.
        self._strips.fit(max(1, self.size.width - self.styles.scrollbar_size_vertical))
        self.refresh()
        self.call_later(self._settle)  # a message posted while the screen draws goes nowhere

    def _settle(self) -> None:
        """Adapts the scroll position to a new size."""
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
        """The theme has changed, or focus has come or gone."""
        super().notify_style_update()
        self._strips.restyle()
        self.refresh()

    def _redraw(self) -> None:
        self._strips.clear()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        return self._line(self._base + self._top + y)

    def _line(self, position: int) -> Strip:
        if position >= self._end:
            return self._strips.blank()
        return self._strips.strip(position, position == self.cursor)
