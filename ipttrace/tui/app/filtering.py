# SPDX-License-Identifier: GPL-2.0-only
"""Commands that filter and search rows: the prompts of `:` and `/`, and ⌫.

Must not feed traces or draw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ipttrace.trace import query
from ipttrace.trace.query.complete import complete, values_of
from ipttrace.trace.selection import Mask
from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FilterRequested
from ipttrace.tui.rows.search import TextSearch
from ipttrace.tui.widgets.prompt import Ask, Hint

GATHERED: Final = 1 << 16  # newest rows whose values completion offers


class Filtering:
    """The app's commands for filter and search."""

    _completions: query.Context

    def __init__(self, app: BaseApp) -> None:
        self._app = app

    # The view's filter.

    def apply(self, message: FilterRequested) -> None:
        """Filters as a view has requested."""
        app = self._app
        filter_ = app.shown.filter_by if message.replace else app.shown.narrow
        try:
            new = filter_(message.query, message.words)
        except query.QueryError as error:
            app.show_notice(str(error), error=True)
            return
        app.show_view("trace")
        if not new:
            text = with_keys("this filter is already active: {back} goes back", chosen(app))
            app.show_notice(text)
        app.apply_filter()

    def back(self) -> None:
        """Removes the last filter."""
        if not self._app.shown.back():
            self._app.show_notice("no filter is active: all rows are shown")
        self._app.apply_filter()

    def clear(self) -> None:
        """Shows all rows."""
        if not self._app.shown.clear():
            self._app.show_notice("no filter is active: all rows are shown")
        self._app.apply_filter()

    def ask_filter(self) -> None:
        """Opens the prompt for a filter."""
        self._gather_values()
        shown = self._app.shown
        self._app.prompt.ask(
            Ask(
                "filter",
                self._filter_by,
                initial=shown.filters.text,
                placeholder="verdict=DROP and src in 10.0.0.0/8   (empty: all rows)",
                check=shown.check,
                complete=self._complete,
            )
        )

    def _filter_by(self, text: str) -> None:
        self._app.shown.filter_by(text)
        self._app.show_view("trace")
        self._app.apply_filter()

    # Completion.

    def _gather_values(self) -> None:
        """Collects the values in the newest rows."""
        store = self._app.store
        values = values_of(store.parts(store.end - GATHERED), store.names)
        self._completions = replace(self._app.query_context(), values=values)

    def _complete(self, text: str, cursor: int) -> list[Hint]:
        return [
            Hint(one.text, one.start, one.end, one.help)
            for one in complete(text, cursor, self._completions)
        ]

    # The search.

    def ask_search(self) -> None:
        """Opens the prompt for a search."""
        self._gather_values()
        self._app.prompt.ask(
            Ask(
                "search",
                self._search,
                placeholder="text in a row, or a query: dport=443   (n: the next, N: the previous)",
                complete=self._complete,
            )
        )

    def _search(self, text: str) -> None:
        app, shown = self._app, self._app.shown
        shown.search_text = text
        if not text:
            shown.search = None
            return
        try:
            found = self._search_mask(text)
        except query.QueryError as error:
            app.show_notice(f"cannot search for this: {error.message}", error=True)
            return
        shown.search = found
        app.show_view("trace")
        # While following, no row comes after the cursor: search backwards from the end.
        if app.rows.follow:
            app.view.find(found, -1, shown.selection.end)
        else:
            app.view.find(found)

    def _search_mask(self, text: str) -> Mask:
        """Rows that match a query, else that show the text.  Raises QueryError."""
        app = self._app
        if app.shown.check(text) is None:
            return app.shown.mask(text)
        return TextSearch(text, app.store, app.shown_names, app.query_context).mask
