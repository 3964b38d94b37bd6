# SPDX-License-Identifier: GPL-2.0-only
"""A connection through NAT is one flow, though netlink does not report what NAT did."""

from __future__ import annotations

import pytest

from ipttrace.tui.app import TraceApp
from tests.data import streams
from tests.data.netlink_rows import INET, NETNS, RULE, RecordedCalls
from tests.data.records import tcp, v4
from tests.tui.harness import live, more, screen_text, until
from tests.tui.replayed import listed, settled

CLIENT, GATEWAY, SERVER = ("10.1.0.2", 40004), ("10.2.0.1", 40004), ("10.2.0.2", 443)
OTHER = ("10.1.0.9", 50000)
SERVERS_NETNS = NETNS + 1

# Each packet: its namespace, and the ends that each chain on its way sees.
REQUEST = (NETNS, [(CLIENT, SERVER)] * 4)
AT_SERVER = (SERVERS_NETNS, [(GATEWAY, SERVER)] * 2)
ANSWER_OF_SERVER = (SERVERS_NETNS, [(SERVER, GATEWAY)])
ANSWER = (NETNS, [(SERVER, GATEWAY)] * 2 + [(SERVER, CLIENT)] * 3)
STRANGER = (NETNS, [(OTHER, SERVER)] * 3)
PACKETS = [REQUEST, AT_SERVER, STRANGER, ANSWER_OF_SERVER, ANSWER]
STRANGERS = [6, 7, 8]
ROWS = 15
MINE = [row for row in range(ROWS) if row not in STRANGERS]


def calls() -> RecordedCalls:
    """Those packets, one rule a chain."""
    made = RecordedCalls()
    for number, (netns, ways) in enumerate(PACKETS):
        for at, ((src, sport), (dst, dport)) in enumerate(ways):
            packet = v4(6, src, dst, tcp(sport, dport, 2))
            made.nft(
                b"t",
                INET,
                [(b"c", 1, RULE)],
                first=at == 0,
                packet=packet,
                netns=netns,
                skb=0x1000 + number,
            )
    return made


def part(first: int, end: int) -> bytes:
    """The frames of some of the rows."""
    made, some = calls(), RecordedCalls()
    some.entries, some.rules = made.entries[first:end], made.rules[first:end]
    some.exits = made.exits[first:end]
    return some.data()


NETLINK = streams.hello(engine="netlink")


@pytest.mark.parametrize("row", MINE)
async def test_f_on_any_row_of_a_flow_shows_all_of_its_rows_and_x_hides_them(row: int) -> None:
    async with live(NETLINK, part(0, ROWS), rows=ROWS) as (_, app, pilot):
        app.rows.move_to(row)
        await pilot.press("f")
        await settled(app, pilot)
        assert listed(app) == MINE
        await pilot.press("C")
        await settled(app, pilot)
        app.rows.move_to(row)
        await pilot.press("x")
        await settled(app, pilot)
        assert listed(app) == STRANGERS


@pytest.mark.parametrize("split", [4, 6, 9, 11])
@pytest.mark.parametrize("key", ["f", "x"])
async def test_a_filter_by_flow_follows_what_later_rows_show_of_nat(key: str, split: int) -> None:
    # GIVEN the flow of the request has been filtered by, before any packet showed the NAT
    async with live(NETLINK, part(0, split), rows=split) as (agent, app, pilot):
        app.rows.move_to(0)
        await pilot.press(key)
        await settled(app, pilot)
        # WHEN the answer shows it
        await more(agent, app, pilot, part(split, ROWS), ROWS)
        # THEN rows from before it are in the list, or gone from it
        expected = MINE if key == "f" else STRANGERS
        await until(pilot, lambda: listed(app) == expected)


def flows(app: TraceApp) -> list[str]:
    return [line for line in screen_text(app) if "→" in line and "10." in line]


@pytest.mark.parametrize("split", [4, 6, ROWS])
async def test_the_flows_view_lists_a_flow_once_as_its_first_packet_had_it(split: int) -> None:
    async with live(NETLINK, part(0, split), rows=split, size=(100, 30)) as (agent, app, pilot):
        await pilot.press("3")
        if split < ROWS:
            await until(pilot, lambda: app.counting.all.counted == split)
            await more(agent, app, pilot, part(split, ROWS), ROWS)
        await until(pilot, lambda: app.counting.all.counted == ROWS)
        app.refresh_bars()
        await until(pilot, lambda: len(flows(app)) == 2)
        (mine,) = (line for line in flows(app) if "10.1.0.2:40004 → 10.2.0.2:443" in line)
        # Each packet counts once: one of each direction in each namespace.
        assert mine.split()[0] == "4"
