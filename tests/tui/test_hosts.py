# SPDX-License-Identifier: GPL-2.0-only
"""Several hosts on one screen: whose row it is, and what happens when one of them goes."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from ipttrace.tui.app import TraceApp
from ipttrace.tui.columns import BEGINS, choose
from tests.tui import streams
from tests.tui.harness import Agent, laid_out, screen_text, shown, until

NETNS = "4026532456"  # that of the rows, on both hosts


@asynccontextmanager
async def hosts(
    *names: str, size: tuple[int, int] = (80, 24), rows: int = 40
) -> AsyncIterator[tuple[list[Agent], TraceApp, Pilot[Any]]]:
    """A screen of these hosts, with so many rows of each."""
    agents = [Agent() for _ in names]
    app = TraceApp([agent.source for agent in agents], title="hosts")
    async with app.run_test(size=size) as pilot:
        for agent, name in zip(agents, names, strict=True):
            hello = streams.hello(host=name, netns={NETNS: f"lan{name[-1]}"})
            parts = hello, streams.books(), streams.rows(rows)
            sender = threading.Thread(target=agent.send, args=parts)
            sender.start()
            wanted = rows * (agents.index(agent) + 1)
            await until(pilot, lambda wanted=wanted: app.store.end >= wanted, f"{wanted} rows")
            sender.join()
        wanted = rows * len(names)
        await until(pilot, lambda: app.rows._end >= wanted, f"{wanted} rows on the screen")
        await until(pilot, lambda: laid_out(app, size[0]), "a size")
        try:
            yield agents, app, pilot
        finally:
            app._leave()
            for agent in agents:
                agent.hang_up()


def _column(app: TraceApp, key: str) -> list[str]:
    """What the lines on the screen say in a column."""
    start = 0
    for placed in app.rows.columns:
        if placed.column.key == key:
            return [line[start : start + placed.width].strip() for line in shown(app)]
        start += placed.width + 1
    raise AssertionError(f"there is no column {key}")


async def test_each_row_says_which_host_it_is_of() -> None:
    # GIVEN two hosts, WHEN both have sent rows
    async with hosts("web1", "web2", rows=8) as (_, app, _pilot):
        # THEN each row has its host, also where there is little room
        assert _column(app, "host")[:16] == ["web1"] * 8 + ["web2"] * 8
        assert " host " in app._titles.render_line(0).text
        # and each packet of the second begins as one, too
        assert _column(app, "rail").count(BEGINS) == 4
        # and the bar names both
        assert "web1, web2" in app._about.text


async def test_a_single_host_takes_no_column() -> None:
    async with hosts("web1") as (_, app, _pilot):
        assert "host" not in [placed.column.key for placed in app.rows.columns]


async def test_a_namespace_has_the_name_that_its_own_host_gives_it() -> None:
    # GIVEN two hosts where one inode is two namespaces
    async with hosts("web1", "web2", size=(200, 30), rows=8) as (_, app, pilot):
        # THEN each row is named by its host
        names = _column(app, "netns")[:16]
        assert names == ["lan1"] * 8 + ["lan2"] * 8
        # and so is its detail
        for seq, name in ((3, "lan1"), (11, "lan2")):
            app.rows.move_to(seq)
            assert app._where().netns == {int(NETNS): name}
        # and nothing is told of an inode without a host
        assert app.netns_names() == {}
        await pilot.pause()


async def test_two_hosts_that_call_themselves_the_same_are_told_apart() -> None:
    agents = [Agent(), Agent()]
    agents[0].source.name, agents[1].source.name = "10.0.0.1", "10.0.0.2"
    app = TraceApp([agent.source for agent in agents], title="hosts")
    async with app.run_test() as pilot:
        for agent in agents:
            agent.send(streams.hello(host="localhost"))
        await until(pilot, lambda: all(line.trace.hello for line in app.lines), "both")
        assert app.hosts() == ["10.0.0.1", "10.0.0.2"]
        app._leave()


async def test_a_host_that_dies_is_named_and_its_rows_stay() -> None:
    # GIVEN two hosts on the screen
    async with hosts("web1", "web2", rows=8) as (agents, app, pilot):
        # WHEN the link to one breaks
        agents[1].hang_up()
        await until(pilot, lambda: app.lines[1].over, "its end")
        # THEN one line says which, and all rows are still there
        await until(pilot, lambda: app._noticed[0].startswith("web2: "), "a notice")
        assert any("web2: The agent went away" in line for line in screen_text(app))
        assert _column(app, "host")[:16] == ["web1"] * 8 + ["web2"] * 8
        # and the other one goes on
        agents[0].send(streams.rows(4, start=8))
        await until(pilot, lambda: app.store.end == 20, "more rows")
        assert app.lines[0].state == "armed"
        assert "web1 armed" in app.situation().host
        assert "web2 ended" in app.situation().host


async def test_a_word_of_an_agent_has_its_host_before_it() -> None:
    async with hosts("web1", "web2", rows=4) as (agents, app, pilot):
        agents[1].send(streams.note("warn", "the ruleset is too large"))
        said = "web2: the ruleset is too large"
        await until(pilot, lambda: app._noticed[0] == said, "a notice")


def test_the_host_is_shown_at_every_width() -> None:
    for width in range(40, 320):
        placed = {one.column.key: one.width for one in choose(width, hosts=True)}
        assert placed["host"] >= 6
        assert sum(placed.values()) + len(placed) - 1 <= max(width, 64)
