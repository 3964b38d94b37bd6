# SPDX-License-Identifier: GPL-2.0-only
"""The line of column titles above the list.  Draws what it is told; knows no rows."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from ipttrace.tui.rows import columns
from ipttrace.tui.rows.columns import Placed


class Titles(Widget):
    """Column titles; `show` gives the columns."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: tuple[Placed, ...] = columns.choose(80)
        self._aside = 0

    def show(self, chosen: tuple[Placed, ...], aside: int = 0) -> None:
        """Show the titles of `chosen`, without the first `aside` cells."""
        if (chosen, aside) != (self._columns, self._aside):
            self._columns, self._aside = chosen, aside
            self.refresh()

    def render(self) -> Content:
        return Content(columns.titles(self._columns)[self._aside :])
