# SPDX-License-Identifier: GPL-2.0-only
"""Connections, their stages and processes, as a user finds them on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipttrace.tui.app import TraceApp
from tests.data import streams
from tests.data.stages import stream
from tests.tui.harness import live, screen_text, until
from tests.tui.replayed import LAB, SIZES, replayed, settled


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "sockets.iptr"
    path.write_bytes(stream())
    return path


def text(app: TraceApp) -> str:
    return "\n".join(screen_text(app))


@pytest.mark.parametrize("size", SIZES)
async def test_connections_are_listed_with_their_stages_and_what_they_mean(
    recording: Path, size: tuple[int, int]
) -> None:
    async with replayed(recording, size) as (app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "4 connections, 1 listener" in text(app), "the connections")
        lines = screen_text(app)
        # THEN the newest is first: a SYN that was dropped, three times, and why
        at = next(at for at, line in enumerate(lines) if "10.1.0.2:40009" in line)
        assert "SYN dropped" in lines[at]
        assert "4/3" in lines[at]
        assert "nginx 4711" in lines[at]
        assert "SYN dropped ×3 in 2.0s" in lines[at + 1]
        assert "the accept queue is full (4 of 3)" in lines[at + 2]
        # AND one that went well has all its stages, its container, and whom the client called
        at = next(at for at, line in enumerate(lines) if "10.1.0.2:40004" in line)
        assert "first read" in lines[at]
        assert "1.30ms" in lines[at]
        assert "SYN +31.0µs SYN-ACK +1.22ms ACK +50.0µs accept +600µs read" in lines[at + 1]
        assert "called as 192.0.2.7:8080; nginx (pid 4711) in docker 5e1f" in lines[at + 2]
        # AND the client's end of one that nobody answers says so
        assert "curl 815" in text(app)
        assert "no process listens there" in text(app)


async def test_enter_shows_the_packets_of_a_connection_before_and_after_dnat(
    recording: Path,
) -> None:
    async with replayed(recording, (120, 40)) as (app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "4 connections" in text(app), "the connections")
        # WHEN the user asks for the rows of the connection that went well
        await pilot.press("down", "down", "down", "enter")
        await settled(app, pilot)
        # THEN both are there, to the address that was called and to the container's
        rows = app.store.rows(range(app.store.first, app.store.end))
        assert [row.dst for row in rows] == ["192.0.2.7", "172.17.0.2"]
        assert app.shown.selection.end - app.shown.selection.first == 2
        assert "flow 10.1.0.2:40004 ⇄ 172.17.0.2:80" in text(app)
        # AND the list of connections says that it is of all
        await pilot.press("7")
        await until(pilot, lambda: "1 listener  not filtered" in text(app), "the title")
        await pilot.press("1")
        # AND one without packets has none
        await pilot.press("7", "up", "enter")
        await settled(app, pilot)
        assert app.shown.selection.end == app.shown.selection.first


async def test_what_is_below_the_last_connection_is_shown_with_it(recording: Path) -> None:
    async with replayed(recording, (80, 24)) as (app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "4 connections" in text(app), "the connections")
        await pilot.press(*["down"] * 4)
        await until(pilot, lambda: "backlog 3, 2 accepted, 3 dropped" in text(app), "the last")
        assert "in docker 5e1f00000000" in screen_text(app)[-3]


async def test_a_key_leads_from_a_packet_to_its_socket(recording: Path) -> None:
    async with replayed(recording, (120, 40)) as (app, pilot):
        # GIVEN the detail of a packet before DNAT
        await pilot.press("g", "enter")
        await until(pilot, lambda: "Journey" in app.view.detail.text, "the detail")
        # WHEN the user asks for its socket
        await pilot.press("s")
        await until(pilot, lambda: app.switcher.current == "sockets-view", "the sockets")
        # THEN the cursor is on its connection
        await pilot.press("enter")
        await settled(app, pilot)
        assert "flow 10.1.0.2:40004 ⇄ 172.17.0.2:80" in text(app)


async def test_the_process_key_filters_by_who_has_the_socket(recording: Path) -> None:
    async with replayed(recording, (120, 40)) as (app, pilot):
        # GIVEN a packet that came in: the detail names the process that gets it
        await pilot.press("g", "enter")
        wanted = "socket of nginx 4711 in 5e1f00000000"
        await until(pilot, lambda: wanted in app.view.detail.text, "the owner")
        # WHEN the user asks for this process
        await pilot.press("p")
        await settled(app, pilot)
        assert "socket of nginx 4711" in text(app)
        assert app.shown.selection.end - app.shown.selection.first == 2


async def test_what_was_not_recorded_is_said() -> None:
    async with replayed(LAB, (100, 30)) as (app, pilot):
        await pilot.press("s")
        await until(pilot, lambda: "no stage of this packet's socket" in text(app), "the notice")
        await pilot.press("7")
        await until(pilot, lambda: "This recording has no stages" in text(app), "the reason")
        await pilot.press("enter")
        await until(pilot, lambda: "no connection under the cursor" in text(app), "the notice")
        await pilot.press("b")
        await until(pilot, lambda: "need a live trace" in text(app), "the notice")


async def test_a_key_begins_and_ends_their_recording() -> None:
    async with live(streams.hello(), streams.rows(4), size=(100, 30), rows=4) as (
        agent,
        app,
        pilot,
    ):
        await pilot.press("7")
        await until(pilot, lambda: "b records them from now on" in text(app), "the key")
        await pilot.press("b")
        assert json.loads(agent.receive_line()) == {"cmd": "sockets", "on": True}
        await until(pilot, lambda: "asked for stages of sockets" in text(app), "the notice")
        # THEN they count as recorded once the agent counts them, and not before
        assert "b records them from now on" in text(app)
        counted = dict.fromkeys(("due", "delivered", "lost", "missed", "refused"), 0)
        agent.send(streams.books(sockets=counted))
        await until(pilot, lambda: "No socket yet" in text(app), "that none came")
        await pilot.press("b")
        assert json.loads(agent.receive_line()) == {"cmd": "sockets", "on": False}
        await until(pilot, lambda: "b records them from now on" in text(app), "the key")


async def test_connections_are_sorted_as_the_user_likes(recording: Path) -> None:
    async with replayed(recording, (120, 40)) as (app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "4 connections" in text(app), "the connections")
        firsts = []
        for _ in range(4):
            lines = screen_text(app)
            at = next(at for at, line in enumerate(lines) if "client → server" in line)
            firsts.append(lines[at + 1].split()[1:3])
            await pilot.press("s")
            await pilot.pause(0)
        # By newest, slowest, accept queue, stage.
        assert firsts == [
            ["SYN", "dropped"],
            ["SYN", "dropped"],
            ["SYN", "dropped"],
            ["first", "read"],
        ]
