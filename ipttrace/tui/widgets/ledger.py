# SPDX-License-Identifier: GPL-2.0-only
"""A list of figures that change: lines by key, a cursor that stays on its key.

What there is may be another twice a second; lines are put into words only when
they are drawn.  The first lines, the heading, stay in place.  Must not know
what it lists: that is for those who inherit.  Must be touched from the app's
thread alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain
from time import monotonic
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from ipttrace.tui.cells import fit

EVERY: Final = 0.5  # s between two pictures of what runs
PREFIX: Final = "ledger--"
ROLES: Final = (
    *("title", "titles", "table", "chain", "text", "dim", "never", "value", "cursor"),
    *("accept", "drop", "other", "warn", "cold", "cool", "mild", "warm", "hot"),
)

Cells = list[tuple[str, str]]
"""Texts and their roles, from left to right."""


class Ledger(ScrollView, can_focus=True):
    """The list.  Who inherits says what it holds, in `refill`, `heading` and `cells`."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "up one line", show=False),
        Binding("down,j", "step(1)", "down one line", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "up one page", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "down one page", show=False),
        Binding("home,g", "end(-1)", "to the top", show=False),
        Binding("end,G", "end(1)", "to the end", show=False),
    ]
    DEFAULT_CSS = """
    Ledger {
        background: $background;
        color: $foreground;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
    }
    Ledger > .ledger--title { background: $panel; color: $foreground; text-style: bold; }
    Ledger:focus > .ledger--title { background: $primary 30%; }
    Ledger > .ledger--titles { color: $foreground 60%; text-style: bold; }
    Ledger > .ledger--cursor { background: $primary 30%; color: $foreground; text-style: bold; }
    Ledger > .ledger--table { color: $text-primary; text-style: bold; }
    Ledger > .ledger--chain { color: $text-accent; text-style: bold; }
    Ledger > .ledger--text { color: $foreground; }
    Ledger > .ledger--value { color: $foreground 85%; }
    Ledger > .ledger--dim { color: $foreground 65%; }
    Ledger > .ledger--never { color: $foreground 50%; }
    Ledger > .ledger--accept { color: $text-success; }
    Ledger > .ledger--drop { color: $text-error; text-style: bold; }
    Ledger > .ledger--other { color: $text-warning; text-style: bold; }
    Ledger > .ledger--warn { color: $text-warning; text-style: bold; }
    Ledger > .ledger--cold { color: $primary 50%; }
    Ledger > .ledger--cool { color: $primary; }
    Ledger > .ledger--mild { color: $warning 60%; }
    Ledger > .ledger--warm { color: $warning; }
    Ledger > .ledger--hot { color: $error; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._keys: Sequence[Hashable] = ()
        self._at: dict[Hashable, int] = {}
        self._line = -1  # of the cursor; -1: nowhere
        self._moved = False  # by a person: else the cursor stays on top
        self._stale = False
        self._filled = 0.0
        self._timer: Timer | None = None
        self._fitted = Size(0, 0)
        self._head: list[Cells] = []
        self._styles_of: dict[tuple[str, bool], Style] = {}

    # For those who inherit.

    def refill(self) -> Sequence[Hashable]:
        """The keys of all lines by now, each once."""
        raise NotImplementedError

    def heading(self) -> list[Cells]:
        """The lines that stay on top; always as many."""
        raise NotImplementedError

    def cells(self, key: Hashable) -> Cells:
        """The line of a key."""
        raise NotImplementedError

    def pickable(self, key: Hashable) -> bool:
        """Whether the cursor may stand on it."""
        return True

    # What is shown.

    @property
    def picked(self) -> Hashable | None:
        """The key that the cursor is on."""
        return self._keys[self._line] if 0 <= self._line < len(self._keys) else None

    @property
    def width(self) -> int:
        """Cells of a line."""
        bar: int = self.styles.scrollbar_size_vertical
        return max(1, int(self.size.width) - bar)

    @property
    def page(self) -> int:
        """Lines between heading and bottom."""
        return max(1, self.size.height - len(self._head))

    def changed(self) -> None:
        """Something is new; shown at once, but at most twice a second."""
        self._stale = True
        if not self.display or not self.size.width or self._timer is not None:
            return
        wait = self._filled + EVERY - monotonic()
        if wait <= 0:
            self._filled = monotonic()
            self.fill()
        else:
            self._timer = self.set_timer(wait, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._stale and self.display and self.size.width:
            self._filled = monotonic()
            self.fill()

    def fill(self, follow: bool = True) -> None:
        """Show what there is now.  `follow`: the cursor stays on its key, not on its line."""
        self._stale = False
        self._fitted = self.size
        top, before = round(self.scroll_offset.y), self._line
        key = self.picked
        self._keys = list(self.refill())
        self._at = {key: line for line, key in enumerate(self._keys)}
        self._head = self.heading()
        line = self._at.get(key, before) if follow and self._moved and key is not None else 0
        self._line = self._near(line)
        self._resize()
        if not self._moved:
            self._scroll(0)
        elif before != self._line and 0 <= before - top < self.page:
            # What a person reads stays where it is.
            self._scroll(top + self._line - before)
            self._reveal()
        self.refresh()

    def _resize(self) -> None:
        size = Size(self.width, len(self._head) + len(self._keys))
        if size != self.virtual_size:
            self.virtual_size = size

    def _near(self, line: int) -> int:
        """The first line from there on that the cursor may stand on, or the last before."""
        keys = self._keys
        line = min(max(line, 0), len(keys) - 1)
        for at in chain(range(line, len(keys)), range(line - 1, -1, -1)):
            if self.pickable(keys[at]):
                return at
        return -1

    # A person moves.

    def action_step(self, lines: int) -> None:
        self._to(self._line + lines, 1 if lines > 0 else -1)

    def action_page(self, pages: int) -> None:
        self._to(self._line + pages * max(1, self.page - 1), pages)

    def action_end(self, way: int) -> None:
        if self._line < 0:
            self._scroll(0 if way < 0 else self.max_scroll_y)
            return
        self._to(0 if way < 0 else len(self._keys) - 1, -way)
        self._moved = way > 0
        last = len(self._keys) - self.page
        # With the lines before and behind it on which the cursor cannot stand.
        if way < 0 or self._line >= last:
            self._scroll(0 if way < 0 else last)

    def _to(self, line: int, way: int) -> None:
        if self._line < 0:  # nothing to stand on: then the page moves
            self._scroll(round(self.scroll_offset.y) + line - self._line)
            return
        line = min(max(line, 0), len(self._keys) - 1)
        at = line
        while 0 <= at < len(self._keys) and not self.pickable(self._keys[at]):
            at += way
        self._moved = True
        self._line = at if 0 <= at < len(self._keys) else self._near(line)
        self._reveal()
        self.refresh()

    def _reveal(self) -> None:
        top, line = round(self.scroll_offset.y), self._line
        if line < top:
            # With the headings that it stands under.
            while line > 0 and not self.pickable(self._keys[line - 1]):
                line -= 1
            self._scroll(max(line, self._line - self.page + 1))
        elif line >= top + self.page:
            self._scroll(line - self.page + 1)

    def _scroll(self, line: float) -> None:
        self.scroll_to(y=max(0, line), animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or offset.y < len(self._head):
            return
        line = offset.y - len(self._head) + round(self.scroll_offset.y)
        if line < len(self._keys) and self.pickable(self._keys[line]):
            self._moved = True
            self._line = line
            self.refresh()

    # Drawing.

    def on_resize(self, event: events.Resize) -> None:
        self._catch_up()

    def on_show(self, event: events.Show) -> None:
        self._catch_up()

    def _catch_up(self) -> None:
        """Take in a new size, and what came while the list was not to be seen."""
        if not self.size.width or not (self._stale or self._fitted != self.size):
            return
        self.fill()
        if self._moved and self._line >= 0:
            self._reveal()

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, at the width that the list now has."""
        if self.size != self._fitted:
            # A list that is hidden and shown between two layouts gets no Resize.
            self.call_later(self._catch_up)
        return super().render_lines(crop)

    def notify_style_update(self) -> None:
        """Another theme, or focus came or went."""
        super().notify_style_update()
        self._styles_of.clear()
        self.refresh()

    def _style(self, role: str, picked: bool) -> Style:
        if (style := self._styles_of.get((role, picked))) is None:
            full = self.get_component_rich_style(PREFIX + role)
            if role == "title":
                style = full
            else:
                under = self.get_component_rich_style(PREFIX + "cursor") if picked else None
                ground = self.rich_style if under is None else under
                if picked and self.app.no_color and self.app.native_ansi_color:
                    ground += Style(reverse=True)  # no background would show it
                style = ground + Style(color=full.color, bold=full.bold or None)
            self._styles_of[role, picked] = style
        return style

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        if y < len(self._head):
            return self._strip(self._head[y], False)
        line = y - len(self._head) + round(self.scroll_offset.y)
        if line >= len(self._keys):
            return Strip.blank(self.width, self._style("text", False))
        return self._strip(self.cells(self._keys[line]), line == self._line)

    def _strip(self, cells: Cells, picked: bool) -> Strip:
        segments = [Segment(text, self._style(role, picked)) for text, role in cells]
        last = cells[-1][1] if cells and cells[-1][1] == "title" else "text"
        return Strip(segments).adjust_cell_length(self.width, self._style(last, picked))


def column(text: str, width: int, role: str = "value", right: bool = True) -> tuple[str, str]:
    """A cell of exactly `width` and the gap after it."""
    return fit(text, width, right) + " ", role
