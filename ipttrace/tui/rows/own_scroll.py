# SPDX-License-Identifier: GPL-2.0-only
"""A scrolled widget that distinguishes its own scrolling from the user's.

Must not know what is scrolled.
"""

from __future__ import annotations

from textual.geometry import Size
from textual.scroll_view import ScrollView


class OwnScroll(ScrollView):
    """The widget.  While it scrolls itself, `_own_scroll` is true."""

    _own_scroll = False

    @property
    def width(self) -> int:
        """Cells of a line, without the scroll bar."""
        raise NotImplementedError

    def _resize_to(self, lines: int) -> None:
        size = Size(self.width, lines)
        if size != self.virtual_size:
            # Not by assignment, which would lay out the screen: the bar is always there,
            # and nothing else depends on the window's height.
            self.set_reactive(OwnScroll.virtual_size, size)
            self._scroll_update(size)

    def _scroll(self, line: float) -> None:
        self._own_scroll = True
        try:
            self.scroll_to(y=max(0, line), animate=False, force=True)
        finally:
            self._own_scroll = False
