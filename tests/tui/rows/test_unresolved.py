# SPDX-License-Identifier: GPL-2.0-only
"""Rows marked "no ARP" can be asked for, and are judged again as neighbours change."""

from __future__ import annotations

import io
import re

import pytest

from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.tui.app import TraceApp
from tests.data import messages, neighbours, streams
from tests.data.neighbours import FAILED, REACHABLE
from tests.tui.harness import live, screen_text, shown, until
from tests.tui.replayed import all_rows, listed, settled, write

NETNS = 4026532456  # of the rows of tests.data.streams
ROWS = 400
HOP = "192.0.2.3"


def frame(state: int) -> bytes:
    """The namespace of the rows, in which one of their next hops is in this state."""
    about = neighbours.namespace(
        NETNS,
        devices=[neighbours.device(3, "eth1")],
        neighbours=[neighbours.neighbour(HOP, state, 3)],
        routes=[neighbours.route("192.0.2.0/24", (3, None))],
    )
    sink = io.BytesIO()
    Writer(sink).message(Kind.NEIGHBOURS, messages.message(about))
    return sink.getvalue()


def lost(app: TraceApp) -> list[int]:
    """The rows that were let through to that next hop."""
    return [
        row.index
        for row in all_rows(app)
        if row.dst == HOP and row.out == "eth1" and row.verdict == "ACCEPT"
    ]


def marked(app: TraceApp) -> list[int]:
    """The rows in the list that are marked, as drawn: sequence numbers."""
    lines = enumerate(shown(app), app.rows._base + app.rows._top)
    at = [position for position, line in lines if "✓ no ARP" in line]
    return [seq for position in at if (seq := app.rows.selection.seq(position)) is not None]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_filter_shows_the_marked_rows_and_follows_the_neighbours(
    size: tuple[int, int],
) -> None:
    async with live(streams.hello(), streams.rows(ROWS), rows=ROWS, size=size) as (
        agent,
        app,
        pilot,
    ):
        expected = lost(app)
        assert 0 < len(expected) < size[1] - 6
        # GIVEN a filter by the mark, while every neighbour answers
        await pilot.press("colon")
        await write(app, pilot, "no_arp")
        await pilot.press("enter")
        await settled(app, pilot)
        assert listed(app) == []
        # WHEN a neighbour ceases to answer
        agent.send(frame(FAILED))
        # THEN the rows from before it are in the list, each with the mark
        await until(pilot, lambda: listed(app) == expected, "the lost rows")
        await until(pilot, lambda: marked(app) == expected, "their marks")
        # AND the views count them
        await pilot.press("4")
        count = f"{len(expected)} rows of"
        await until(pilot, lambda: count in "\n".join(screen_text(app)), count)
        # WHEN the list is frozen THEN it stays as it is, until it continues
        await pilot.press("1", "space")
        agent.send(frame(REACHABLE))
        neighbours_seen = app.feeds[0].trace.neighbours.reach_version
        await until(pilot, lambda: app.feeds[0].trace.neighbours.reach_version > neighbours_seen)
        await until(pilot, lambda: not app._stale)
        assert listed(app) == expected
        await pilot.press("space")
        agent.send(streams.books())
        await until(pilot, lambda: listed(app) == [], "an empty list")


async def test_what_does_not_change_the_answer_leaves_the_list_alone() -> None:
    async with live(streams.hello(), streams.rows(ROWS), frame(FAILED), rows=ROWS) as (
        agent,
        app,
        pilot,
    ):
        await until(pilot, lambda: app.feeds[0].trace.neighbours.version)
        await pilot.press("colon")
        await write(app, pilot, "no_arp")
        await pilot.press("enter")
        await settled(app, pilot)
        expected, selection = lost(app), app.shown.selection
        assert listed(app) == expected
        # WHEN another neighbour ceases to answer, to which no row goes
        other = neighbours.neighbour("192.0.2.200", FAILED, 3)
        sink = io.BytesIO()
        news = neighbours.news(1, NETNS, neighbours_changed=[other])
        Writer(sink).message(Kind.NEIGHBOURS, messages.message(news))
        before = app.feeds[0].trace.neighbours.reach_version
        agent.send(sink.getvalue())
        await until(pilot, lambda: app.feeds[0].trace.neighbours.reach_version > before)
        await until(pilot, lambda: not app._stale and app.shown.progress is None)
        # THEN the list is the same one
        assert app.shown.selection is selection
        assert listed(app) == expected


async def test_v_and_a_search_find_the_mark_that_the_screen_shows() -> None:
    async with live(
        streams.hello(), streams.rows(ROWS), frame(FAILED), rows=ROWS, size=(100, 30)
    ) as (_, app, pilot):
        await until(pilot, lambda: app.feeds[0].trace.neighbours.version)
        await until(pilot, lambda: not app._stale)
        expected = lost(app)
        # WHEN searching for what the column shows THEN each match is such a row
        await pilot.press("home", "slash")
        await write(app, pilot, "no ARP")
        await pilot.press("enter")
        found = [app.rows.cursor]
        while len(found) < len(expected):
            await pilot.press("n")
            found.append(app.rows.cursor)
        assert found == expected
        # WHEN filtering by this verdict THEN only they are left, and the bar says why
        await pilot.press("v")
        await settled(app, pilot)
        assert listed(app) == expected
        assert re.search(r"\bno ARP\b", "\n".join(screen_text(app)[:3]))
        # AND the prompt has the query
        await pilot.press("colon")
        await pilot.pause()
        assert app.prompt._input.value == "unresolved=ARP"
