# SPDX-License-Identifier: GPL-2.0-only
"""A packet stays the same one in another network namespace, and inside a tunnel."""

from __future__ import annotations

from typing import Any

from ipttrace.stream import record
from ipttrace.trace.store import Store
from ipttrace.trace.story import story
from ipttrace.tui.detail.lines import KnownNames, lines
from tests.data.records import udp, v4
from tests.data.stations import begun, station
from tests.unit.trace.drops.test_stations import ASKED, OUTPUT, POSTROUTING, PREROUTING, call, feed

NATED = v4(17, "203.0.113.1", "192.0.2.7", udp(61000, 53, b"which address?"))
OUTER = v4(47, "203.0.113.1", "203.0.113.2", b"\0\0\x08\0" + ASKED)
NAMES = {1: "container", 2: "host", 3: "outside"}


def in_netns(number: int, **fields: Any) -> dict[str, Any]:
    return {"netns": number, **fields}


def told(store: Store, index: int) -> str:
    """The detail of a row, as text."""
    found = story(store, index)
    assert found is not None
    made = lines(found, 160, KnownNames(netns=NAMES))
    return "\n".join("".join(text for text, _ in line.cells) for line in made)


def test_stations_and_calls_of_three_namespaces_are_one_journey() -> None:
    # GIVEN a packet from a container, whose nf_trace the kernel clears on each way across
    trace = begun()
    calls = [
        call(10, 1000, OUTPUT, **in_netns(1)),
        call(11, 4000, PREROUTING, **in_netns(2)),
        call(12, 5000, POSTROUTING, **in_netns(2)),
        call(13, 8000, PREROUTING, NATED, **in_netns(3)),
    ]
    stations = [
        station(1, "sent", 2000, ASKED, **in_netns(1, out=b"eth0")),
        station(2, "received", 3000, ASKED, traced=False, **in_netns(2)),
        station(3, "sent", 6000, NATED, **in_netns(2, out=b"wan")),
        station(4, "received", 7000, NATED, traced=False, **in_netns(3)),
        # Behind the last table, and without nf_trace in a fourth namespace
        station(5, "sent", 9000, NATED, **in_netns(3)),
        station(6, "received", 9500, NATED, traced=False, **in_netns(4)),
        station(7, "routed", 9600, NATED, traced=False, **in_netns(4)),
        # The next one at this address.
        station(8, "received", 9900, NATED, traced=False, flags=record.F_FIRST, **in_netns(2)),
    ]
    rows = feed(trace, calls, *stations)
    # THEN it is one journey, and the next packet another one
    assert [row.journey for row in rows] == [10] * 11 + [8]
    # AND the detail reads from namespace to namespace
    text = told(trace.store, rows[0].index)
    assert "netns container → host" in text
    assert "netns host → outside" in text
    places = [text.index(word) for word in ("container", "container → host", "host → outside")]
    assert places == sorted(places)


def test_a_packet_in_a_tunnel_keeps_its_journey_with_both_headers() -> None:
    # GIVEN a packet that a tunnel's device takes, and that leaves with another header
    trace = begun()
    calls = [call(10, 1000, POSTROUTING), call(11, 4000, OUTPUT, OUTER)]
    stations = [
        station(1, "sent", 2000, ASKED, out=b"gre0"),
        station(2, "routed", 3000, OUTER, traced=False),
        station(3, "sent", 5000, OUTER, out=b"eth0"),
    ]
    rows = feed(trace, calls, *stations)
    assert {row.journey for row in rows} == {10}
    assert [row.src for row in rows] == ["10.1.0.2", "10.1.0.2", *["203.0.113.1"] * 3]
    # BUT between calls of two journeys it is another packet's
    trace = begun()
    calls[1] = call(20, 4000, OUTPUT, OUTER)
    rows = feed(trace, calls, *stations)
    assert [row.journey for row in rows] == [10, 10, 2, 20, 20]
