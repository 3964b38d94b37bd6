# SPDX-License-Identifier: GPL-2.0-only
"""Columns, cells and bars without a screen."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from ipttrace.tui.cells import duration, fit, fit_tail
from ipttrace.tui.rows.layout import choose, titles
from ipttrace.tui.widgets.bar import Piece, fit_pieces


@pytest.mark.parametrize("width", range(40, 320))
def test_the_columns_fill_the_width(width: int) -> None:
    columns = choose(width)
    keys = [placed.column.key for placed in columns]
    for key in ("rail", "endpoints", "chain", "rulenum", "verdict"):
        assert key in keys
    line = titles(columns)
    assert cell_len(line.rstrip()) <= width
    assert sum(placed.width + 1 for placed in columns) - 1 <= width


def test_more_width_never_removes_a_column() -> None:
    before: set[str] = set()
    for width in range(40, 320):
        now = {placed.column.key for placed in choose(width)}
        assert before <= now
        before = now
    assert len(before) == 13


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0ns"),
        (999, "999ns"),
        (1000, "1.00µs"),
        (9_994, "9.99µs"),
        (9_996, "10.0µs"),
        (99_960, "100µs"),
        (999_400, "999µs"),
        (999_600, "1.00ms"),
        (45_600_000, "45.6ms"),
        (999_600_000, "1.0s"),
        (12_000_000_000, "12.0s"),
        (2**64, ">2h"),
    ],
)
def test_a_cost_needs_at_most_six_cells(ns: int | None, text: str) -> None:
    assert duration(ns) == text
    assert cell_len(duration(ns)) <= 6


TEXTS = ["", "abc", "a" * 50, "漢字漢字漢字", "e" + "\u0301" * 500, "漢a字"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", range(12))
def test_a_cell_has_its_exact_width(text: str, width: int) -> None:
    assert cell_len(fit(text, width)) == width
    assert cell_len(fit(text, width, right=True)) == width
    assert cell_len(fit_tail(text, width)) <= width
    assert len(fit(text, width)) <= 5 * width + 1


def test_an_address_keeps_its_end() -> None:
    assert fit_tail("2001:db8::1:2:3", 8) == "…::1:2:3"
    assert fit_tail("10.0.0.1", 8) == "10.0.0.1"


def test_a_narrow_bar_drops_the_least_important_pieces() -> None:
    pieces = [Piece("state"), Piece("filter: something long", "", 3, 10), Piece("rate", "", 4)]
    assert [piece.text for piece in fit_pieces(pieces, 80)] == [piece.text for piece in pieces]
    assert [piece.text for piece in fit_pieces(pieces, 24)] == ["state", "filter: someth…"]
    assert [piece.text for piece in fit_pieces(pieces, 12)] == ["state"]
    assert [piece.text for piece in fit_pieces(pieces, 2)] == ["state"]


@pytest.mark.parametrize("width", range(40, 320))
def test_columns_that_netlink_leaves_empty_are_not_shown(width: int) -> None:
    placed = {one.column.key: one.width for one in choose(width, engine="netlink")}
    assert not {"process", "cost"} & placed.keys()
    assert sum(placed.values()) + len(placed) - 1 <= width
    # AND from some width a table's family has room: "ip filter"
    assert width < 83 or placed["table"] >= 9
    both = {one.column.key for one in choose(width, engine="kernel+netlink")}
    assert width < 100 or "cost" in both
