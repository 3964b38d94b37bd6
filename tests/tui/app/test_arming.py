# SPDX-License-Identifier: GPL-2.0-only
"""What the screen asks of the agent: arming, disarming, a filter in the kernel."""

from __future__ import annotations

import json

import pytest

from tests.tui import streams
from tests.tui.harness import Agent, live, more, until
from tests.tui.replayed import all_rows, replayed, settled, write


def received(agent: Agent) -> dict[str, object]:
    """The next line of the control line."""
    value = json.loads(agent.receive_line())
    assert isinstance(value, dict)
    return value


async def test_a_disarms_and_arms_again() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await until(pilot, lambda: "ARMED" in app.status_bar.text)
        await pilot.press("A")
        assert received(agent) == {"cmd": "disarm"}
        await until(pilot, lambda: "disarming" in app.notice_line.shown[0])
        # WHEN the agent says that it is THEN the bar does
        agent.send(streams.books(state="disarmed"))
        await until(pilot, lambda: "DISARMED" in app.status_bar.text)
        assert len(all_rows(app)) == 40
        await pilot.press("A")
        assert received(agent) == {"cmd": "arm"}
        agent.send(streams.books(state="armed"))
        await until(pilot, lambda: " ARMED" in app.status_bar.text)
        # AND rows come on
        await more(agent, app, pilot, streams.rows(40, start=40), 80)


async def test_the_empty_screen_of_a_disarmed_trace_says_so() -> None:
    async with live(streams.hello(), streams.books(state="disarmed")) as (agent, app, pilot):
        await until(pilot, lambda: "Disarmed on lab" in str(app.view.empty.content))
        await pilot.press("A")
        assert received(agent) == {"cmd": "arm"}


async def test_k_offers_the_flow_that_is_filtered_and_sends_what_is_written() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        # GIVEN a flow that is filtered in the view
        app.rows.move_to(3)
        await pilot.press("f")
        await settled(app, pilot)
        # WHEN it is pushed into the kernel THEN the expression is there to be read first
        await pilot.press("K")
        offered = app.prompt._input.value
        for part in ("10.1.0.2", "192.0.2.1", "40000", "80"):
            assert part in offered
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": offered}
        await until(pilot, lambda: "sent to the kernel" in app.notice_line.shown[0])
        # AND the bar says what the agent says, not what was wished
        assert offered not in app.status_bar.text
        agent.send(streams.books(expr="tcp port 80"))
        await until(pilot, lambda: "traced: tcp port 80" in app.status_bar.text)


async def test_without_a_filter_in_the_view_k_offers_the_one_in_force() -> None:
    async with live(streams.hello(expr="icmp"), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        assert app.prompt._input.value == "icmp"
        # WHEN it is emptied THEN all packets are taken
        await pilot.press("ctrl+u", "enter")
        assert received(agent) == {"cmd": "filter", "expr": ""}
        assert "all packets" in app.notice_line.shown[0]


async def test_escape_sends_nothing() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        await write(app, pilot, "udp")
        await pilot.press("escape")
        await pilot.press("A")
        assert received(agent) == {"cmd": "disarm"}


async def test_what_the_kernel_does_not_take_is_told_as_the_agent_tells_it() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        await write(app, pilot, "tcp prt 80")
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": "tcp prt 80"}
        await pilot.press("escape")  # puts away what the screen said of it
        agent.send(streams.note("error", "filter: syntax error at 'prt'"))
        await until(pilot, lambda: "syntax error at 'prt'" in app.notice_line.shown[0])
        assert "traced: all packets" in app.status_bar.text


@pytest.mark.parametrize("text", ['"}\n{"cmd":"stop"}', "é漢", "\\", "x" * 3000])
async def test_whatever_is_written_is_one_line_to_the_agent(text: str) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        app.prompt._input.value = text
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": text}


@pytest.mark.parametrize("key", ["A", "K"])
async def test_a_recording_has_nothing_to_arm(key: str) -> None:
    async with replayed() as (app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: "nothing is traced here" in app.notice_line.shown[0])
        assert not app.prompt.asking


@pytest.mark.parametrize("key", ["A", "K"])
async def test_an_agent_that_is_gone_takes_no_commands(key: str) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        agent.hang_up()
        await until(pilot, lambda: app.over)
        await pilot.press(key)
        await until(pilot, lambda: "nothing is traced here" in app.notice_line.shown[0])
        assert len(all_rows(app)) == 40


@pytest.mark.parametrize("rows", [0, 40])
async def test_a_prompt_that_was_open_when_the_agent_went_says_so(rows: int) -> None:
    async with live(streams.hello(), streams.rows(rows), rows=rows) as (agent, app, pilot):
        await pilot.press("K")
        await write(app, pilot, "udp")
        agent.hang_up()
        await until(pilot, lambda: app.over)
        # THEN the words that are being written stay
        assert app.prompt._input.value == "udp"
        await pilot.press("enter")
        await until(pilot, lambda: "does not take commands now" in app.notice_line.shown[0])
