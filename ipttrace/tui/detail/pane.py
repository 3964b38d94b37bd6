# SPDX-License-Identifier: GPL-2.0-only
"""The detail pane: the journey, conntrack entry, headers and bytes of one row.

Draws the lines that `lines` makes of a story, again only if the story, the width
or the names have changed: callers may call `show` at any rate.  Must not feed or
change the store, and must be touched from the app's thread only.
"""

from __future__ import annotations

from typing import ClassVar, Final

from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.reactive import var
from textual.strip import Strip
from textual.timer import Timer

from ipttrace.trace.neighbours import Reach
from ipttrace.trace.store import Store
from ipttrace.trace.story import Story, story
from ipttrace.tui.cells import Cells
from ipttrace.tui.detail.lines import ROLES, KnownNames, lines, unreached
from ipttrace.tui.detail.wrap import Line
from ipttrace.tui.key_words import chosen
from ipttrace.tui.timers import once
from ipttrace.tui.widgets.strips import LineView

PREFIX: Final = "detail--"
TRIM: Final = 0.25  # s until a scroll range that is too long is shortened
NOTHING: Final = "No row is selected."
GONE: Final = "This row is no longer held."


class Detail(LineView):
    """The pane."""

    PREFIX = PREFIX
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", "up", show=False, tooltip="scroll the detail"),
        Binding("down,j", "scroll_down", "down", show=False, tooltip="scroll the detail"),
        Binding("z", "fold", "Bytes", tooltip="fold the packet's bytes, or show them"),
    ]
    DEFAULT_CSS = """
    Detail > .detail--head { color: $foreground; text-style: bold; }
    Detail > .detail--section { color: $text-primary; text-style: bold; }
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

    folded: var[bool] = var(False, init=False)  # without the packet's bytes

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._story: Story | None = None
        self._names = KnownNames()
        self._unreached: Reach | None = None
        self._missing = NOTHING
        self._lines: list[Line] = []
        self._made_for = 0  # width of the lines
        self._trim: Timer | None = None

    @property
    def seq(self) -> int | None:
        """Sequence number of the row that is shown."""
        return None if self._story is None else self._story.row.index

    @property
    def text(self) -> str:
        """All lines, including those that are scrolled out of view."""
        return "\n".join("".join(text for text, _ in line.cells).rstrip() for line in self._lines)

    def show(self, store: Store, seq: int | None, names: KnownNames | None = None) -> None:
        """Show row `seq` and its journey as far as the store has it; None: no row.

        A row that the store evicts while it is shown stays as it was.
        """
        found = None if seq is None else story(store, seq)
        if found is None and seq is not None and seq == self.seq:
            return
        names = self._names if names is None else names
        reach = None if found is None else unreached(found, names)
        known = (found, names, reach)
        if found is not None and known == (self._story, self._names, self._unreached):
            return
        same = found is not None and found.row.index == self.seq
        self._story, self._names, self._unreached = found, names, reach
        self._missing = NOTHING if seq is None else GONE
        self._show(keep=same)

    def action_fold(self) -> None:
        self.folded = not self.folded

    def watch_folded(self, folded: bool) -> None:
        self.fill()

    # Lines.

    def fill(self) -> None:
        """Make the lines for the present width; a pane that had no size has nothing to keep."""
        self._show(keep=self._fitted.width > 0)

    def _show(self, keep: bool) -> None:
        """Make the lines; `keep` the scroll position, or go to the row's traversal."""
        self._stale, self._fitted = False, self.size
        self._make()
        self._reach(len(self._lines))
        if not keep:
            self._to_shown()
        self.redraw()

    def _make(self) -> None:
        self._made_for = self.width
        if self._story is None:
            self._lines = [Line([(self._missing[: self.width], "dim")])]
        else:
            self._lines = lines(self._story, self.width, self._names, self.folded, chosen(self))

    def _reach(self, count: int) -> None:
        """Make the scroll range `count` lines long.

        Each change of the scroll bar costs a layout: the range grows at once, but
        is shortened only after a moment without a change.
        """
        if self._trim is not None:
            self._trim.stop()
            self._trim = None
        if count > self.virtual_size.height or self.width != self.virtual_size.width:
            self.virtual_size = Size(self.width, count)
        elif count < self.virtual_size.height:
            self._trim = once(self, TRIM, self._shorten)

    def _shorten(self) -> None:
        self._trim = None
        self.reach(len(self._lines))

    def _to_shown(self) -> None:
        """Scroll to the row's own traversal and as many of the lines about it as fit."""
        at = next((y for y, line in enumerate(self._lines) if line.shown), 0)
        end = at + 1
        while end < len(self._lines) and self._lines[end].belongs:
            end += 1
        line = min(at, max(0, end - self.size.height))
        if line != self.scroll_offset.y:
            self.scroll(line)

    # Drawing.

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`, in the present width; the scroll range follows later."""
        if self._made_for != self.width:
            self._make()
            self._strips.clear()
        return super().render_lines(crop)

    def line(self, at: int) -> tuple[Cells, str]:
        """Line `at`, with a background if it is the row's own traversal."""
        if at >= len(self._lines):
            return [], ""
        line = self._lines[at]
        return line.cells, "shown" if line.shown else ""
