# SPDX-License-Identifier: GPL-2.0-only
"""Several hosts on one screen: each row's host, and what happens when one breaks off."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ipttrace.trace import query
from ipttrace.trace.query.until import Until
from ipttrace.trace.row import FIELDS
from ipttrace.tui.app import TraceApp
from ipttrace.tui.app.exports import ALL
from ipttrace.tui.rows.layout import choose
from ipttrace.tui.rows.row_cells import BEGINS
from ipttrace.tui.widgets.export_dialog import ExportRequest
from ipttrace.view.export import format_of
from tests.data import streams
from tests.tui.harness import Agent, laid_out, screen_text, shown, until

NETNS = "4026532456"  # that of the rows, on both hosts


@asynccontextmanager
async def hosts(
    *names: str, size: tuple[int, int] = (80, 24), rows: int = 40
) -> AsyncIterator[tuple[list[Agent], TraceApp, Pilot[Any]]]:
    """A screen of these hosts, with `rows` rows of each."""
    agents = [Agent() for _ in names]
    app = TraceApp([agent.source for agent in agents], title="hosts")

    def held(count: int) -> bool:
        return app.store.end >= count

    async with app.run_test(size=size) as pilot:
        for agent, name in zip(agents, names, strict=True):
            hello = streams.hello(host=name, netns={NETNS: f"lan{name[-1]}"})
            parts = hello, streams.books(), streams.rows(rows)
            sender = threading.Thread(target=agent.send, args=parts)
            sender.start()
            wanted = rows * (agents.index(agent) + 1)
            await until(pilot, partial(held, wanted), f"{wanted} rows")
            sender.join()
        wanted = rows * len(names)
        await until(pilot, lambda: app.rows._end >= wanted, f"{wanted} rows on the screen")
        await until(pilot, lambda: laid_out(app, size[0]), "a size")
        try:
            yield agents, app, pilot
        finally:
            app.exit_now()
            for agent in agents:
                agent.hang_up()


def _column(app: TraceApp, key: str) -> list[str]:
    """The text of one column, by line."""
    start = 0
    for placed in app.rows.columns:
        if placed.column.key == key:
            return [line[start : start + placed.width].strip() for line in shown(app)]
        start += placed.width + 1
    raise AssertionError(f"there is no column {key}")


async def test_each_row_shows_its_host() -> None:
    # GIVEN two hosts, WHEN both have sent rows
    async with hosts("web1", "web2", rows=8) as (_, app, _pilot):
        # THEN each row has its host, even if there is little room
        assert _column(app, "host")[:16] == ["web1"] * 8 + ["web2"] * 8
        assert " host " in app.view.titles.render_line(0).text
        # and each packet of the second host begins with its mark, too
        assert _column(app, "rail").count(BEGINS) == 4
        # and the bar names both
        assert "web1, web2" in app.about_bar.text


async def test_a_single_host_has_no_column() -> None:
    async with hosts("web1") as (_, app, _pilot):
        assert "host" not in [placed.column.key for placed in app.rows.columns]


async def test_a_namespace_is_named_as_on_its_own_host() -> None:
    # GIVEN two hosts where one inode is two namespaces
    async with hosts("web1", "web2", size=(200, 30), rows=8) as (_, app, pilot):
        # THEN each row is named by its host
        names = _column(app, "netns")[:16]
        assert names == ["lan1"] * 8 + ["lan2"] * 8
        # and so is its detail
        for seq, name in ((3, "lan1"), (11, "lan2")):
            app.rows.move_to(seq)
            assert app._known_names().netns == {int(NETNS): name}
        await pilot.pause()


async def test_two_hosts_with_one_name_are_shown_by_their_source_names() -> None:
    agents = [Agent(), Agent()]
    agents[0].source.name, agents[1].source.name = "10.0.0.1", "10.0.0.2"
    app = TraceApp([agent.source for agent in agents], title="hosts")
    async with app.run_test() as pilot:
        for agent in agents:
            agent.send(streams.hello(host="localhost"))
        await until(pilot, lambda: all(feed.trace.hello for feed in app.feeds), "both")
        assert app.feeds.hosts() == ["10.0.0.1", "10.0.0.2"]
        app.exit_now()


async def test_a_host_that_breaks_off_is_named_and_its_rows_stay() -> None:
    # GIVEN two hosts on the screen
    async with hosts("web1", "web2", rows=8) as (agents, app, pilot):
        # WHEN the link to one breaks
        agents[1].hang_up()
        await until(pilot, lambda: app.feeds[1].over, "its end")
        # THEN a notice names it, and all rows are still there
        await until(pilot, lambda: app.notice_line.shown[0].startswith("web2: "), "a notice")
        assert any("web2: The agent exited" in line for line in screen_text(app))
        assert _column(app, "host")[:16] == ["web1"] * 8 + ["web2"] * 8
        # and the other one goes on
        agents[0].send(streams.rows(4, start=8))
        await until(pilot, lambda: app.store.end == 20, "more rows")
        assert app.feeds[0].state == "armed"
        assert "web1 armed" in app.situation().host
        assert "web2 ended" in app.situation().host


async def test_an_agents_note_is_prefixed_with_its_host() -> None:
    async with hosts("web1", "web2", rows=4) as (agents, app, pilot):
        agents[1].send(streams.note("warn", "the ruleset is too large"))
        said = "web2: the ruleset is too large"
        await until(pilot, lambda: app.notice_line.shown[0] == said, "a notice")


async def test_a_filter_by_namespace_uses_each_hosts_own_names() -> None:
    async with hosts("web1", "web2", rows=8) as (_, app, pilot):
        # GIVEN one inode that is lan1 on one host and lan2 on the other, WHEN filtering by lan2
        app.shown.filter_by("netns=lan2")
        app.apply_filter()
        await until(
            pilot, lambda: app.shown.selection.end - app.shown.selection.first == 8, "its rows"
        )
        # THEN the rows are those of the host with that name
        assert set(_column(app, "host")) - {""} == {"web2"}


async def test_until_with_a_namespaces_name_stops_at_the_right_host() -> None:
    async with hosts("web1", "web2", rows=8) as (_, app, pilot):
        # GIVEN a screen that traces until lan2 has a row, WHEN the rows are there
        app._until = Until(query.compile("netns=lan2"))
        await until(pilot, lambda: app._until is None, "a stop")
        # THEN it stopped at the first row of the host with that name
        assert app.view.row is not None
        assert (app.view.row.host, app.view.row.index) == (1, 8)


@pytest.mark.parametrize("view", ["rules-view", "flows-view"])
async def test_rules_and_flows_name_a_namespace_as_its_host_does(view: str) -> None:
    async with hosts("web1", "web2", size=(220, 30), rows=8) as (_, app, pilot):
        app.action_view(view)

        def words() -> str:
            return "\n".join(screen_text(app))

        if view == "flows-view":
            await until(pilot, lambda: "lan1" in words() and "lan2" in words(), "both names")
            return
        # The one with more hits by then comes first.
        await until(pilot, lambda: "/2 [ ]" in words(), "both hosts' namespaces")
        first = "lan1 on web1" if "lan1 on web1" in words() else "lan2 on web2"
        assert first in words()
        await pilot.press("right_square_bracket")
        other = "lan2 on web2" if first == "lan1 on web1" else "lan1 on web1"
        await until(pilot, lambda: other in words(), "the other host's name")


async def test_exported_rows_of_several_hosts_have_their_host(tmp_path: Path) -> None:
    async with hosts("web1", "web2", rows=8) as (_, app, pilot):
        for ending in ("csv", "jsonl", "txt", "pcapng"):
            # GIVEN rows of two hosts, WHEN they are exported
            path = tmp_path / f"rows.{ending}"
            app.exports.start(ExportRequest(ALL, str(path), format_of(path) or "", False))
            await until(pilot, path.exists, "the file")
            # THEN each row has its host, and the namespace is named as on that host
            said = path.read_bytes()
            if ending == "csv":
                rows = list(csv.DictReader(io.StringIO(said.decode())))
                assert [row["host"] for row in rows] == ["web1"] * 8 + ["web2"] * 8
                assert list(rows[0]) == [*FIELDS, "host"]
            elif ending == "jsonl":
                objects = [json.loads(line) for line in said.splitlines()]
                assert [each["host"] for each in objects] == ["web1"] * 8 + ["web2"] * 8
            elif ending == "txt":
                lines = said.decode().splitlines()
                assert [" lan2 " in line and " web2" in line for line in lines[1:]] == (
                    [False] * 8 + [True] * 8
                )
            else:
                assert b"in namespace lan1 (4026532456) of host web1" in said
                assert b"in namespace lan2 (4026532456) of host web2" in said
                assert b"traced on web1, web2" in said


async def test_a_copied_row_has_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosts("web1", "web2", rows=8) as (_, app, _pilot):
        copied: list[str] = []
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        app.rows.move_to(11)
        app.view.action_copy()
        assert " lan2 " in copied[0]
        assert " web2" in copied[0]


async def test_the_summary_names_the_host_that_failed() -> None:
    async with hosts("web1", "web2", rows=4) as (agents, app, pilot):
        # GIVEN two hosts, WHEN one sends invalid bytes and the user quits
        agents[1].send(b"garbage, and more of it than a frame's head is long")
        await until(pilot, lambda: app.feeds[1].over, "its end")
        error = app.feeds[1].error
        app.exit_now()
        # THEN the error in the summary begins with its name
        assert error
        assert app.return_value is not None
        assert app.return_value["error"] == f"web2: {error}"


def test_the_host_is_shown_at_every_width() -> None:
    for width in range(40, 320):
        placed = {one.column.key: one.width for one in choose(width, hosts=True)}
        assert placed["host"] >= 6
        assert sum(placed.values()) + len(placed) - 1 <= max(width, 64)
