# SPDX-License-Identifier: GPL-2.0-only
"""The detail pane: a packet's journey, conntrack entry, headers and bytes."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from ipttrace.stream.decoder import Decoder
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.story import story
from ipttrace.tui.detail.lines import KnownNames, lines
from ipttrace.tui.detail.pane import Detail
from tests.data import streams
from tests.data.traces import replay, seqs_with
from tests.paths import LAB
from tests.tui.harness import until

NAMES = KnownNames({4026532456: "router"}, {0: "web1"})


class Alone(App[None]):
    """An app with only the pane."""

    CSS = "Detail { width: 100%; height: 100%; }"

    def compose(self) -> ComposeResult:
        yield Detail()


@asynccontextmanager
async def pane(
    width: int = 80, height: int = 24
) -> AsyncIterator[tuple[Alone, Detail, Pilot[Any]]]:
    app = Alone()
    async with app.run_test(size=(width, height)) as pilot:
        detail = app.query_one(Detail)
        await until(pilot, lambda: detail.size.width == width, "a size")
        detail.focus()
        await pilot.pause()
        yield app, detail, pilot


def store_of(*frames: bytes, capacity: int = 1_000_000) -> Trace:
    trace = Trace(capacity)
    feed(trace, streams.hello(), *frames)
    return trace


def feed(trace: Trace, *frames: bytes) -> None:
    decoder = Decoder()
    if not frames[0].startswith(streams.hello()):
        decoder.feed(streams.hello())
    for frame in decoder.feed(b"".join(frames)):
        trace.feed(frame)


@pytest.fixture(scope="module")
def lab() -> Store:
    return replay(LAB).store


def drawn(detail: Detail) -> list[str]:
    """The lines on the screen."""
    return [detail.render_line(y).text.rstrip() for y in range(detail.size.height)]


async def test_every_table_of_the_packet_is_a_line_and_the_row_is_marked() -> None:
    store = store_of(streams.rows(8)).store
    async with pane() as (_, detail, pilot):
        detail.show(store, 2, NAMES)
        await pilot.pause()
        shown = drawn(detail)
        # THEN there are the four tables of the packet, in order, and the third is the row
        tables = [line for line in shown if "ACCEPT" in line]
        assert [line.split()[-1] for line in tables[:3]] == ["eth0→"] * 3
        assert [name for line in tables for name in line.split() if name in TABLES] == list(TABLES)
        assert [line.startswith("▶") for line in tables] == [False, False, True, False]
        assert "netns router" in detail.text
        assert "host web1" in detail.text


TABLES = ("raw", "mangle", "nat", "filter")


async def test_changes_of_the_packet_are_shown_below_their_table(lab: Store) -> None:
    row = next(
        row
        for row in lab.rows(range(lab.first, lab.end))
        if (row.hook, row.table, row.dport, row.ct_orig_dport) == ("FORWARD", "mangle", 80, 8080)
    )
    async with pane(120, 40) as (_, detail, pilot):
        detail.show(lab, row.index)
        await pilot.pause()
        text = detail.text
        assert "came with  dst 10.1.0.1:8080 → 10.2.0.2:80" in text
        assert "changed  mark 0x0 → 0x50" in text
        assert "changed  ct status +DNAT" in text
        # THEN a field is listed only where it changed: NAT's source behind the last table
        journey = text.split("Conntrack")[0].split("Journey")[1]
        assert journey.count("src 10.1.0.2") == 1
        assert f"left with  src 10.1.0.2:{row.sport} → 10.2.0.1:{row.sport}" in journey


async def test_an_icmp_error_of_reject_is_indented_below_the_call_that_sent_it(lab: Store) -> None:
    row = next(row for row in lab.rows(range(lab.first, lab.end)) if row.parent and row.icmp)
    async with pane(100, 40) as (_, detail, pilot):
        detail.show(lab, row.index)
        await pilot.pause()
        assert any("  OUTPUT" in line and line.startswith("▶") for line in drawn(detail))
        assert "port unreachable (3)" in detail.text
        assert "1 of another skb" in detail.text


async def test_z_folds_the_bytes_and_shows_them_again() -> None:
    store = store_of(streams.rows(8)).store
    async with pane(80, 40) as (_, detail, pilot):
        detail.show(store, 2, NAMES)
        assert "  0000  45 00" in detail.text
        await pilot.press("z")
        assert "  0000  45 00" not in detail.text
        assert "z shows them" in detail.text
        await pilot.press("z")
        assert "  0000  45 00" in detail.text


async def test_keys_scroll_and_another_row_scrolls_into_view(lab: Store) -> None:
    # GIVEN a pane that is too low for the journey
    journey = next(
        seqs_with(lab, "journey", row.journey)
        for row in lab.rows(range(lab.first, lab.end))
        if len(seqs_with(lab, "journey", row.journey)) == 7
    )
    async with pane(80, 8) as (_, detail, pilot):
        detail.show(lab, int(journey[0]))
        await until(pilot, lambda: any(line.startswith("▶") for line in drawn(detail)))
        await pilot.press("end")
        await until(pilot, lambda: detail.scroll_offset.y == detail.max_scroll_y > 0)
        # WHEN the same row is shown again, THEN the scroll position stays
        detail.show(lab, int(journey[0]))
        await pilot.pause()
        assert detail.scroll_offset.y == detail.max_scroll_y
        # WHEN another row is shown, THEN its line is in view
        for seq in journey[1:].tolist():
            detail.show(lab, seq)
            await until(pilot, lambda: any(line.startswith("▶") for line in drawn(detail)))
        await pilot.press("home")
        await until(pilot, lambda: detail.scroll_offset.y == 0)
        await pilot.press("down", "j")
        await until(pilot, lambda: detail.scroll_offset.y == 2)
        await pilot.press("k")
        await until(pilot, lambda: detail.scroll_offset.y == 1)


async def test_a_journey_grows_while_it_is_shown() -> None:
    trace = store_of(streams.rows(2))
    async with pane(80, 40) as (_, detail, pilot):
        detail.show(trace.store, 1, NAMES)
        await pilot.pause()
        assert "2 tables" in detail.text
        feed(trace, streams.rows(2, 2))
        detail.show(trace.store, 1, NAMES)
        await pilot.pause()
        assert "4 tables" in detail.text


async def test_an_unchanged_story_is_not_drawn_again() -> None:
    trace = store_of(streams.rows(4))
    async with pane() as (_, detail, _pilot):
        detail.show(trace.store, 1, NAMES)
        before = detail._lines
        feed(trace, streams.rows(40, 4))
        detail.show(trace.store, 1, NAMES)
        assert detail._lines is before
        # WHEN a name arrives, THEN it is shown
        detail.show(trace.store, 1, KnownNames({4026532456: "other"}))
        assert "netns other" in detail.text


async def test_rules_that_arrive_later_are_shown() -> None:
    class Rules(Rulesets):
        def text(self, *of: Any) -> str:
            return f"-p tcp -m comment --comment [b]{'x' * 5000}[/b] -j TEE"

    store = store_of(streams.rows(4)).store
    async with pane(80, 40) as (_, detail, _pilot):
        detail.show(store, 0, NAMES)
        assert "comment" not in detail.text
        next(store.parts()).columns["ruleset"][:] = 1
        store.rulesets[0] = Rules()
        detail.show(store, 0, NAMES)
        # THEN they are folded into a limited number of lines
        assert "PREROUTING 1  -p tcp -m comment" in detail.text
        assert "[b]xxx" in detail.text
        assert len(detail.text.splitlines()) < 60
        assert all(cell_len(line) <= 79 for line in detail.text.splitlines())


async def test_an_evicted_row_stays_until_another_is_shown() -> None:
    trace = store_of(streams.rows(16), capacity=16)
    async with pane() as (_, detail, pilot):
        detail.show(trace.store, 12, NAMES)
        before = detail.text
        feed(trace, streams.rows(160, 16))
        assert trace.store.first > 12
        detail.show(trace.store, 12, NAMES)
        assert detail.text == before
        detail.show(trace.store, 13, NAMES)
        assert detail.text == "This row is no longer held."
        detail.show(trace.store, None)
        assert detail.text == "No row is selected."
        await pilot.press("z", "down", "end")
        assert drawn(detail)[0] == "No row is selected."


async def test_a_resize_wraps_lines_for_the_new_width(lab: Store) -> None:
    async with pane(200, 30) as (_, detail, pilot):
        detail.show(lab, 110)
        assert max(map(len, detail.text.splitlines())) > 80
        await pilot.resize_terminal(60, 20)
        await until(pilot, lambda: detail._made_for == 59)
        assert max(map(cell_len, detail.text.splitlines())) <= 59
        assert all(cell_len(detail.render_line(y).text) == 59 for y in range(20))


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 141, 200])
def test_lines_are_not_longer_than_the_width(lab: Store, width: int) -> None:
    for seq in range(lab.first, lab.end, 7):
        found = story(lab, seq)
        assert found is not None
        for line in lines(found, width, NAMES):
            assert cell_len("".join(text for text, _ in line.cells)) <= width


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J\x1b]0;t\x07", "[red]x[/red]", "漢字漢字漢字", "e" + "\u0301" * 9, "\u202ea\nb"],
)
@pytest.mark.parametrize("width", [40, 80, 200])
async def test_hostile_names_do_not_break_the_layout(text: str, width: int) -> None:
    raw = text.encode()
    kinds = streams.records(8)
    kinds[0]["comm"] = kinds[0]["in"] = kinds[0]["out"] = raw[:16]
    kinds[0]["table"] = kinds[1]["table"] = kinds[1]["chain"] = raw[:32]
    store = store_of(streams.frames(*kinds)).store
    async with pane(width, 40) as (_, detail, pilot):
        detail.show(store, 2, NAMES)
        await pilot.pause()
        for y in range(40):
            line = detail.render_line(y).text
            assert cell_len(line) == width - 1
            assert not {unicodedata.category(char) for char in line} & {"Cc", "Cf", "Cs", "Zl"}
        assert "✓ ACCEPT" in detail.text
