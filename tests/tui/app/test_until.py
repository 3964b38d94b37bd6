# SPDX-License-Identifier: GPL-2.0-only
"""`--until`, and a screen that starts with a filter."""

from __future__ import annotations

import json

from ipttrace.trace import query
from ipttrace.tui.app import TraceApp
from tests.data import streams
from tests.tui.harness import Agent, until


async def test_the_first_row_that_until_matches_disarms_and_gets_the_cursor() -> None:
    # GIVEN a live screen that is to trace until a packet is dropped
    agent = Agent()
    app = TraceApp(agent.source, title="lab", until=query.compile("verdict=DROP"))
    async with app.run_test(size=(100, 30)) as pilot:
        # WHEN rows come, one in 28 of them a drop
        agent.send(streams.hello(), streams.rows(280))
        # THEN the agent is told to disarm
        await until(pilot, lambda: not app.rows.follow, "a stop at the row")
        assert json.loads(agent.receive_line()) == {"cmd": "disarm"}
        # AND the row is under the cursor, and a notice gives the reason
        assert app.rows.current is not None
        assert app.rows.current.verdict == "DROP"
        assert app.rows.current.index == 27
        assert "disarmed" in app.notice_line.shown[0]
        # AND rows that arrive later are kept
        assert app.store.end == 280
        app.exit_now()
        agent.hang_up()


async def test_the_screen_can_start_with_a_filter() -> None:
    agent = Agent()
    app = TraceApp(agent.source, title="lab", shown=query.compile("verdict=DROP"))
    async with app.run_test(size=(100, 30)) as pilot:
        agent.send(streams.hello(), streams.rows(280))
        await until(pilot, lambda: app.rows._end == 10, "ten drops")
        assert "verdict=DROP" in app.filter_bar.text
        await pilot.press("backspace")
        await until(pilot, lambda: app.rows._end == 280, "all rows")
        app.exit_now()
        agent.hang_up()
