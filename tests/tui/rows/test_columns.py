# SPDX-License-Identifier: GPL-2.0-only
"""Columns, cells and bars without a screen."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from ipttrace.tui.cells import duration, fit, fit_tail
from ipttrace.tui.rows.layout import choose, titles
from ipttrace.tui.rows.row_cells import short_names
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


def widths(width: int, **more: Any) -> dict[str, int]:
    return {one.column.key: one.width for one in choose(width, **more)}


@pytest.mark.parametrize("width", range(55, 320))
def test_several_namespaces_have_a_column_at_every_width(width: int) -> None:
    placed = widths(width, netns=True)
    assert placed["netns"] >= 6
    assert sum(placed.values()) + len(placed) - 1 <= width


def test_a_name_of_a_table_is_whole_where_there_is_room() -> None:
    needs = {"table": len("inet guardian"), "endpoints": 45}
    for width in range(140, 320):
        assert widths(width, engine="netlink", needs=needs)["table"] == 13
    # AND no name takes more than its share
    assert widths(300, engine="netlink", needs={"table": 128})["table"] == 24


def test_the_rule_gets_the_room_that_nothing_else_needs() -> None:
    needs = {"table": 6, "endpoints": 40, "chain": 11}
    placed = widths(260, needs=needs)
    assert placed["endpoints"] == 40
    assert sum(placed.values()) + len(placed) - 1 == 260
    assert placed["rule"] > 60
    assert widths(260, needs={**needs, "devices": 10})["devices"] == 10
    # AND addresses that are longer get more
    assert widths(260, needs={**needs, "endpoints": 90})["endpoints"] > 45


def test_the_columns_of_the_user_come_in_their_order_and_width() -> None:
    wanted = (("verdict", None), ("time", 15), ("rule", None), ("cost", None), ("chain", 20))
    for width in range(70, 320):
        placed = choose(width, wanted=wanted)
        assert [one.column.key for one in placed] == [key for key, _ in wanted]
        assert {"time": 15, "chain": 20}.items() <= widths(width, wanted=wanted).items()
        assert sum(one.width + 1 for one in placed) - 1 == width
    # AND where they do not fit, cost goes before the rule, and the verdict never
    assert [one.column.key for one in choose(60, wanted=wanted)] == [
        *("verdict", "time", "rule", "chain"),
    ]
    assert "verdict" in widths(10, wanted=wanted)


def test_a_column_that_is_hidden_makes_room_and_the_addresses_stay_readable() -> None:
    all_but = [(key, None) for key in widths(300, hosts=True, netns=True) if key != "time"]
    placed = widths(79, netns=True, wanted=all_but)
    assert placed["endpoints"] >= 28
    assert "cost" not in placed
    assert {"netns", "table", "chain", "verdict"} <= set(placed)


def test_a_column_that_would_be_empty_is_left_out_though_the_user_chose_it() -> None:
    wanted = (("host", None), ("cost", None), ("endpoints", None))
    assert list(widths(80, wanted=wanted, engine="netlink")) == ["endpoints"]
    # AND if nothing is left, the columns are chosen as ever
    assert widths(80, wanted=wanted[:1]) == widths(80)


def test_short_names_of_namespaces_are_what_distinguishes_them() -> None:
    names = ["ipt-router", "ipt-client", "host", "cni-web-1", "cni-web-22", "a-", "a-"]
    keys = {(0, number): name for number, name in enumerate(names)}
    assert list(short_names(keys).values()) == ["router", "client", "host", "1", "22", "a-", "a-"]
