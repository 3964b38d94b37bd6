# SPDX-License-Identifier: GPL-2.0-only
"""The bar that shows the view's filter and how many rows match it.

Must not parse text as markup: a query may quote what came over a stream.
"""

from __future__ import annotations

from ipttrace.tui.widgets.bar import Bar, Piece


def filter_pieces(
    query: str, trail: str, shown: int, rows: int, progress: float | None
) -> list[Piece]:
    """The bar's pieces.

    `query`: "" for all rows; `trail`: the names of the filters in force; `shown` of `rows`
    match; `progress`: 0 to 1 while a new filter is tried on the rows held, else None.
    """
    if not query:
        return [
            Piece("▽ all rows", "$foreground 70%"),
            Piece("f: this flow  :: write a filter  /: search", "$foreground 60%", 3, right=True),
        ]
    count = f"{shown:,} of {rows:,}"
    return [
        Piece("▼", "bold $text-accent"),
        Piece(query, "bold $text-accent", 1, 12),
        Piece("" if progress is None else f"{progress:.0%}", "$text-warning", 2, right=True),
        Piece(trail, "$foreground 60%", 4, 8, right=True),
        Piece(count, "", right=True),
        Piece("⌫ back", "$foreground 70%", 3, right=True),
    ]


class FilterBar(Bar):
    """The view's filter."""

    DEFAULT_CSS = """
    FilterBar { height: 1; width: 100%; background: $background; color: $foreground; }
    """
