# SPDX-License-Identifier: GPL-2.0-only
"""The base of all lists: lines of cells, drawn one by one, below lines that stay on top.

Holds styles by role, drawn lines, the title bar and what a resize does.  Must
not know what it lists: subclasses return the cells.  Must be touched from the
app's thread only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from ipttrace.tui.cells import Cell, Cells

NAMESPACE_KEYS: Final = (
    Binding(
        "left_square_bracket",
        "other(-1)",
        "Namespace",
        key_display="[ ]",
        tooltip="the previous namespace",
    ),
    Binding("right_square_bracket", "other(1)", show=False, tooltip="the next namespace"),
)
"""Keys of the views that show one namespace at a time, for their `action_other`."""


def component_style(widget: Widget, name: str, under: str = "") -> Style:
    """The colour of the component class `name`, on the widget's background.

    `under`: a component class whose background is used instead.
    """
    full = widget.get_component_rich_style(name)
    ground = widget.get_component_rich_style(under) if under else widget.rich_style
    color, plain = full.color, widget.app.native_ansi_color
    if under and plain:
        # No pair of 16 colours is readable on every terminal, except its own, reversed.
        ground = widget.rich_style + Style(reverse=True, bold=ground.bold)
    if name.endswith("--drop"):
        if widget.app.no_color:
            ground += Style(reverse=not ground.reverse)  # what is red elsewhere
    elif under and (plain or (color is not None and _dim(color))):
        color = ground.color  # dim on a coloured background cannot be read
    return ground + Style(color=color, bold=full.bold or None)


def _dim(color: Color) -> bool:
    """Whether a colour is some grey, which hardly differs from a coloured background."""
    triplet = color.triplet
    return triplet is not None and max(triplet) - min(triplet) < 24


class LineView(ScrollView, can_focus=True):
    """A scrolled list of lines.

    A subclass returns a line's cells from `line`, sets `_head` to the lines that
    stay on top, and does in `fill` what new content or a new size requires.
    Each role is the component class `PREFIX + role`; the role "title" has a
    background of its own.
    """

    ALLOW_SELECT = False
    PREFIX: ClassVar[str]
    DEFAULT_CSS = """
    LineView {
        background: $background;
        color: $foreground;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._head: list[Cells] = []
        self._stale = False  # there is something new that is not on the screen
        self._fitted = Size(0, 0)  # the size that `fill` last filled
        self._strips: dict[int, Strip] = {}  # drawn lines, without those of `_head`
        self._styles_of: dict[tuple[str, str], Style] = {}  # by role and background

    # For subclasses.

    def line(self, at: int) -> tuple[Iterable[Cell], str]:
        """The cells of line `at`, and the role of the background below them ("": none).

        Lines behind the last one are empty.
        """
        raise NotImplementedError

    def fill(self) -> None:
        """Show what there is now, in the present size; sets `_stale` and `_fitted`."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Cells of a line."""
        bar: int = self.styles.scrollbar_size_vertical
        return max(1, int(self.size.width) - bar)

    @property
    def page(self) -> int:
        """Lines between those on top and the bottom."""
        return max(1, self.size.height - len(self._head))

    @property
    def visible_now(self) -> bool:
        """Whether it is displayed and has a size to fill."""
        return self.display and self.size.width > 0

    def reach(self, lines: int) -> None:
        """Make the scroll range `lines` long."""
        size = Size(self.width, len(self._head) + lines)
        if size != self.virtual_size:
            self.virtual_size = size

    def redraw(self) -> None:
        """Draw all lines again."""
        self._strips.clear()
        self.refresh()

    def scroll(self, line: float) -> None:
        """Make `line` the first one below those on top."""
        self.scroll_to(y=max(0, line), animate=False, force=True)

    # Sizes.

    def on_resize(self, event: events.Resize) -> None:
        self._catch_up()

    def on_show(self, event: events.Show) -> None:
        self._catch_up()

    def _catch_up(self) -> None:
        """Fill a new size, or show what came while the list was hidden."""
        if self.size.width and (self._stale or self._fitted != self.size):
            self.fill()

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, in the present width."""
        if self._fitted != self.size:
            # A list that is hidden and shown between two layouts gets no Resize.
            self.call_later(self._catch_up)
        return super().render_lines(crop)

    # Drawing.

    def notify_style_update(self) -> None:
        """Another theme, or the focus changed."""
        super().notify_style_update()
        self._styles_of.clear()
        self.redraw()

    def render_line(self, y: int) -> Strip:
        """Line `y` of the screen."""
        if y < len(self._head):
            return self._strip(self._head[y])
        at = y - len(self._head) + self.scroll_offset.y
        if (strip := self._strips.get(at)) is None:
            cells, under = self.line(at)
            strip = self._strips[at] = self._strip(cells, under)
        return strip

    def _strip(self, cells: Iterable[Cell], under: str = "") -> Strip:
        """A line in exactly the list's width."""
        segments: list[Segment] = []
        last = ""
        for text, last in cells:
            segments.append(Segment(text, self._style(last, under)))
        fill = self._style("title" if last == "title" else "text", under)
        return Strip(segments).adjust_cell_length(self.width, fill)

    def _style(self, role: str, under: str = "") -> Style:
        """The colours of a role, on the list's background or that of the role `under`."""
        if (style := self._styles_of.get((role, under))) is None:
            name = self.PREFIX + role
            if role == "title":
                style = self.get_component_rich_style(name)
            else:
                style = component_style(self, name, under and self.PREFIX + under)
            self._styles_of[role, under] = style
        return style
