# SPDX-License-Identifier: GPL-2.0-only
"""Commands to the agent: arm, disarm, the filter in the kernel."""

from __future__ import annotations

import json

import pytest

from ipttrace.cli.options import problem_of_expr
from tests.data import streams
from tests.tui.harness import Agent, live, more, until
from tests.tui.replayed import all_rows, replayed, settled, write


def received(agent: Agent) -> dict[str, object]:
    """The next command on the control line."""
    value = json.loads(agent.receive_line())
    assert isinstance(value, dict)
    return value


async def test_pressing_a_disarms_and_again_arms() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await until(pilot, lambda: "ARMED" in app.status_bar.text)
        await pilot.press("A")
        assert received(agent) == {"cmd": "disarm"}
        await until(pilot, lambda: "disarming" in app.notice_line.shown[0])
        # WHEN the agent reports it THEN the bar shows it
        agent.send(streams.books(state="disarmed"))
        await until(pilot, lambda: "DISARMED" in app.status_bar.text)
        assert len(all_rows(app)) == 40
        await pilot.press("A")
        assert received(agent) == {"cmd": "arm"}
        agent.send(streams.books(state="armed"))
        await until(pilot, lambda: " ARMED" in app.status_bar.text)
        # AND rows keep coming
        await more(agent, app, pilot, streams.rows(40, start=40), 80)


async def test_the_empty_screen_shows_that_the_trace_is_disarmed() -> None:
    async with live(streams.hello(), streams.books(state="disarmed")) as (agent, app, pilot):
        await until(pilot, lambda: "Disarmed on lab" in str(app.view.empty.content))
        await pilot.press("A")
        assert received(agent) == {"cmd": "arm"}


async def test_k_offers_the_filtered_flow_and_sends_the_expression() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        # GIVEN a flow that is filtered in the view
        app.rows.move_to(3)
        await pilot.press("f")
        await settled(app, pilot)
        # WHEN K is pressed THEN the expression is shown before it is sent
        await pilot.press("K")
        offered = app.prompt._input.value
        for part in ("10.1.0.2", "192.0.2.1", "40000", "80"):
            assert part in offered
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": offered}
        await until(pilot, lambda: "sent to the kernel" in app.notice_line.shown[0])
        # AND the bar shows the filter that the agent reports, not the one sent
        assert offered not in app.status_bar.text
        agent.send(streams.books(expr="tcp port 80"))
        await until(pilot, lambda: "traced: tcp port 80" in app.status_bar.text)


async def test_k_offers_the_kernel_filter_in_force_if_the_view_has_none() -> None:
    async with live(streams.hello(expr="icmp"), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        assert app.prompt._input.value == "icmp"
        # WHEN it is emptied THEN all packets are traced
        await pilot.press("ctrl+u", "enter")
        assert received(agent) == {"cmd": "filter", "expr": ""}
        assert "all packets" in app.notice_line.shown[0]


async def test_escape_in_the_prompt_sends_nothing() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        await write(app, pilot, "udp")
        await pilot.press("escape")
        await pilot.press("A")
        assert received(agent) == {"cmd": "disarm"}


async def test_a_bad_expression_stays_in_the_prompt_and_keys_stay_with_it() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        app.check_expr = problem_of_expr
        await pilot.press("K")
        await write(app, pilot, "tcp prt 80")
        # WHEN it is entered THEN the error is below the word
        await pilot.press("enter")
        assert app.prompt.hint.lstrip().startswith("^ ")
        assert "syntax error" in app.prompt.hint
        # AND further keys are text, not commands
        await pilot.press("enter", "v", "x")
        assert app.prompt._input.value == "tcp prt 80vx"
        assert app.shown.filters.text == ""
        # AND once it is right, it is sent
        await pilot.press("ctrl+u")
        await write(app, pilot, "tcp port 80")
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": "tcp port 80"}
        assert not app.prompt.asking


async def test_the_agents_error_is_gone_when_the_next_filter_is_sent() -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        agent.send(streams.note("error", "filter: too long for the kernel"))
        await until(pilot, lambda: "too long" in app.notice_line.shown[0])
        await pilot.press("K")
        await write(app, pilot, "udp")
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": "udp"}
        await pilot.press("escape")
        assert app.notice_line.shown == ("", False)


async def test_an_expression_that_the_agent_rejects_shows_its_error() -> None:
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
async def test_any_expression_reaches_the_agent_as_one_line(text: str) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("K")
        app.prompt._input.value = text
        await pilot.press("enter")
        assert received(agent) == {"cmd": "filter", "expr": text}


LIVE_ONLY = [("A", "only a live trace can be armed"), ("K", "no tracing is running here")]


@pytest.mark.parametrize(("key", "why"), LIVE_ONLY)
async def test_a_recording_has_nothing_to_arm(key: str, why: str) -> None:
    async with replayed() as (app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: why in app.notice_line.shown[0])
        assert not app.prompt.asking


@pytest.mark.parametrize(("key", "why"), LIVE_ONLY)
async def test_an_agent_that_has_exited_accepts_no_commands(key: str, why: str) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        agent.hang_up()
        await until(pilot, lambda: app.over)
        await pilot.press(key)
        await until(pilot, lambda: why in app.notice_line.shown[0])
        assert len(all_rows(app)) == 40


@pytest.mark.parametrize("rows", [0, 40])
async def test_a_prompt_open_when_the_agent_exits_reports_that_it_cannot_send(rows: int) -> None:
    async with live(streams.hello(), streams.rows(rows), rows=rows) as (agent, app, pilot):
        await pilot.press("K")
        await write(app, pilot, "udp")
        agent.hang_up()
        await until(pilot, lambda: app.over)
        # THEN the text in the prompt stays
        assert app.prompt._input.value == "udp"
        await pilot.press("enter")
        await until(pilot, lambda: "is not accepting commands" in app.notice_line.shown[0])
