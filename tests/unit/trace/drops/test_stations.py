# SPDX-License-Identifier: GPL-2.0-only
"""What happens to packets outside the tables, in the journeys of the packets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.frames import Kind, StreamError
from ipttrace.trace import query
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.records import MONO, Array, entry, leave, rule, tcp, udp, v4
from tests.data.stations import PACKET, WALL, begun, frame, records, station

ASKED = PACKET
OTHER = v4(17, "10.1.0.2", "192.0.2.7", udp(4000, 53, b"and another?"), ident=9)
SYN = v4(6, "10.1.0.2", "192.0.2.7", tcp(4000, 443, 2))
NETFILTER: dict[str, Any] = {"reason": 8, "place": 2}
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)


def call(number: int, at: int, hook: int, packet: bytes = ASKED, **fields: Any) -> Array:
    flags = 0 if number % 10 else record.F_FIRST
    given: dict[str, Any] = {"flags": flags, "source": record.SOURCE_BPF}
    return entry(number, at, packet, hook=hook, **given | fields)


def feed(trace: Trace, calls: list[Array], *stations: Array, verdict: int = 1) -> list[Row]:
    """A batch as an agent writes it, of which only the last call has the verdict."""
    before = trace.store.end
    trace.feed(records(Kind.ENTRY, *calls))
    numbers = [int(one["call"][0]) for one in calls]
    trace.feed(records(Kind.RULE, *(rule(each, 0, b"FORWARD", 7) for each in numbers)))
    if stations:
        trace.feed(records(Kind.STATION, *stations))
    verdicts = [1] * (len(calls) - 1) + [verdict]
    ends = [
        leave(int(one["call"][0]), 1, what, int(one["time"][0]) - MONO + 500, skb=one["skb"][0])
        for one, what in zip(calls, verdicts, strict=True)
    ]
    trace.feed(records(Kind.EXIT, *ends))
    return trace.store.rows(range(before, trace.store.end))


def alone(trace: Trace, *stations: Array) -> list[Row]:
    before = trace.store.end
    trace.feed(records(Kind.STATION, *stations))
    return trace.store.rows(range(before, trace.store.end))


def test_a_packets_process_comes_with_the_stream() -> None:
    # GIVEN two processes, and a third one beyond what was named
    owners = {
        "5": {"pid": 77, "comm": "na\x1bmed", "others": 2},
        "6": {"pid": 78, "comm": "", "others": 0},
    }
    trace = begun({"owners": owners})
    # WHEN packets are delivered to them, and to nobody known
    rows = alone(
        trace,
        *(
            station(number, "delivered", number, OTHER, owner=owner)
            for number, owner in ((1, 5), (2, 6), (3, 7), (4, 0))
        ),
    )
    found = [row.aside.owner for row in rows if row.aside]
    assert [owner and (owner.pid, owner.others) for owner in found] == [
        (77, 2),
        (78, 0),
        None,
        None,
    ]
    assert found[0] is not None
    assert found[0].comm.isprintable()


@pytest.mark.parametrize(
    "owner",
    [
        "nginx",
        {},
        {"pid": 0, "comm": "x", "others": 0},
        {"pid": True, "comm": "x", "others": 0},
        {"pid": 1, "comm": 7, "others": 0},
        {"pid": 1, "comm": "x", "others": -1},
        {"pid": 1 << 32, "comm": "x", "others": 0},
    ],
)
def test_a_malformed_owner_is_one_line(owner: Any) -> None:
    with pytest.raises(StreamError, match="malformed owners in the stream"):
        begun({"owners": {"5": owner}})


def test_a_drop_says_why_and_where() -> None:
    # WHEN the reverse path filter drops a packet that no table has seen
    trace = begun()
    where: dict[str, Any] = {"in": b"eth1", "netns": 4026532456, "stack": 4, "cpu": 1}
    (row,) = alone(trace, station(5, "dropped", 2000, ASKED, False, reason=12, place=1, **where))
    # THEN there is a row at once, with the kernel's names
    assert (row.station, row.drop, row.reason) == ("dropped", True, "IP_RPFILTER")
    assert row.place == "ip_rcv_finish_core+0x1d2"
    assert (row.time, row.src, row.dport, row.in_) == (WALL + 2000, "10.1.0.2", 53, "eth1")
    assert row.aside is not None
    assert row.aside.stack[-1] == "ip_rcv+0xb1"
    # AND nothing that only tables have
    assert (row.table, row.hook, row.chain, row.rulenum, row.path) == ("", "", None, None, ())
    assert (row.verdict, row.cost_ns, row.rule) == (None, None, None)
    assert (row.engine, row.journey, row.call) == ("bpf", 5, 5)


def test_a_packet_that_is_dropped_between_two_tables_ends_its_journey() -> None:
    # GIVEN a packet that PREROUTING accepted, and that was dropped before FORWARD
    trace = begun()
    dropped = station(7, "dropped", 3000, ASKED, reason=12, place=1)
    # WHEN both come in one batch
    first, second = feed(trace, [call(10, 1000, PREROUTING)], dropped)
    # THEN they are one journey, in order of time
    assert (first.table, second.station) == ("filter", "dropped")
    assert first.journey == second.journey == 10
    # AND the next packet at this address is another one
    (third,) = alone(trace, station(8, "dropped", 9000, ASKED, reason=12, place=1))
    assert third.journey == 8


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("the bytes are another packet's", {"packet": OTHER}),
        ("nf_trace is not set: it is a new packet", {"traced": False}),
        ("the program knows that it is new", {"flags": record.F_FIRST}),
        ("it is at another address", {"skb": 0x2000}),
    ],
)
def test_a_packet_that_may_be_another_one_is_another_journey(
    why: str, changes: dict[str, Any]
) -> None:
    trace = begun()
    given = {"packet": ASKED} | changes
    dropped = station(7, "dropped", 3000, reason=12, place=1, **given)
    rows = feed(trace, [call(10, 1000, PREROUTING)], dropped)
    assert [row.journey for row in rows] == [10, 7], why


def test_a_rules_drop_is_the_rules_row() -> None:
    # GIVEN a rule that drops, and the kernel's word of it
    trace = begun()
    dropped = station(7, "dropped", 3000, ASKED, stack=4, **NETFILTER)
    # WHEN both come together
    (row,) = feed(trace, [call(10, 1000, FORWARD)], dropped, verdict=0)
    # THEN there is one row, which has the reason
    assert (row.verdict, row.drop, row.station, row.rulenum) == ("DROP", True, None, 7)
    assert (row.reason, row.place) == ("NETFILTER_DROP", "nf_hook_slow+0x9a")
    assert row.aside is not None
    assert len(row.aside.stack) == 3


def test_a_kernel_without_reasons_names_the_place_of_a_rules_drop() -> None:
    trace = begun()
    dropped = station(7, "dropped", 3000, ASKED, place=2)
    (row,) = feed(trace, [call(10, 1000, FORWARD)], dropped, verdict=0)
    assert (row.reason, row.place) == (None, "nf_hook_slow+0x9a")


def test_a_rules_drop_that_comes_late_completes_the_row() -> None:
    trace = begun()
    (row,) = feed(trace, [call(10, 1000, FORWARD)], station(3, "dropped", 1, OTHER), verdict=0)[1:]
    assert row.reason is None
    assert alone(trace, station(7, "dropped", 3000, ASKED, **NETFILTER)) == []
    assert trace.store.row(row.index).reason == "NETFILTER_DROP"


def test_a_rules_drop_that_comes_before_its_row_waits() -> None:
    # GIVEN tables that are traced
    trace = begun()
    feed(trace, [call(10, 100, FORWARD, OTHER)], station(3, "dropped", 1, OTHER, False))
    # WHEN a drop comes before the call that caused it
    assert alone(trace, station(7, "dropped", 3000, ASKED, **NETFILTER)) == []
    (row,) = feed(trace, [call(20, 1000, FORWARD)], verdict=0)
    # THEN it completes it
    assert row.reason == "NETFILTER_DROP"
    # AND one without a rule becomes a row when it is sure that there is none
    assert alone(trace, station(8, "dropped", 5000, ASKED, **NETFILTER)) == []
    assert trace.feed(frame(Kind.BOOKS, {"lost": [0, 0, 0]})) == 1
    assert trace.store.row(trace.store.end - 1).station == "dropped"


def test_a_rules_drop_is_not_another_packets() -> None:
    # WHEN conntrack drops a packet behind one that a rule had dropped
    trace = begun()
    rows = feed(
        trace,
        [call(10, 1000, FORWARD)],
        station(7, "dropped", 3000, ASKED, **NETFILTER),
        station(8, "dropped", 4000, ASKED, **NETFILTER),
        verdict=0,
    )
    rows += trace.store.rows(range(trace.store.end, trace.store.end + trace.finish()))
    assert [(row.station, row.journey) for row in rows] == [(None, 10), ("dropped", 8)]


def test_a_journey_goes_from_the_device_through_the_tables_to_the_device() -> None:
    # GIVEN a forwarded packet whose source is translated, with all its stations
    trace = begun()
    out = v4(17, "203.0.113.1", "192.0.2.7", udp(61000, 53, b"which address?"))
    calls = [
        call(10, 2000, PREROUTING),
        call(11, 5000, FORWARD),
        call(12, 8000, POSTROUTING),
    ]
    stations = [
        station(1, "received", 1000, ASKED, False, in_ifindex=2),
        station(2, "routed", 4000, ASKED, station_flags=5, route_type=1, gateway_family=2),
        station(3, "forwarded", 6000, ASKED),
        station(4, "sent", 9000, out, out=b"eth1"),
    ]
    rows = feed(trace, calls, *stations)
    assert [row.station or row.hook for row in rows] == [
        *("received", "PREROUTING", "routed", "FORWARD", "forwarded", "POSTROUTING", "sent")
    ]
    # THEN it is one journey
    assert {row.journey for row in rows} == {10}
    routed = rows[2].aside
    assert routed is not None
    assert routed.has_route
    assert not routed.has_neighbour
    assert {row.drop for row in rows} == {False}


def test_what_comes_before_its_call_joins_it_later() -> None:
    # GIVEN a packet that was received, before the records of the table come
    trace = begun()
    (received,) = alone(trace, station(1, "received", 1000, ASKED, traced=False))
    assert received.journey == 1
    # WHEN they come
    feed(trace, [call(10, 2000, PREROUTING)])
    # THEN both are one journey
    assert trace.store.row(received.index).journey == 10


def test_an_established_connections_packet_meets_its_first_table_after_routing() -> None:
    # GIVEN a packet that no table of PREROUTING sees, as the nat table of a known connection
    trace = begun()
    stations = [
        station(1, "received", 1000, ASKED, traced=False),
        station(2, "routed", 4000, ASKED, traced=False),
        station(3, "forwarded", 6000, ASKED),
    ]
    rows = feed(trace, [call(10, 5000, FORWARD)], *stations)
    assert [row.station for row in rows] == ["received", "routed", None, "forwarded"]
    assert {row.journey for row in rows} == {10}
    # AND what this host sends itself is another packet
    alone(trace, station(4, "received", 11_000, ASKED, traced=False))
    (sent,) = feed(trace, [call(20, 12_000, OUTPUT)])
    assert sent.journey == 20
    assert trace.store.row(sent.index - 1).journey == 4


def test_nat_of_both_ends_is_known_from_the_connection() -> None:
    trace = begun()
    out = v4(17, "203.0.113.1", "172.16.0.9", udp(61000, 5353, b"which address?"))
    calls = [call(10, 2000, PREROUTING, ct=0x77)]
    (_, sent) = feed(trace, calls, station(4, "sent", 9000, out, ct=0x77))
    assert sent.journey == 10
    (_, sent) = feed(trace, [call(20, 12000, PREROUTING)], station(5, "sent", 19000, out))
    assert sent.journey == 5


def test_a_received_packet_and_its_drop_without_tables_are_one_journey() -> None:
    trace = begun()
    rows = alone(
        trace,
        station(1, "received", 1000, SYN, traced=False),
        station(2, "dropped", 2000, SYN, traced=False, reason=12, place=1),
        station(3, "received", 3000, SYN, traced=False),
        station(4, "delivered", 4000, SYN, traced=False),
        station(5, "received", 5000, SYN, traced=False),
    )
    assert [row.journey for row in rows] == [1, 1, 3, 3, 5]


def test_queries_find_drops_wherever_they_are() -> None:
    trace = begun()
    feed(trace, [call(10, 1000, FORWARD)], verdict=0)
    feed(trace, [call(20, 21000, FORWARD)])
    alone(
        trace,
        station(7, "dropped", 30_000_000, ASKED, reason=12, place=1, cpu=3),
        station(8, "received", 40_000_000, ASKED, traced=False),
    )
    context = query.context_of(trace.store)

    def found(text: str) -> list[int]:
        mask = query.compile(text).mask
        return [
            int(at) + part.first
            for part in trace.store.parts()
            for at in np.flatnonzero(mask(part, context))
        ]

    assert found("drop") == found("drop=yes") == found("drop=true") == [0, 2]
    assert found("drop=no") == [1, 3]
    assert found("verdict=DROP") == [0]
    assert found("reason=IP_RPFILTER") == found("reason~rpf") == [2]
    assert found("place~ip_rcv_finish") == [2]
    assert found("station=dropped") == [2]
    assert found("station!=none") == [2, 3]
    assert found("station=none") == found("tables=legacy") == found("table=filter") == [0, 1]
    assert found("verdict=none") == found("hook=none") == found("tables=none") == [2, 3]
    assert found("cost=none") == found("path=none") == found("chain=none") == [2, 3]


def test_numbers_without_names_are_unknown_and_reasons_are_numbers() -> None:
    trace = begun({"places": {}, "reasons": {}, "stacks": {}})
    (row,) = alone(trace, station(5, "dropped", 0, ASKED, reason=77, place=9, stack=3))
    assert (row.reason, row.place) == ("77", None)
    assert row.aside is not None
    assert row.aside.stack == ()


def test_a_forged_station_is_a_row_that_says_what_it_is() -> None:
    trace = begun({"places": {"1": "\x1b[2J" + "x" * 5000}, "reasons": {"1": "\u202eX"}})
    forged = station(5, "dropped", 0, b"\xff" * 128, reason=1, place=1, caplen=65535)
    forged["what"] = 0
    other = station(6, "dropped", 0, b"")
    other["what"] = 99
    rows = alone(trace, forged, other)
    assert {row.station for row in rows} == {"255", "99"}
    (first,) = (row for row in rows if row.station == "255")
    assert first.reason == "\\u202eX"
    assert first.place is not None
    assert first.place.startswith("\\x1b[2J")
    assert len(first.place) == 200


@pytest.mark.parametrize(
    "malformed",
    [
        {"places": []},
        {"places": {"x": "ip_rcv"}},
        {"places": {"1": 7}},
        {"stacks": {"1": "ip_rcv"}},
        {"stacks": {"1": [1]}},
        {"reasons": {"-1": "X"}},
        {"reasons": {"1" * 21: "X"}},
    ],
)
def test_malformed_places_end_the_stream_with_a_message(malformed: Any) -> None:
    with pytest.raises(StreamError, match="malformed"):
        begun().feed(frame(Kind.PLACES, malformed))


def test_endless_places_take_no_endless_memory() -> None:
    trace = begun()
    for start in range(1, 200_001, 20_000):
        names = {str(at): f"f{at}+0x1" for at in range(start, start + 20_000)}
        trace.feed(frame(Kind.PLACES, {"places": names}))
    assert len(trace.store.names) < 100_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["call", "station", "late", "books"]),
            st.integers(0, 2),
            st.integers(0, 3),
            st.integers(0, 255),
            st.integers(0, 255),
            st.booleans(),
            st.integers(0, 1),
        ),
        max_size=30,
    )
)
def test_every_station_is_counted(steps: list[Any]) -> None:
    trace = begun()
    stations = calls = 0
    for number, (kind, skb, bytes_, what, flags, netfilter, verdict) in enumerate(steps, 1):
        packet = (ASKED, OTHER, SYN, b"")[bytes_]
        given = {"skb": skb, "flags": flags & 1, **(NETFILTER if netfilter else {})}
        made = station(1000 + number, "dropped", 1000 * number, packet, flags & 2 != 0, **given)
        made["what"] = what % 9
        if kind == "books":
            trace.feed(frame(Kind.BOOKS, {}))
        elif kind == "station":
            alone(trace, made)
            stations += 1
        else:
            fields = {"skb": skb, "hook": bytes_, "source": record.SOURCE_BPF, "flags": flags & 1}
            some = [made] if kind == "late" else []
            feed(trace, [entry(number, 900 * number, packet, **fields)], *some, verdict=verdict)
            stations += len(some)
            calls += 1
    trace.finish()
    assert trace.store.end == trace.rows
    rows = trace.store.rows(range(trace.store.end))
    completed = sum(row.station is None and row.reason is not None for row in rows)
    assert sum(row.station is not None for row in rows) + completed == stations
    assert sum(row.station is None for row in rows) == calls
