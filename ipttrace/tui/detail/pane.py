# SPDX-License-Identifier: GPL-2.0-only
"""The detail pane: the journey, conntrack, headers and bytes of one row.

Draws what `detail_lines` makes of a story.  Who shows it says which row, as
often as it likes: nothing is drawn anew unless the story, the width or the
names have changed.  Must not feed or change the store, and must be touched
from the app's thread alone.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from ipttrace.trace.store import Store
from ipttrace.trace.story import Story, story
from ipttrace.tui.detail.lines import ROLES, Where, lines
from ipttrace.tui.detail.wrap import Line

PREFIX: Final = "detail--"
TRIM: Final = 0.25  # s after which a scroll bar that is too long is cut
NOTHING: Final = "No row is selected."
GONE: Final = "This row is no longer held."


class Detail(ScrollView, can_focus=True):
    """The pane.  `show` says which row."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", "up", show=False, tooltip="scroll the detail"),
        Binding("down,j", "scroll_down", "down", show=False, tooltip="scroll the detail"),
        Binding("z", "fold", "Bytes", tooltip="fold the packet's bytes, or show them"),
    ]
    DEFAULT_CSS = """
    Detail {
        background: $background;
        color: $foreground;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
    }
    Detail > .detail--head { color: $foreground; text-style: bold; }
    Detail > .detail--title { color: $text-primary; text-style: bold; }
    Detail > .detail--name { color: $foreground 60%; }
    Detail > .detail--value { color: $foreground; }
    Detail > .detail--dim { color: $foreground 60%; }
    Detail > .detail--chain { color: $foreground; }
    Detail > .detail--rule { color: $foreground 80%; }
    Detail > .detail--changed { color: $text-warning; text-style: bold; }
    Detail > .detail--bad { color: $text-error; text-style: bold; }
    Detail > .detail--shown { background: $primary 30%; }
    Detail > .detail--accept { color: $text-success; }
    Detail > .detail--drop { color: $text-error; text-style: bold; }
    Detail > .detail--other { color: $text-warning; text-style: bold; }
    Detail > .detail--hex { color: $foreground; }
    Detail > .detail--text { color: $text-secondary; }
    """

    folded: var[bool] = var(False, init=False)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._story: Story | None = None
        self._where = Where()
        self._missing = NOTHING
        self._lines: list[Line] = []
        self._made_for = 0  # width of the lines
        self._strips: dict[int, Strip] = {}
        self._styles_of: dict[tuple[str, bool], Style] = {}
        self._trim: Timer | None = None

    @property
    def seq(self) -> int | None:
        """The row that is shown."""
        return None if self._story is None else self._story.row.index

    @property
    def text(self) -> str:
        """All lines, those out of sight too."""
        return "\n".join("".join(text for text, _ in line.pieces).rstrip() for line in self._lines)

    def show(self, store: Store, seq: int | None, where: Where | None = None) -> None:
        """Show row `seq` with its journey as far as it is known by now.

        A row that the store lets go of while it is shown stays as it was.
        """
        told = None if seq is None else story(store, seq)
        if told is None and seq is not None and seq == self.seq:
            return
        where = self._where if where is None else where
        if told is not None and told == self._story and where == self._where:
            return
        same = told is not None and told.row.index == self.seq
        self._story, self._where = told, where
        self._missing = NOTHING if seq is None else GONE
        self._make(keep=same)

    def action_fold(self) -> None:
        self.folded = not self.folded

    def watch_folded(self, folded: bool) -> None:
        self._make(keep=True)

    # Lines.

    def _make(self, keep: bool) -> None:
        """Put the story into lines; `keep` the place, or go to the row's traversal."""
        self._made_for = self._width
        if self._story is None:
            self._lines = [Line(((self._missing[: self._width], "dim"),))]
        else:
            self._lines = lines(self._story, self._width, self._where, self.folded)
        self._strips.clear()
        self._reach(len(self._lines))
        if not keep:
            self._to_shown()
        self.refresh()

    @property
    def _width(self) -> int:
        return max(1, self.size.width - self.styles.scrollbar_size_vertical)

    def _reach(self, count: int) -> None:
        """Room for so many lines.

        Each change of the scroll bar costs a layout: it grows at once, but is
        cut only when the lines have stood still for a moment.
        """
        if self._trim is not None:
            self._trim.stop()
            self._trim = None
        if count > self.virtual_size.height or self._width != self.virtual_size.width:
            self.virtual_size = Size(self._width, count)
        elif count < self.virtual_size.height:
            self._trim = self.set_timer(TRIM, self._cut)

    def _cut(self) -> None:
        self._trim = None
        self.virtual_size = Size(self._width, len(self._lines))

    def _to_shown(self) -> None:
        """Bring the row's own traversal, and as much of what is said of it, into view."""
        at = next((y for y, line in enumerate(self._lines) if line.shown), 0)
        end = at + 1
        while end < len(self._lines) and self._lines[end].belongs:
            end += 1
        line = min(at, max(0, end - self.size.height))
        if line != self.scroll_offset.y:
            self.scroll_to(y=line, animate=False, force=True)

    # Drawing.

    def on_resize(self, event: events.Resize) -> None:
        if self._made_for != self._width:
            self._make(keep=self._made_for > 1)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, at the width that the pane now has."""
        if self._made_for != self._width:
            # Hidden and shown between two layouts: no Resize came.
            self._lines_anew()
        return super().render_lines(crop)

    def _lines_anew(self) -> None:
        """New lines at once; the scroll bar follows when the drawing is over."""
        # Lines of a pane that had no size yet had no place to keep.
        keep, self._made_for = self._made_for > 1, self._width
        if self._story is not None:
            self._lines = lines(self._story, self._width, self._where, self.folded)
        self._strips.clear()
        self.call_later(self._make, keep)

    def notify_style_update(self) -> None:
        """Another theme, or focus came or went."""
        super().notify_style_update()
        self._styles_of.clear()
        self._strips.clear()
        self.refresh()

    def _style(self, role: str, shown: bool) -> Style:
        if (style := self._styles_of.get((role, shown))) is None:
            ground = self.rich_style
            if shown:
                ground = self.get_component_rich_style(PREFIX + "shown")
            full = self.get_component_rich_style(PREFIX + role)
            style = ground + Style(color=full.color, bold=full.bold or None)
            self._styles_of[role, shown] = style
        return style

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        at = self.scroll_offset.y + y
        if (strip := self._strips.get(at)) is not None:
            return strip
        if at >= len(self._lines):
            return Strip.blank(self._width, self._style("value", False))
        line = self._lines[at]
        strip = Strip(
            [Segment(text, self._style(role, line.shown)) for text, role in line.pieces]
        ).adjust_cell_length(self._width, self._style("value", line.shown))
        self._strips[at] = strip
        return strip
