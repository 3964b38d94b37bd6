# SPDX-License-Identifier: GPL-2.0-only
"""The line of column titles above the list.  Must not know rows."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.widget import Widget

from ipttrace.tui.messages import TitleClicked
from ipttrace.tui.rows import layout
from ipttrace.tui.rows.layout import Placed


class Titles(Widget):
    """The titles of the columns that `show` was given."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: tuple[Placed, ...] = layout.choose(80)
        self._left = 0

    def show(self, columns: tuple[Placed, ...], left: int = 0) -> None:
        """Shows the titles of `columns`, without the first `left` cells."""
        if (columns, left) != (self._columns, self._left):
            self._columns, self._left = columns, left
            self.refresh()

    def render(self) -> Content:
        return Content(layout.titles(self._columns)[self._left :])

    def on_click(self, event: events.Click) -> None:
        x = event.x + self._left
        for placed in self._columns:
            if x <= placed.width:
                self.post_message(TitleClicked(placed.column.key))
                return
            x -= placed.width + layout.GAP
