# SPDX-License-Identifier: GPL-2.0-only
"""Packets that die outside the tables, as a user finds them on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipttrace.tui.app import TraceApp
from tests.data import streams
from tests.data.stations import stream
from tests.tui.harness import live, screen_text, until
from tests.tui.replayed import LAB, SIZES, replayed, settled


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "drops.iptr"
    path.write_bytes(stream())
    return path


def text(app: TraceApp) -> str:
    return "\n".join(screen_text(app))


@pytest.mark.parametrize("size", SIZES)
async def test_the_drops_are_listed_with_what_they_mean(
    recording: Path, size: tuple[int, int]
) -> None:
    async with replayed(recording, size) as (app, pilot):
        # WHEN the user asks where packets die
        await pilot.press("6")
        await until(pilot, lambda: "IP_RPFILTER" in text(app), "the drops")
        lines = screen_text(app)
        # THEN the most frequent cause is first, with place and sentence
        at = next(at for at, line in enumerate(lines) if "IP_RPFILTER" in line)
        assert "23" in lines[at]
        assert "ip_rcv_finish_core+0x1d2" in lines[at]
        assert "RPF: the reverse path filter on eth1 does not expect 10.9.0.2" in lines[at + 1]
        # AND what rules drop is there as well, once
        assert sum("filter FORWARD 3" in line for line in lines) == 1
        assert not any("NETFILTER_DROP" in line for line in lines)
        # WHEN the user asks for the rows of the first line
        await pilot.press("enter")
        await settled(app, pilot)
        # THEN only these are shown
        assert app.shown.selection.end - app.shown.selection.first == 23
        assert "IP_RPFILTER at ip_rcv_finish_core+0x1d2" in text(app)
        # AND the view follows the filter
        await pilot.press("6")
        await until(pilot, lambda: "Drops 23" in text(app), "the drops of the filter")


async def test_the_detail_tells_from_device_to_device(recording: Path) -> None:
    async with replayed(recording, (120, 60)) as (app, pilot):
        await pilot.press("g", "enter")
        await until(pilot, lambda: "Journey" in app.view.detail.text, "the detail")
        told = app.view.detail.text
        story = [
            *("received on eth0", "PREROUTING", "routed via 192.0.2.1 on eth1, table main"),
            *("forwarded from eth0 to eth1", "FORWARD", "POSTROUTING", "handed to eth1"),
            *("src 10.1.0.2:40000 → 203.0.113.1:40000", "the packet has left"),
        ]
        places = [told.index(line) for line in story]
        assert places == sorted(places)
        assert "3 tables" in told


async def test_the_detail_of_any_row_says_why_the_packet_died(recording: Path) -> None:
    async with replayed(recording, (120, 60)) as (app, pilot):
        # GIVEN a packet that its tables accepted
        app.rows.move_to(7)
        await pilot.press("enter")
        await until(pilot, lambda: "Dropped" in app.view.detail.text, "the detail")
        assert app.view.row is not None
        assert app.view.row.hook == "PREROUTING"
        told = app.view.detail.text
        # THEN the cause is named first, and where it was in the journey
        assert told.index("no neighbour: 192.0.2.99 does not answer ARP") < told.index("Journey")
        assert "neighbour FAILED" in told
        assert told.index("Journey") < told.index("dropped: NEIGH_FAILED at arp_error_report+0x3c")
        # AND a drop of the reverse path filter has its kernel stack
        app.rows.move_to(40)
        await until(pilot, lambda: "Kernel stack" in app.view.detail.text, "the stack")
        assert "__netif_receive_skb_one_core+0x87" in app.view.detail.text


async def test_the_rule_that_dropped_is_named_at_the_end_of_the_story(recording: Path) -> None:
    async with replayed(recording, (120, 60)) as (app, pilot):
        rows = app.store.rows(range(app.store.first, app.store.end))
        app.rows.move_to(next(row.index for row in rows if row.verdict == "DROP"))
        await pilot.press("enter")
        wanted = "dropped here by this rule (NETFILTER_DROP at nf_hook_slow+0x9a)"
        await until(pilot, lambda: wanted in app.view.detail.text, "the end")


async def test_a_recording_without_drops_says_that_it_has_only_those_of_rules() -> None:
    async with replayed(LAB) as (app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: "Only drops of rules are seen" in text(app), "the reason")


async def test_a_key_shows_what_happens_between_the_tables() -> None:
    hello = streams.hello(drops=True)
    async with live(hello, streams.rows(4), size=(100, 30), rows=4) as (agent, app, pilot):
        # WHEN the user asks for stations, and for no more of them
        await pilot.press("B")
        assert json.loads(agent.receive_line()) == {"cmd": "stations", "on": True}
        await until(pilot, lambda: "between the tables too" in text(app), "the notice")
        await pilot.press("B")
        assert json.loads(agent.receive_line()) == {"cmd": "stations", "on": False}


async def test_where_drops_cannot_be_seen_the_screen_says_why() -> None:
    why = "the kernel has no BTF"
    hello = streams.hello(drops=False, no_drops=why)
    async with live(hello, streams.rows(4), size=(100, 30), rows=4) as (_, app, pilot):
        await pilot.press("B")
        await until(pilot, lambda: f"stations cannot be recorded: {why}" in text(app), "why")
        await pilot.press("6")
        await until(pilot, lambda: f"Only drops of rules are seen: {why}" in text(app), "why")
