# SPDX-License-Identifier: GPL-2.0-only
"""The bar that shows the view's filter and how many rows match it.

Must not parse text as markup: a query may quote what came over a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.rows.filter_words import trail
from ipttrace.tui.widgets.bar import Bar, Piece

_HINT: Final = "{flow}: this flow  {filter}: type a filter  {search}: search"


def filter_pieces(
    words: Sequence[str],
    shown: int,
    rows: int,
    progress: float | None,
    width: int,
    evicted: int = 0,
    keymap: Mapping[str, str] | None = None,
) -> list[Piece]:
    """The bar's pieces.

    `words`: the filters in force; `shown` of `rows` match; `progress`: 0 to 1 while a
    new filter is tried on the rows held, else None; `width`: the bar's, in cells;
    `evicted`: rows that the store no longer holds; `keymap`: see `with_keys`.
    """
    keys = {} if keymap is None else keymap
    older = f"older rows are no longer held: {evicted:,}" if evicted else ""
    if not words:
        return [
            Piece("▽ all rows", "$foreground 70%"),
            Piece(older, "$text-warning", 2, right=True),
            Piece(with_keys(_HINT, keys), "$foreground 60%", 3, right=True),
        ]
    count = f"{shown:,} of {rows:,}"
    return [
        Piece("▼ " + trail(words, width - len(count) - 7), "bold $text-accent"),
        Piece("" if progress is None else f"{progress:.0%}", "$text-warning", 2, right=True),
        Piece(count, "", 1, right=True),
        Piece(older, "$text-warning", 5, right=True),
        Piece(with_keys("{back} back", keys), "$foreground 70%", 3, right=True),
        Piece(with_keys("{all_rows} all rows", keys), "$foreground 70%", 4, right=True),
    ]


class FilterBar(Bar):
    """The view's filter."""

    DEFAULT_CSS = """
    FilterBar { height: 1; width: 100%; background: $background; color: $foreground; }
    """

    def show_filter(
        self, words: Sequence[str], shown: int, rows: int, progress: float | None, evicted: int
    ) -> None:
        """See `filter_pieces`."""
        width = self.size.width
        self.show(filter_pieces(words, shown, rows, progress, width, evicted, chosen(self)))
