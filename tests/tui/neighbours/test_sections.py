# SPDX-License-Identifier: GPL-2.0-only
"""The sections on reassembly and conntrack: what they show, warn of and advise."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.tables import KernelTables
from tests.data import neighbours as made
from tests.data import tables
from tests.data.tables import IPV4, ROUTER
from tests.tui.neighbours.test_pane import all_text, line_with, pane, text

TIMEOUTS = {"ReasmReqds": 1_300, "ReasmTimeout": 8, "ReasmFails": 8}
FULL = {"entries": 262_144, "drop": 17}


def roles_of(one: object, part: str) -> set[str]:
    """The roles of the cells with this text."""
    lines = one._above  # type: ignore[attr-defined]
    return {role for cells in lines for text, role in cells if part in text}


@pytest.mark.parametrize("width", [34, 36, 47, 60, 77, 80, 97, 120, 135, 200])
@pytest.mark.parametrize("height", [24, 60])
@pytest.mark.parametrize("detail", [False, True])
async def test_every_line_fits_at_every_width(width: int, height: int, detail: bool) -> None:
    kernel = tables.router(ipv4=TIMEOUTS, ipv6={"memory": 4_000_000}, conntrack=FULL)
    async with pane(made.router(), (width, height), kernel) as (one, pilot):
        if detail:
            await pilot.press("t")
        assert all(one.render_line(y).cell_length == width - 1 for y in range(height))
        for cells in one._above:
            line = "".join(part for part, _ in cells)
            assert cell_len(line) <= width - 1 or "Reasm" not in line, line
        said = all_text(one)
        for word in ("Reassembly of fragments  WARNING", "Conntrack  FULL", "ReasmTimeout"):
            assert word in said
        # AND each sentence is there in full
        words = " ".join(said.split())
        for sentence in (
            "IPv4: fragments never came. Look for loss, or a filter, on their way",
            "IPv6: nearly no room: packets wait for fragments. Raise net.ipv6.ip6frag_high_thresh",
            "full: new connections are dropped. Raise nf_conntrack_max; see conntrack -L",
        ):
            assert width >= 120 or sentence in words


async def test_counters_have_their_rates_and_what_they_count() -> None:
    kernel = tables.router(ipv4=TIMEOUTS, conntrack={"entries": 1_300, "invalid": 14})
    async with pane(made.router(), (80, 60), kernel) as (one, _):
        counted = line_with(one, "ReasmTimeout").split()
        assert counted[:5] == ["ReasmTimeout", "8", "5.0/s", "0", "0/s"]
        assert "a fragment never came" in line_with(one, "ReasmTimeout")
        assert "66/s" in line_with(one, "ReasmReqds")
        assert line_with(one, "invalid").split()[:3] == ["invalid", "14", "2.0/s"]
        assert "2 waiting, 4,608 of 4,194,304 bytes" in text(one)
        assert "Conntrack  ok  1,300 of 262,144 entries" in text(one)
        assert roles_of(one, "5.0/s") == {"warn"} or "warn" in roles_of(one, "8 ")


async def test_a_low_pane_has_each_section_in_few_lines() -> None:
    async with pane(made.router(), (80, 20), tables.router()) as (one, _):
        assert "IPv4  waiting 2  memory 4,608 of 4.2M" in text(one)
        assert "drop 0  early_drop 0  insert_failed 0  invalid 12" in text(one)
        assert "IPv6  waiting" not in text(one)  # no fragment has ever come
        assert "FAILED" in text(one)
    async with pane(made.router(), (36, 24), tables.router()) as (one, _):
        assert "INCOMPLETE" in text(one)
        assert "Conntrack  ok" in text(one)


async def test_a_low_pane_is_short_only_if_there_is_no_room_for_neighbours() -> None:
    async with pane(made.router(), (110, 32)) as (one, _):
        assert "gc_thresh 128" in text(one)
        assert "10.0.0.9 " in text(one)
    async with pane(made.router(), (110, 32), tables.router()) as (one, _):
        assert "gc_thresh 128" not in text(one)
        assert "10.0.0.9 " in text(one)


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("ipv4", {"memory": 4_194_304}, "no room, fragments are dropped"),
        ("ipv4", {"memory": 3_200_000}, "nearly no room"),
        ("ipv4", {"ReasmOverlaps": 2, "ReasmFails": 5}, "overlapping fragments are dropped"),
        ("ipv4", {"ReasmFails": 5}, "fragments were rejected: malformed"),
        ("ipv6", {"ReasmTimeout": 1, "ReasmFails": 1}, "IPv6: fragments never came"),
        ("conntrack", {"entries": 240_000}, "nearly full: raise nf_conntrack_max"),
        ("conntrack", {"early_drop": 3}, "removed for new ones"),
        ("conntrack", {"insert_failed": 3}, "lost a race for an entry"),
        ("conntrack", {"drop": 3}, "an entry could not be made"),
        ("conntrack", {"drop": 3, "entries": 261_900}, "full: new connections are dropped"),
    ],
)
async def test_each_trouble_has_a_sentence_on_what_to_look_at_next(
    table: str, values: dict[str, int], said: str
) -> None:
    async with pane(made.router(), (120, 60), tables.router(**{table: values})) as (one, _):
        assert said in text(one)
        assert roles_of(one, said) <= {"warn", "full"}
    # AND it goes away when nothing is lost any more
    kernel = tables.router(**{table: values})
    kernel.feed(tables.table(table, 61, **values))
    kernel.feed(tables.look(80))
    async with pane(made.router(), (120, 60), kernel) as (one, _):
        stays = {"memory", "entries"} & values.keys() and "drop" not in values
        assert (said in text(one)) == bool(stays)


async def test_what_the_kernel_does_not_report_is_not_shown_as_zero() -> None:
    kernel = KernelTables()
    frame = tables.table("ipv4")
    frame["values"] = {"queues": 3, "ReasmReqds": 7}
    kernel.feed(frame)
    async with pane(made.router(), (80, 60), kernel) as (one, _):
        assert "Conntrack  not loaded" in text(one)
        assert "IPv4  3 waiting\n" in text(one) + "\n"
        assert "ReasmTimeout" not in text(one)
        assert "IPv6  " not in text(one).split("Reassembly")[1].split("Conntrack")[0]
    async with pane(made.router(), (80, 60)) as (one, _):
        assert "Reassembly" not in text(one)  # a recording by an older version


async def test_t_shows_every_value() -> None:
    kernel = tables.router(ipv6={"nf_conntrack_frag6_timeout": 60})
    async with pane(made.router(), (100, 60), kernel) as (one, pilot):
        await pilot.press("t")
        said = all_text(one)
        for word in ("max_dist 64", "time 30s", "buckets 262,144", "chaintoolong", "found"):
            assert word in said
        assert "it reassembles IPv6 itself" in said


async def test_a_namespace_without_neighbours_is_shown() -> None:
    async with pane(Neighbours(), (80, 40), tables.router()) as (one, _):
        assert "Kernel tables of router" in one.render_line(0).text
        assert one.netns == ROUTER
        assert "Reassembly of fragments  ok" in text(one)


async def test_unknown_names_from_a_forged_stream_are_text() -> None:
    kernel = KernelTables()
    kernel.feed({**tables.table("ipv4"), "values": {**IPV4, "\x1b[2J[red]": 1}})
    async with pane(made.router(), (100, 60), kernel) as (one, pilot):
        await pilot.press("t")
        assert "\x1b" not in all_text(one)
        assert "[red] 1" in all_text(one)
