# SPDX-License-Identifier: GPL-2.0-only
"""The line that says which rows are shown: the view's filter, and how many pass it.

Text only as content: a query may quote what came over a stream.
"""

from __future__ import annotations

from ipttrace.tui.widgets.bar import Bar, Piece


def filter_pieces(
    query: str, trail: str, shown: int, rows: int, looked: float | None
) -> list[Piece]:
    """`query`: "" is all rows; `trail`: the steps that led to it; `looked`: 0 to 1 while old
    rows are still being looked at, else None."""
    if not query:
        return [
            Piece("▽ all rows", "$foreground 70%"),
            Piece("f: this flow  :: write a filter  /: search", "$foreground 60%", 3, right=True),
        ]
    count = f"{shown:,} of {rows:,}"
    return [
        Piece("▼", "bold $text-accent"),
        Piece(query, "bold $text-accent", 1, 12),
        Piece("" if looked is None else f"{looked:.0%}", "$text-warning", 2, right=True),
        Piece(trail, "$foreground 60%", 4, 8, right=True),
        Piece(count, "", right=True),
        Piece("⌫ back", "$foreground 70%", 3, right=True),
    ]


class FilterBar(Bar):
    """The view's filter."""

    DEFAULT_CSS = """
    FilterBar { height: 1; width: 100%; background: $background; color: $foreground; }
    """
