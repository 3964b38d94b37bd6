# SPDX-License-Identifier: GPL-2.0-only
"""An input field that accepts printable text only and shows long text in several lines.

Pasted text may hold terminal escapes, which Textual's own field would pass on to
the terminal.  Textual's field scrolls sideways, so that of a long filter either the
beginning or the end, where the cursor is, cannot be seen.  Must not know what the field
is for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from rich.text import Text
from textual import events
from textual.geometry import Offset, Size
from textual.strip import Strip
from textual.widgets import Input

from ipttrace.tui.cells import cell_len

MOST_LINES: Final = 5
_SHARE: Final = 4  # at most one in so many lines of the screen


class Entry(Input):
    """The field.  Of pasted text it accepts the printable characters of the first line.

    Where its `height` is auto, it grows with its text up to MOST_LINES, or a quarter of
    the screen; of a longer text, it shows the lines around the cursor.
    """

    def __init__(
        self, *args: Any, accept: Callable[[], Awaitable[None]] | None = None, **more: Any
    ) -> None:
        """`accept`: called by Enter at once; without it, Enter posts `Input.Submitted`."""
        super().__init__(*args, **more)
        self._accept = accept
        self._pointed = 0  # the line under the mouse

    # Text in lines.

    @property
    def content_width(self) -> int:
        """Replaces Textual's: what is wider than the field does not scroll."""
        return 1

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self._lines(width)

    @property
    def lines(self) -> int:
        """The lines that are shown."""
        return self._lines(self.content_size.width)

    def _lines(self, width: int) -> int:
        """The lines that are shown in `width` cells.  The cursor may stand behind the text."""
        most = max(1, min(MOST_LINES, self.app.size.height // _SHARE))
        return min(cell_len(self.value) // max(width, 1) + 1, most)

    def place_of(self, index: int) -> Offset:
        """Where character `index` is shown: cells from the left, lines from the first shown."""
        width = max(self.content_size.width, 1)
        cursor = cell_len(self.value[: self.cursor_position]) // width
        first = max(0, cursor + 1 - self._lines(width))
        line, column = divmod(cell_len(self.value[:index]), width)
        return Offset(column, line - first)

    @property
    def cursor_screen_offset(self) -> Offset:
        return self.content_region.offset + self.place_of(self.cursor_position)

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if not self.value or width < 1:
            return super().render_line(y)
        text = Text(self.value, no_wrap=True, overflow="ignore", end="")
        text.pad_right(1)
        if self.has_focus:
            if not self.selection.is_empty:
                selected = self.get_component_rich_style("input--selection")
                text.stylize(selected, *sorted(self.selection))
            if self._cursor_visible:
                at = self.cursor_position
                text.stylize(self.get_component_rich_style("input--cursor"), at, at + 1)
        begin = (y - self.place_of(0).y) * width
        strip = Strip(text.render(self.app.console)).crop(begin, begin + width)
        return strip.adjust_cell_length(width).apply_style(self.rich_style)

    # Textual's handlers, which run after these, know one line only.

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._pointed = event.get_content_offset_capture(self).y

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self._pointed = event.get_content_offset_capture(self).y

    def _cell_offset_to_index(self, offset: int) -> int:
        line = self._pointed - self.place_of(0).y
        return super()._cell_offset_to_index(offset + line * self.content_size.width)

    # Printable text.

    def add(self, text: str) -> None:
        """Insert `text` as if it had been typed."""
        self.replace(text, *self.selection)

    async def action_submit(self) -> None:
        if self._accept is None:
            await super().action_submit()
        else:
            await self._accept()

    def paste(self, text: str) -> None:
        """Insert the printable characters of the first line of `text`."""
        line = next(iter(text.splitlines()), "").replace("\t", " ")
        self.add("".join(filter(str.isprintable, line)))

    def on_paste(self, event: events.Paste) -> None:
        """Replaces Textual's handler."""
        event.prevent_default().stop()
        self.paste(event.text)
