# SPDX-License-Identifier: GPL-2.0-only
"""A list of figures that change: one line per key, and a cursor that stays on its key.

The content is replaced at most twice a second; cells are computed when a line is
drawn.  `SortedLedger` adds several orders, which titles choose, and a second click
that filters.  Must not know what it lists: subclasses do.  Must be touched from the
app's thread only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from time import monotonic
from typing import ClassVar, Final

from textual import events
from textual.binding import Binding, BindingType
from textual.timer import Timer

from ipttrace.tui.cells import Cells, cell_len
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.timers import once
from ipttrace.tui.widgets.strips import LineView

EVERY: Final = 0.5  # s between two fills while rows come
PREFIX: Final = "ledger--"
# Of the views that list in several orders.
REVERSE: Final = Binding(
    "I", "reverse", "reverse the order; a click on a title sorts by it", show=False, id="reverse"
)
_FALLING, _RISING = "▾", "▴"  # behind or before the title of the sorted column
ROLES: Final = (
    *("title", "titles", "table", "chain", "text", "dim", "never", "value", "cursor"),
    *("accept", "drop", "other", "warn", "cold", "cool", "mild", "warm", "hot"),
)


def used(widths: Mapping[str, int]) -> int:
    """The cells of a line with these columns, one cell apart."""
    return sum(width + 1 for width in widths.values()) - 1


def fitting(
    least: Mapping[str, int], steps: Sequence[tuple[str, int]], room: int
) -> dict[str, int]:
    """The widths of columns in a line of `room` cells.

    `least`: the columns that are always there; `steps`: what further room is spent on, in
    this order: another column, or a column's new width.
    """
    widths = dict(least)
    for name, width in steps:
        wider = {**widths, name: width}
        if used(wider) > room:
            break
        widths = wider
    return widths


class Ledger(LineView):
    """The list.  A subclass defines its content in `refill`, `heading` and `cells`."""

    PREFIX = PREFIX
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
        self._line = -1  # of the cursor; -1: none
        self._moved = False  # by the user; until then the cursor stays at the top
        self.about = ""  # see note_filter
        self._filled = 0.0  # when, on the monotonic clock
        self._timer: Timer | None = None

    # For subclasses.

    def refill(self) -> Sequence[Hashable]:
        """The keys of all lines in their present order, without duplicates."""
        raise NotImplementedError

    def heading(self) -> list[Cells]:
        """The lines that stay on top; their number must not change."""
        raise NotImplementedError

    def cells(self, key: Hashable) -> Cells:
        """The line of a key."""
        raise NotImplementedError

    def pickable(self, key: Hashable) -> bool:
        """Whether the cursor may be on the line of `key`."""
        return True

    def below(self, key: Hashable) -> int:
        """How many lines after the one of `key` belong to it."""
        return 0

    # Content.

    def note_filter(self, about: str) -> None:
        """`about`: which rows the figures are of, for the title, see `with_keys`; "": all rows."""
        about = with_keys(about, chosen(self))
        if about != self.about:
            self.about = about
            self.changed()

    @property
    def picked(self) -> Hashable | None:
        """The key under the cursor."""
        return self._keys[self._line] if 0 <= self._line < len(self._keys) else None

    def go_to(self, key: Hashable) -> bool:
        """Puts the cursor on the line of `key`, if there is one that can be picked."""
        at = self._at.get(key)
        if at is None or not self.pickable(key):
            return False
        self._moved = True
        self._line = at
        self._reveal()
        self.redraw()
        return True

    def changed(self) -> None:
        """Fill with new content, at once or when the last fill is half a second old."""
        self._stale = True
        if not self.visible_now or self._timer is not None:
            return
        wait = self._filled + EVERY - monotonic()
        if wait <= 0:
            self._filled = monotonic()
            self.fill()
        else:
            self._timer = once(self, wait, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._stale and self.visible_now:
            self._filled = monotonic()
            self.fill()

    def fill(self) -> None:
        """Show the present content.  The cursor stays on its key."""
        self._stale = False
        self._fitted = self.size
        top, before = self.scroll_offset.y, self._line
        key = self.picked
        self._keys = list(self.refill())
        self._at = {key: line for line, key in enumerate(self._keys)}
        self._head = self.heading()
        line = self._at.get(key, before) if self._moved and key is not None else 0
        self._line = self._near(line)
        self.reach(len(self._keys))
        if self._line < 0:
            pass  # without a cursor, the user scrolls
        elif not self._moved:
            self.scroll(0)
        elif before != self._line and 0 <= before - top < self.page:
            # The line that the user reads keeps its height on the screen.
            self.scroll(top + self._line - before)
            self._reveal()
        self.redraw()

    def _catch_up(self) -> None:
        before = self._fitted
        super()._catch_up()
        if before != self._fitted and self._moved and self._line >= 0:
            self._reveal()

    def _near(self, line: int) -> int:
        """The first pickable line from `line` on, else the last one before it; -1: none."""
        keys = self._keys
        line = max(min(line, len(keys) - 1), 0)
        for at in chain(range(line, len(keys)), range(line - 1, -1, -1)):
            if self.pickable(keys[at]):
                return at
        return -1

    def line(self, at: int) -> tuple[Cells, str]:
        """Line `at`, with the cursor's background if the cursor is on it."""
        if at >= len(self._keys):
            return [], ""
        return self.cells(self._keys[at]), "cursor" if at == self._line else ""

    # Keys and the mouse.

    def action_step(self, lines: int) -> None:
        self._to(self._line + lines, 1 if lines > 0 else -1)

    def action_page(self, pages: int) -> None:
        self._to(self._line + pages * max(1, self.page - 1), pages)

    def action_end(self, direction: int) -> None:
        if self._line < 0:
            self.scroll(0 if direction < 0 else self.max_scroll_y)
            return
        self._to(0 if direction < 0 else len(self._keys) - 1, -direction)
        self._moved = direction > 0
        last = len(self._keys) - self.page
        # Show the lines above the first and below the last pickable one too.
        if direction < 0 or self._line >= last:
            self.scroll(0 if direction < 0 else last)

    def _to(self, line: int, direction: int) -> None:
        if self._line < 0:  # no line is pickable: scroll instead
            self.scroll(self.scroll_offset.y + line - self._line)
            return
        line = min(max(line, 0), len(self._keys) - 1)
        at = line
        while 0 <= at < len(self._keys) and not self.pickable(self._keys[at]):
            at += direction
        self._moved = True
        self._line = at if 0 <= at < len(self._keys) else self._near(line)
        self._reveal()
        self.redraw()

    def _reveal(self) -> None:
        top, line = self.scroll_offset.y, self._line
        if line < top:
            # Together with the headings above it.
            while line > 0 and not self.pickable(self._keys[line - 1]):
                line -= 1
            self.scroll(max(line, self._line - self.page + 1))
            return
        # With what is below it, if there is room for both.
        last = line + min(self.below(self._keys[line]), self.page - 1)
        if last >= top + self.page:
            self.scroll(last - self.page + 1)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or offset.y < len(self._head):
            return
        line = offset.y - len(self._head) + self.scroll_offset.y
        if line < len(self._keys) and self.pickable(self._keys[line]):
            self._moved = True
            self._line = line
            self.redraw()


class SortedLedger(Ledger):
    """A ledger with several orders, whose lines can become a filter.

    The last line of its heading holds the titles, which can be clicked.
    """

    SORTS: ClassVar[Sequence[str]]  # those that `s` goes through
    ASCENDING: ClassVar[Sequence[str]] = ()  # orders that begin with the smallest value

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.sort = self.SORTS[0]  # the order of the lines
        self.reversed = False

    # For subclasses.

    def orders(self) -> Sequence[str]:
        """The order that a click on each cell of the titles asks for; "": none."""
        raise NotImplementedError

    def action_filter(self) -> None:
        """Ask for the rows of the line under the cursor."""
        raise NotImplementedError

    # Orders.

    @property
    def mark(self) -> str:
        """What marks the title of the sorted column: where its largest values are."""
        return _RISING if (self.sort in self.ASCENDING) != self.reversed else _FALLING

    def sort_by(self, order: str) -> None:
        """Sorts from the top by `order`; if it is in force already, the other way round."""
        self.reversed = order == self.sort and not self.reversed
        self.sort = order
        self._moved = False
        self.fill()

    def action_sort(self) -> None:
        """The next of the `SORTS`."""
        at = self.SORTS.index(self.sort) + 1 if self.sort in self.SORTS else 0
        self.sort_by(self.SORTS[at % len(self.SORTS)])

    def action_reverse(self) -> None:
        """The same order, the other way round."""
        self.sort_by(self.sort)

    def on_click(self, event: events.Click) -> None:
        """A click on a title sorts; a second click on a line does what Enter does."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        order = self.order_at(offset.x, offset.y)
        if order:
            self.sort_by(order)
        elif order is None and event.chain > 1 and offset.y >= len(self._head):
            self.action_filter()

    def order_at(self, x: int, y: int) -> str | None:
        """The order that a click there asks for; "": none; None: there are no titles."""
        if y != len(self._head) - 1:
            return None
        for (text, _), order in zip(self._head[-1], self.orders(), strict=False):
            if x < cell_len(text):
                return order
            x -= cell_len(text)
        return ""
