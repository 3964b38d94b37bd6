# SPDX-License-Identifier: GPL-2.0-only
"""The flows view and its keys."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from rich.cells import cell_len

from ipttrace.tui.flows import FlowsView
from tests.data import streams
from tests.paths import LAB
from tests.tui.tallied import Screen, Tallied, line_with, lines, on_screen, picked


def lab() -> Tallied:
    tallied = Tallied()
    tallied.replay(LAB)
    return tallied


def made(count: int = 400) -> Tallied:
    tallied = Tallied()
    tallied.feed(streams.rows(count))
    return tallied


async def test_the_busiest_flow_is_first_with_its_endpoints_and_last_verdict() -> None:
    async with on_screen(FlowsView(), lab()) as (app, _):
        assert "Flows 45" in lines(app)[0]
        first = lines(app)[2]
        assert first.split()[0] == "96"
        assert "10.1.0.2:56428→10.2.0.2:5001" in first
        assert "✓ ACCEPT" in first


async def test_a_dropped_flow_shows_the_rule_that_dropped_it() -> None:
    async with on_screen(FlowsView(), lab(), (120, 60)) as (app, _):
        line = line_with(app, "filter BLOCKLIST:1")
        assert "✗" in line
        assert "10.2.0.2:4444" in line
        assert "filter FORWARD:policy" in "\n".join(lines(app))


async def test_enter_shows_the_rows_of_the_flow() -> None:
    tallied = lab()
    view = FlowsView()
    async with on_screen(view, tallied, (200, 60)) as (app, pilot):
        for flow in list(view._flows.values()):
            await pilot.press("enter")
            assert app.asked[-1].words.startswith("flow ")
            assert tallied.matching(app.asked[-1].query) == flow.rows
            await pilot.press("down")
        assert len(app.asked) == 45


async def test_s_sorts_by_drops_cost_bytes_and_time() -> None:
    view = FlowsView()
    async with on_screen(view, lab(), (120, 60)) as (app, pilot):
        for order, name in (
            ("packets", "packets"),
            ("drops", "drops"),
            ("cost", "cost_ns"),
            ("bytes", "bytes"),
            ("last", "last"),
        ):
            assert view.sort == order
            values = [getattr(flow, name) for flow in view._flows.values()]
            assert values == sorted(values, reverse=True)
            assert values
            await pilot.press("s")
        assert view.sort == "packets"
        await pilot.press("s")
        assert all(flow.drops for flow in view._flows.values())
        assert "by drops" in lines(app)[0]


async def test_the_cursor_stays_on_its_flow_while_others_overtake_it() -> None:
    tallied = made()
    view = FlowsView()
    async with on_screen(view, tallied, (80, 12)) as (app, pilot):
        for _ in range(3):
            await pilot.press("down")
        before = picked(app)
        key, line = view.picked, view._line
        # WHEN all other flows get more packets
        tallied.feed(streams.rows(4000, start=16))
        tallied.show(view)
        await pilot.pause()
        # THEN the cursor is still on the flow, further down, and on the screen
        assert view.picked == key
        assert view._line > line
        assert picked(app) in lines(app)
        assert "10.1." in before


async def test_a_cursor_that_was_not_moved_stays_at_the_top() -> None:
    tallied = made()
    view = FlowsView()
    async with on_screen(view, tallied, (80, 12)) as (app, pilot):
        tallied.feed(streams.rows(4000, start=16))
        tallied.show(view)
        await pilot.pause()
        assert view._line == 0
        assert picked(app) == lines(app)[2]


async def test_a_click_moves_the_cursor_and_a_second_one_filters() -> None:
    async with on_screen(FlowsView(), lab()) as (app, pilot):
        await pilot.click(FlowsView, offset=(10, 6))
        assert picked(app) == lines(app)[6]
        assert app.asked == []
        await pilot.click(FlowsView, offset=(10, 6), times=2)
        assert [asked.words[:5] for asked in app.asked] == ["flow "]


def title_at(app: Screen, name: str) -> tuple[int, int]:
    """Where on the screen a column's title is."""
    return lines(app)[1].index(name) + 1, 1


async def test_a_click_on_a_title_sorts_by_its_column_and_a_second_one_reverses() -> None:
    view = FlowsView()
    async with on_screen(view, lab(), (160, 60)) as (app, pilot):
        for title, name in (
            ("packets", "packets"),
            ("bytes", "bytes"),
            ("cost", "cost_ns"),
            ("ago", "last"),
            ("rows", "rows"),
        ):
            # GIVEN another order
            view.sort_by("verdict")
            await pilot.click(FlowsView, offset=title_at(app, title))
            assert f"{title}▾" in lines(app)[1]
            values = [getattr(flow, name) for flow in view._flows.values()]
            assert values == sorted(values, reverse=True)
            assert len(set(values)) > 1
            await pilot.click(FlowsView, offset=title_at(app, title))
            assert f"{title}▴" in lines(app)[1]
            assert "reversed" in lines(app)[0]
            again = [getattr(flow, name) for flow in view._flows.values()]
            assert again == sorted(values)
        # THEN texts begin at A
        await pilot.click(FlowsView, offset=title_at(app, "proto"))
        protos = [flow.proto for flow in view._flows.values()]
        assert protos == sorted(protos)
        assert protos[0] < protos[-1]
        await pilot.click(FlowsView, offset=title_at(app, "source"))
        sources = [ip_address(flow.src) for flow in view._flows.values()]
        assert [int(one) for one in sources if one.version == 4] == sorted(
            int(one) for one in sources if one.version == 4
        )
        assert app.asked == []


async def test_a_double_click_on_a_title_shows_no_rows() -> None:
    async with on_screen(FlowsView(), lab(), (160, 60)) as (app, pilot):
        await pilot.click(FlowsView, offset=title_at(app, "bytes"), times=2)
        assert app.asked == []


async def test_the_smallest_flows_are_those_of_all_and_not_of_the_largest() -> None:
    # GIVEN more flows than are listed
    tallied = made(8000)
    fewest = min(flow.rows for flow in tallied.tallies.flows.top("rows", 9999, tallied.store.names))
    view = FlowsView()
    async with on_screen(view, tallied, (120, 24)) as (_, pilot):
        view.sort_by("rows")
        await pilot.press("I")
        assert next(iter(view._flows.values())).rows == fewest


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 132, 200, 300])
async def test_lines_fit_every_width(width: int) -> None:
    async with on_screen(FlowsView(), lab(), (width, 40)) as (app, _):
        assert all(cell_len(line) == width - 1 for line in lines(app))
        if width >= 80:
            assert "BLOCKLIST:1" in "\n".join(lines(app))


async def test_several_hosts_have_a_column() -> None:
    tallied = Tallied(("alpha", "beta"))
    tallied.feed(streams.rows(40))
    tallied.feed(streams.rows(40), host=1)
    async with on_screen(FlowsView(), tallied, (200, 60)) as (app, _):
        text = "\n".join(lines(app))
        assert text.count("alpha") == text.count("beta") == 10


async def test_flows_that_are_not_listed_are_counted() -> None:
    async with on_screen(FlowsView(), made(8000), (80, 24)) as (app, pilot):
        await pilot.press("end")
        assert "more flows" in lines(app)[-1] or "more flows" in lines(app)[-2]


async def test_an_empty_view_shows_that_it_is_empty() -> None:
    async with on_screen(FlowsView(), Tallied()) as (app, pilot):
        assert "No packets yet" in lines(app)[2]
        for key in ("enter", "s", "down", "up", "end", "home"):
            await pilot.press(key)
        assert app.asked == []
        assert app.notices == ["no flow under the cursor"]
