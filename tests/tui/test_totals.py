# SPDX-License-Identifier: GPL-2.0-only
"""The totals view: counters and plots."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from rich.cells import cell_len

from ipttrace.tui.totals.view import TotalsView
from ipttrace.tui.widgets import figures
from tests.data import streams
from tests.paths import LAB
from tests.tui.tallied import Screen, Tallied, line_with, lines, on_screen

BLOCKS = set("▁▂▃▄▅▆▇█")


def lab() -> Tallied:
    tallied = Tallied()
    tallied.replay(LAB)
    return tallied


def minutes(count: int, seconds: int) -> Tallied:
    """`count` rows, spread over `seconds`."""
    entry, rule, end = streams.records(count)
    entry["time"] = np.arange(count) * (seconds * 10**9 // count)
    end["time"] = entry["time"] + end["cost"]
    tallied = Tallied()
    # A few seconds at a time, as an agent sends them.
    for at in range(0, count, 400):
        some = slice(at, at + 400)
        tallied.feed(streams.frames(entry[some], rule[some], end[some]))
    return tallied


async def test_totals_are_listed_as_numbers() -> None:
    async with on_screen(TotalsView(), lab(), (160, 50)) as (app, _):
        text = "\n".join(lines(app))
        assert "985 rows of 359 packets" in text
        assert "✓ ACCEPT 973 (99%)  ✗ DROP 12 (1%)" in text
        assert "lost 0  missed 0  the trace is complete" in text
        assert "FORWARD       filter            89      6" in text
        assert "6 FORWARD     filter" in text
        assert any("ICMPv6" in line and "54" in line for line in lines(app))


async def test_verdicts_and_cost_are_plotted_over_time() -> None:
    async with on_screen(TotalsView(), lab(), (80, 24)) as (app, _):
        drawn = lines(app)
        order = [
            next(at for at, line in enumerate(drawn) if title in line)
            for title in ("✓ ACCEPT", "✗ DROP", "cost of a row", "-15s")
        ]
        assert order == sorted(order)
        for begin, end in pairwise(order):
            assert BLOCKS & set("".join(drawn[begin + 1 : end]))
        assert "peak 456/s" in drawn[order[0]]
        assert "peak 5.0/s" in drawn[order[1]]


async def test_losses_have_a_line_and_a_plot() -> None:
    tallied = lab()
    tallied.feed(streams.books(lost=[3, 0, 4], missed=2))
    async with on_screen(TotalsView(), tallied, (160, 50)) as (app, _):
        text = "\n".join(lines(app))
        assert "lost 7  missed 2" in text
        assert "complete" not in text
        # AND losses have their own plot
        assert any(line.lstrip().startswith("lost") and "/s" in line for line in lines(app))


async def test_plots_cover_the_time_of_all_rows_up_to_ten_minutes() -> None:
    for seconds, said in ((20, "30 seconds"), (100, "2 minutes"), (900, "10 minutes")):
        async with on_screen(TotalsView(), minutes(6000, seconds), (80, 24)) as (app, _):
            assert f"last {said}" in lines(app)[0]


async def test_z_changes_the_time_that_plots_cover() -> None:
    async with on_screen(TotalsView(), lab(), (80, 24)) as (app, pilot):
        seen = []
        for _ in range(6):
            seen.append(lines(app)[0].split("last ")[1].strip())
            await pilot.press("z")
        assert seen == [
            *("15 seconds", "30 seconds", "60 seconds"),
            *("2 minutes", "5 minutes", "10 minutes"),
        ]
        assert "15 seconds" in lines(app)[0]


async def test_a_constant_rate_is_a_flat_plot() -> None:
    # GIVEN 100 rows per second for ten minutes, in fewer cells than seconds
    async with on_screen(TotalsView(), minutes(60_000, 600), (80, 24)) as (app, _):
        drawn = lines(app)
        at = next(at for at, line in enumerate(drawn) if "✓ ACCEPT" in line)
        line = drawn[at + 1].rstrip()
        full = [cell for cell in line if cell in BLOCKS]
        assert len(full) > 60
        assert full.count("█") + full.count("▇") > len(full) - 3


async def test_every_line_can_be_reached_on_a_small_screen() -> None:
    async with on_screen(TotalsView(), lab(), (80, 24)) as (app, pilot):
        assert not any("protocol" in line for line in lines(app))
        await pilot.press("end")
        await pilot.pause()
        assert any("ESP" in line for line in lines(app))
        await pilot.press("home")
        await pilot.pause()
        assert "✓ ACCEPT" in lines(app)[1]
        await pilot.press("down")
        await pilot.pause()
        assert "✓ ACCEPT" not in lines(app)[1]


async def test_new_rows_do_not_scroll_the_counters_away() -> None:
    tallied = lab()
    async with on_screen(view := TotalsView(), tallied, (80, 24)) as (app, pilot):
        await pilot.press("end")
        before = lines(app)
        tallied.feed(streams.rows(40))
        tallied.show(view)
        await pilot.pause()
        assert view.scroll_offset.y == view.max_scroll_y > 0
        assert lines(app) != before


PLACES = {"hook": 13, "table": 12, "rows": 7, "drops": 6, "p50": 6, "p99": 6}
PROTOCOLS = {"protocol": 13, "rows": 7, "drops": 7, "packets": 7, "bytes": 7}


def where(app: Screen, columns: dict[str, int], name: str) -> tuple[int, int, int]:
    """The line of the table's titles, and the first cell and the end of a column."""
    first = next(iter(columns))
    y, line = next(
        (y, line) for y, line in enumerate(lines(app)) if y and re.search(rf"\b{first}[▾▴ ]", line)
    )
    x = line.index(first) + sum(
        columns[one] + 1 for one in list(columns)[: list(columns).index(name)]
    )
    return y, x, x + columns[name]


def column(app: Screen, columns: dict[str, int], name: str) -> list[str]:
    """The texts of a table's column, without the title."""
    y, x, end = where(app, columns, name)
    texts = [line[x:end].strip() for line in lines(app)[y + 1 :]]
    first = where(app, columns, next(iter(columns)))[1]
    names = [line[first : first + 13].strip() for line in lines(app)[y + 1 :]]
    return texts[: names.index("")] if "" in names else texts


@pytest.mark.parametrize("size", [(80, 90), (160, 50)])
async def test_a_click_on_a_title_of_the_counters_sorts_and_a_second_one_reverses(
    size: tuple[int, int],
) -> None:
    tallied = lab()
    names, totals = tallied.store.names, tallied.tallies.totals
    hooks, protocols = totals.hooks(names), totals.protocols()
    async with on_screen(TotalsView(), tallied, size) as (app, pilot):
        for columns, name, values in (
            (PLACES, "rows", [figures.count(n) for n in sorted(one.rows for one in hooks)]),
            (PLACES, "p99", [figures.cost(n) for n in sorted(one.p99_ns for one in hooks)]),
            (
                PROTOCOLS,
                "bytes",
                [figures.count(n) for n in sorted(one.bytes for one in protocols)],
            ),
            (PLACES, "table", sorted((one.table for one in hooks), reverse=True)),
            (PROTOCOLS, "protocol", sorted((one.proto for one in protocols), reverse=True)),
        ):
            y, x, _ = where(app, columns, name)
            for order, said in ((values[::-1], f"s by {name} "), (values, f"{name}, reversed")):
                await pilot.click(TotalsView, offset=(x + 1, y))
                assert column(app, columns, name) == order
                assert said in lines(app)[0]
        # THEN a second click on a line does nothing
        await pilot.click(TotalsView, offset=(x + 1, y + 2), times=2)
        assert app.asked == []


async def test_s_and_i_sort_the_counters() -> None:
    async with on_screen(TotalsView(), lab(), (160, 50)) as (app, pilot):
        first = column(app, PLACES, "hook")
        for name in ("rows", "drops", "p99", "hook"):
            await pilot.press("s")
            assert f"s by {name} " in lines(app)[0]
            if name == "drops":
                assert column(app, PLACES, name)[:3] == ["6", "4", "1"]
                assert column(app, PROTOCOLS, name)[:2] == ["8", "4"]
        assert column(app, PLACES, "hook") == first
        await pilot.press("I")
        assert column(app, PLACES, "hook")[0] == first[-1]


@pytest.mark.parametrize("width", [1, 2, 3, 20, 40, 60, 80, 119, 120, 121, 200, 300])
async def test_lines_fit_every_width(width: int) -> None:
    async with on_screen(TotalsView(), lab(), (width, 50)) as (app, _):
        assert all(cell_len(line) == max(width - 1, 1) for line in lines(app))


async def test_the_number_of_rows_that_were_not_counted_is_shown() -> None:
    tallied = lab()
    tallied.tallies.skipped = 1234
    async with on_screen(TotalsView(), tallied, (160, 50)) as (app, _):
        assert line_with(app, "1,234 rows were evicted before they were counted")
    tallied.tallies.skipped = 1
    async with on_screen(TotalsView(), tallied, (160, 50)) as (app, _):
        assert line_with(app, "1 row was evicted before it was counted")


async def test_an_empty_view_shows_that_it_is_empty() -> None:
    async with on_screen(TotalsView(), Tallied()) as (app, pilot):
        assert any("No packets yet" in line for line in lines(app))
        for key in ("z", "down", "up", "end", "home"):
            await pilot.press(key)


def test_numbers_fit_their_cells() -> None:
    for number in (0, 7, 99_999, 99_999.6, 100_000, 999_949, 999_951, 10**7, 10**12, 10**20, 2**80):
        assert len(figures.count(number)) <= 6
        assert len(figures.rate(number)) <= 6
    assert figures.count(99_999) == "99,999"
    assert figures.count(123_456) == "123.5k"
    assert figures.count(1_234_567) == "1.235M"
    assert figures.rate(0.5) == "0.5"
    for part, said in ((0, "0%"), (0.001, "<1%"), (0.25, "25%"), (0.999, "99%"), (1, "100%")):
        assert figures.share(part) == said
    for seconds in (0, 5, 89, 90, 3599, 3600, 86_399, 86_400, 10**9):
        assert len(figures.span(seconds)) <= 4


def test_small_values_are_visible_in_plots_and_bars() -> None:
    assert figures.plot([0, 0.001, 1000], 2, 1000) == ["  █", " ▁█"]
    assert figures.plot([1, 2], 1, 0) == ["▁▁"]
    assert figures.bar(0, 3) == "   "
    assert figures.bar(0.0001, 3) == "▏  "
    assert figures.bar(1, 3) == "███"
