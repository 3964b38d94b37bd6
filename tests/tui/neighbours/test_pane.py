# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour pane: its text at each width, its keys, and hostile text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.tables import KernelTables
from ipttrace.tui.neighbours import words
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.neighbours.vendors import Vendors
from ipttrace.tui.widgets import figures
from tests.data import neighbours as made
from tests.data.neighbours import CLIENT, FAILED, REACHABLE, ROUTER, namespace, neighbour, table
from tests.tui.harness import until

NAMES = {ROUTER: "router", CLIENT: "client"}
NO_TABLES = KernelTables()  # as of a recording by an older version


class Screen(App[None]):
    def compose(self) -> ComposeResult:
        yield NeighbourPane(id="neighbours")


@asynccontextmanager
async def pane(
    held: Neighbours | None,
    size: tuple[int, int] = (60, 60),
    kernel: KernelTables | None = None,
) -> AsyncIterator[tuple[NeighbourPane, Pilot[Any]]]:
    """A pane that shows the router's namespace of `held` and `kernel`."""
    app = Screen()
    async with app.run_test(size=size) as pilot:
        one = app.query_one(NeighbourPane)
        one.focus()
        if held is not None:
            one.show(held, NO_TABLES if kernel is None else kernel, NAMES)
            one.choose(ROUTER)
        await pilot.pause()
        yield one, pilot


def text(one: NeighbourPane) -> str:
    return "\n".join(one.render_line(y).text.rstrip() for y in range(one.size.height))


def all_text(one: NeighbourPane) -> str:
    """All lines, including those that are scrolled out of view."""
    count = one.virtual_size.height - 1
    return "\n".join("".join(part for part, _ in one._line(at)) for at in range(count))


def line_with(one: NeighbourPane, part: str) -> str:
    return next(line for line in text(one).split("\n") if part in line)


@pytest.mark.parametrize("width", [34, 36, 47, 60, 77, 97, 120, 135, 200])
@pytest.mark.parametrize("detail", [False, True])
async def test_every_line_fits_at_every_width(width: int, detail: bool) -> None:
    async with pane(made.router(), (width, 60)) as (one, pilot):
        if detail:
            await pilot.press("t")
        for y in range(60):
            assert one.render_line(y).cell_length == width - 1
        # AND no important text was cut off
        for at in range(one.virtual_size.height - 1):
            line = "".join(part for part, _ in one._line(at))
            assert cell_len(line) <= width - 1 or "not resolved" not in line
        said = all_text(one)
        for word in ("FAILED", "INCOMPLETE", "REACHABLE", "STALE", "DELAY", "PROBE", "WARNING"):
            assert word in said


async def test_a_narrow_pane_shows_entries_states_and_ages() -> None:
    async with pane(made.router(), (36, 60)) as (one, _):
        said = text(one)
        assert " router" in said.split("\n")[0]
        assert "IPv4 arp  ok  17 of 1,024" in said
        assert "IPv6 ndisc  WARNING  600 of 1,024" in said
        assert line_with(one, "10.0.0.9 ").split() == ["✗", "10.0.0.9", "FAILED", "9s"]
        assert line_with(one, "10.0.0.3 ").split() == ["10.0.0.3", "STALE", "12m"]
        assert "2 not resolved" in said


async def test_a_low_pane_leaves_room_for_the_neighbours() -> None:
    async with pane(made.router(), (36, 24)) as (one, _):
        assert "FAILED" in text(one)
        assert "INCOMPLETE" in text(one)


async def test_a_wide_pane_has_the_tables_side_by_side() -> None:
    async with pane(made.router(), (120, 40)) as (one, _):
        assert "IPv6 ndisc_cache" in line_with(one, "IPv4 arp_cache")
        assert line_with(one, "lookups").count("lookups") == 2
        assert "2001:db8:1234:5678:9abc:def0:1234:5678 " in text(one)


async def test_rates_sparklines_and_hit_ratio_are_shown() -> None:
    async with pane(made.router(), (60, 60)) as (one, _):
        lookups = line_with(one, "lookups")
        assert "131,076" in lookups
        assert "130/s" in lookups
        assert "█" in lookups
        assert "95% now, 82% ever" in text(one)


async def test_t_shows_every_field_of_the_kernel() -> None:
    fields = {*made.STATS, *made.CONFIG, *made.PARMS, "gc_interval", "gc_thresh"}
    fields = {field.removesuffix("_ms") for field in fields}
    for width in (36, 60, 120):
        async with pane(made.router(), (width, 60)) as (one, pilot):
            assert "hash_rnd" not in all_text(one)
            await pilot.press("t")
            said = all_text(one)
            assert {field for field in fields if field not in said} == set()
            for device in ("lo", "lan0", "wan0", "tun0"):
                assert f"\n  {device}  " in said
            # AND back
            await pilot.press("enter")
            assert "hash_rnd" not in all_text(one)


async def test_brackets_cycle_through_the_namespaces() -> None:
    async with pane(made.router()) as (one, pilot):
        assert "router" in one.render_line(0).text
        assert "2/2" in one.render_line(0).text
        await pilot.press("right_square_bracket")
        assert one.netns == CLIENT
        assert "client" in one.render_line(0).text
        assert "10.0.0.9 " not in all_text(one)
        await pilot.press("left_square_bracket")
        assert one.netns == ROUTER
        assert "10.0.0.9 " in all_text(one)


async def test_a_known_name_has_priority_over_the_name_in_the_stream() -> None:
    async with pane(made.router()) as (one, pilot):
        one.show(made.router(), NO_TABLES, {ROUTER: "gw-7"})
        await pilot.pause()
        assert "gw-7" in one.render_line(0).text
        assert one.name_of(CLIENT) == "client"
        assert one.name_of(77) == "netns 77"


async def test_all_neighbours_can_be_scrolled_to_and_the_title_stays() -> None:
    held = made.router()
    many = [neighbour(f"10.0.{n >> 8}.{n & 255}", REACHABLE) for n in range(4096)]
    held.feed(namespace(second=60, neighbours=many))
    async with pane(held, (60, 30)) as (one, pilot):
        await pilot.press("G")
        await until(pilot, lambda: one.scroll_offset.y == one.max_scroll_y)
        assert "router" in one.render_line(0).text
        assert "10.0.15.255" in one.render_line(28).text
        await pilot.press("g")
        await until(pilot, lambda: one.scroll_offset.y == 0)
        assert "4,096" in text(one)


async def test_the_total_is_shown_if_not_all_neighbours_were_reported() -> None:
    held = made.router()
    totals = {"neighbours": 12_345, "routes": 1, "devices": 4, "rules": 0}
    held.feed({"mono": held.mono + 1, "netns": ROUTER, "totals": totals})
    async with pane(held) as (one, _):
        assert "9 of 12,345" in line_with(one, "Neighbours")


async def test_a_full_table_shows_what_to_do() -> None:
    held = made.router()
    held.feed(made.tables(61, table(4, 1024, table_fulls=23), table(6, 3)))
    async with pane(held, (60, 60)) as (one, _):
        assert "IPv4 arp_cache  FULL  1,024 of 1,024" in text(one)
        assert "raise gc_thresh3" in text(one)


async def test_ages_increase_and_changed_neighbours_are_drawn() -> None:
    held = made.router()
    async with pane(held, (60, 60)) as (one, pilot):
        held.feed(made.tables(89, table(4), table(6)))
        held.feed(made.news(89, neighbours_changed=[neighbour("10.0.0.2", FAILED)]))
        one.show(held, NO_TABLES, NAMES)
        await pilot.pause()
        assert line_with(one, "10.0.0.3 ").split()[-1] == "13m"
        assert "FAILED" in line_with(one, "10.0.0.2 ")
        # AND without a change, nothing is drawn
        one._above = [[("untouched", "text")]]
        one.show(held, NO_TABLES, NAMES)
        assert one._above == [[("untouched", "text")]]


async def test_a_removed_namespace_is_replaced_by_another() -> None:
    held = made.router()
    async with pane(held) as (one, pilot):
        held.feed({"mono": held.mono + 1, "gone": [ROUTER]})
        one.show(held, NO_TABLES, NAMES)
        await pilot.pause()
        assert one.netns == CLIENT
        held.feed({"mono": held.mono + 1, "gone": [CLIENT]})
        one.show(held, NO_TABLES, NAMES)
        await pilot.pause()
        assert "IPv4 arp_cache" in text(one)
        await pilot.press("right_square_bracket", "t", "t")


@pytest.mark.parametrize("held", [None, Neighbours()])
async def test_an_empty_pane_explains_itself(held: Neighbours | None) -> None:
    async with pane(held) as (one, pilot):
        if held is not None:
            one.show(held, NO_TABLES, {})
            await pilot.pause()
            assert "No tables of the kernel yet." in text(one)
        await pilot.press("right_square_bracket", "left_square_bracket", "t", "G", "g")


async def test_a_hidden_pane_is_filled_when_it_is_shown() -> None:
    held = made.router()
    async with pane(held) as (one, pilot):
        one.display = False
        await pilot.pause()
        held.feed(made.news(70, neighbours_changed=[neighbour("10.0.0.200", FAILED)]))
        one.show(held, NO_TABLES, NAMES)
        assert "10.0.0.200" not in all_text(one)
        one.display = True
        await until(pilot, lambda: "10.0.0.200" in all_text(one))


async def test_a_resize_changes_the_layout() -> None:
    async with pane(made.router(), (36, 30)) as (one, pilot):
        await pilot.resize_terminal(150, 40)
        await until(pilot, lambda: "IPv6 ndisc_cache" in line_with(one, "IPv4 arp_cache"))


async def test_vendors_appear_once_they_are_looked_up() -> None:
    async with pane(made.router(), (60, 60)) as (one, pilot):
        await until(pilot, lambda: "Intel" in text(one), "a vendor")
        assert "VMware" in text(one)
        assert "local" in line_with(one, "02:00:00:00:00:01")


def test_only_registered_addresses_have_a_vendor() -> None:
    vendors = Vendors()
    assert vendors.name("00:1b:21:aa:bb:cc") is None
    asked = ["00:1b:21:aa:bb:cc", "ff", "", "xx:yy:zz:00:00:00", "00:00:00:00:00:00", "10.0.0.1"]
    vendors.learn([*asked, "fc:ff:ff:00:00:00"])
    assert vendors.name("00:1b:21:00:00:01") == "Intel Corporate"
    for none in (*asked[1:], "33:33:00:00:00:16"):
        assert vendors.name(none) == ""
    assert vendors.name("fc:ff:ff:00:00:00") == ""
    assert vendors.name("02:00:00:00:00:01") == "local"


async def test_escapes_and_markup_are_shown_as_text() -> None:
    evil = "[red]x[/]\x1b[2J"
    held = made.router()
    one_neighbour = neighbour("10.0.0.2", REACHABLE, lladdr="[b]\x1b]0;x\x07")
    devices = [made.device(2, evil)]
    held.feed(namespace(name=evil, neighbours=[one_neighbour], devices=devices, second=60))
    async with pane(held, (120, 60)) as (one, pilot):
        one.show(held, NO_TABLES, {})
        await pilot.press("t")
        said = text(one) + all_text(one)
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "[red]x[/]\\x1b[2J" in one.render_line(0).text
        assert "[red]x[/]\\x1b[2J" in all_text(one)
        assert "[b]\\x1b]0;x\\x07" in all_text(one)


async def test_states_are_distinguishable_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with pane(made.router(), (60, 60)) as (one, _):
        assert line_with(one, "10.0.0.9 ").startswith("✗ ")
        assert "WARNING" in text(one)


@pytest.mark.parametrize(
    ("value", "width", "shown"),
    [
        (0, 5, "0"),
        (99_999, 6, "99,999"),
        (131_076, 6, "131k"),
        (1_310_760, 6, "1.3M"),
        (999_999, 6, "1.0M"),
        ((1 << 64) - 1, 5, "18.4E"),
    ],
)
def test_numbers_fit_their_cells(value: int, width: int, shown: str) -> None:
    assert words.number(value, width) == shown
    assert len(shown) <= width


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0ms"),
        (800, "800ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (59_990, "59.9s"),
        (90_000, "1m30s"),
        (3_600_000, "1h"),
        (13_880_700, "3h51m"),
        (90_000_000, "1d1h"),
        (1 << 63, "106751991167d7h"),
    ],
)
def test_time_spans_have_two_units(ms: int, shown: str) -> None:
    assert words.duration(ms) == shown


def test_a_sparkline_has_gaps_for_unknown_values() -> None:
    assert figures.sparkline([0, 1, None, 7], 6) == "  ▁▂ █"
    assert figures.sparkline([0.0] * 3, 2) == "▁▁"
    assert figures.sparkline([1.0], 0) == ""
