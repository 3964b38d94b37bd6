# SPDX-License-Identifier: GPL-2.0-only
"""Traces with stations, built record by record."""

from __future__ import annotations

import io
import json
from typing import Any, cast

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.stream.messages import Places
from ipttrace.stream.writer import Writer
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data import messages
from tests.data.records import MONO, Array, entry, joined, leave, rule, station, tcp, udp, v4

__all__ = ["NAMES", "PACKET", "WALL", "begun", "feed", "frame", "records", "station", "stream"]

WALL = 1_700_000_000_000_000_000
PACKET = v4(17, "10.1.0.2", "192.0.2.7", udp(4000, 53, b"which address?"))
NAMES: dict[str, Any] = {
    "places": {"1": "ip_rcv_finish_core+0x1d2", "2": "nf_hook_slow+0x9a", "3": "ip_forward+0x31"},
    "stacks": {"4": ["kfree_skb_reason+0x8d", "ip_rcv_finish_core+0x1d2", "ip_rcv+0xb1"]},
    "reasons": {"12": "IP_RPFILTER", "8": "NETFILTER_DROP"},
}


def frame(kind: int, content: Any) -> Frame:
    """A frame of JSON."""
    return Frame(kind, json.dumps(content).encode())


def records(kind: int, *some: Array) -> Frame:
    """A frame of records."""
    return Frame(kind, b"".join(one.tobytes() for one in some))


def begun(places: Any = None, **hello: Any) -> Trace:
    """A trace that has begun, and knows NAMES or `places`."""
    trace = Trace(100_000)
    clock = {"mono": MONO, "wall": WALL}
    trace.feed(frame(Kind.HELLO, {"engine": "bpf", "clock": clock} | hello))
    trace.feed(frame(Kind.PLACES, NAMES if places is None else places))
    return trace


def feed(
    trace: Trace,
    call: int,
    hook: int,
    *stations: Array,
    packet: bytes = PACKET,
    verdict: int = 1,
    **fields: Any,
) -> list[Row]:
    """A batch of one call, 1 µs later for each number, with its stations; returns its rows.

    Calls with numbers that are multiples of 10 are the first of their packets.
    """
    before, at = trace.store.end, 1000 * call
    given: dict[str, Any] = {"source": record.SOURCE_BPF}
    given["flags"] = 0 if call % 10 else record.F_FIRST
    made = entry(call, at - 9000, packet, hook=hook, **given | fields)
    trace.feed(records(Kind.ENTRY, made))
    trace.feed(records(Kind.RULE, rule(call, 0, b"FORWARD", 7)))
    if stations:
        trace.feed(records(Kind.STATION, *stations))
    trace.feed(records(Kind.EXIT, leave(call, 1, verdict, at - 8500, skb=made["skb"][0])))
    return trace.store.rows(range(before, trace.store.end))


ROUTER = 4026532456
_PLACES: dict[str, Any] = {
    "places": {
        **NAMES["places"],
        "5": "ip_error+0x14c",
        "6": "__udp4_lib_rcv+0x9f1",
        "7": "arp_error_report+0x3c",
        "8": "odd_function+0x1",
    },
    "stacks": {
        "1": [
            *("kfree_skb_reason+0x8d", "ip_rcv_finish_core+0x1d2", "ip_rcv+0xb1"),
            *("__netif_receive_skb_one_core+0x87", "process_backlog+0x8c", "__napi_poll+0x2b"),
        ],
    },
    "reasons": {"3": "NO_SOCKET", "8": "NETFILTER_DROP", "12": "IP_RPFILTER", "64": "NEIGH_FAILED"},
}


def stream(**hello: Any) -> bytes:
    """A complete stream of a router: drops of every kind, and one packet with all its stations."""
    sink = io.BytesIO()
    writer = Writer(sink)
    writer.end(messages.end(**write(writer, **hello)))
    return sink.getvalue()


def write(writer: Writer, **hello: Any) -> dict[str, Any]:
    """The same without its end; returns the books."""
    clock = {"mono": MONO, "wall": WALL}
    about = {"drops": True, "netns": {str(ROUTER): "router"}, "clock": clock, "engine": "bpf"}
    writer.hello(messages.hello(**about | hello))
    writer.places(cast(Places, _PLACES))
    here: dict[str, Any] = {"netns": ROUTER, "source": record.SOURCE_BPF}
    entries, rules, exits, stations = [], [], [], []

    def call(number: int, at: int, hook: int, skb: int, packet: bytes, **fields: Any) -> None:
        verdict, first = fields.pop("verdict", 1), fields.pop("first", False)
        given = {"hook": hook, "skb": skb, "flags": record.F_FIRST if first else 0, **here}
        entries.append(entry(number, at, packet, **given | fields))
        chain = (b"PREROUTING", b"INPUT", b"FORWARD", b"OUTPUT", b"POSTROUTING")[hook]
        rules.append(rule(number, 0, chain, 3, 0 if verdict == 0 else 2, at + 100))
        alive = record.EXIT_F_ALIVE if verdict else 0
        exits.append(leave(number, 1, verdict, at + 800, skb=skb, flags=alive))

    def seen(number: int, what: str, at: int, skb: int, packet: bytes, **fields: Any) -> None:
        stations.append(station(number, what, at, packet, skb=skb, **here | fields))

    into: dict[str, Any] = {"in": b"eth0", "in_ifindex": 2}
    both = into | {"out": b"eth1", "out_ifindex": 3}
    # A packet from device to device.
    query = v4(17, "10.1.0.2", "192.0.2.7", udp(40000, 53, b"a query to the world"), ident=40)
    out = v4(17, "203.0.113.1", "192.0.2.7", udp(40000, 53, b"a query to the world"), ident=40)
    flags = record.STATION_F_TRACED | record.STATION_F_ROUTE
    route: dict[str, Any] = {"route_type": 1, "route_table": 254, "gateway_family": 2}
    route["station_flags"] = flags
    route["gateway"] = bytes((192, 0, 2, 1)) + bytes(12)
    seen(9001, "received", 1_000, 0x1000, query, traced=False, **into)
    call(10, 2_000, 0, 0x1000, query, first=True, **into)
    seen(9002, "routed", 5_000, 0x1000, query, **both | route)
    seen(9003, "forwarded", 6_000, 0x1000, query, **both)
    call(11, 7_000, 2, 0x1000, query, **both)
    call(12, 9_000, 4, 0x1000, query, out=b"eth1", out_ifindex=3)
    seen(9004, "sent", 12_000, 0x1000, out, out=b"eth1")
    # Nothing answers behind eth1: after the tables, the neighbour is not resolved.
    for number in range(7):
        at, skb = 100_000 + 300_000 * number, 0x2000 + 256 * number
        packet = v4(17, "10.1.0.2", "192.0.2.99", udp(41000, 5000, b"anybody?"), ident=number)
        call(100 + 10 * number, at, 0, skb, packet, first=True, **into)
        call(101 + 10 * number, at + 3_000, 2, skb, packet, **both)
        neighbour = record.STATION_F_TRACED | record.STATION_F_NEIGHBOUR
        lost = {"reason": 64, "place": 7, "neighbour_state": 32, "out": b"eth1"}
        seen(
            9100 + number, "dropped", at + 9_000, skb, packet, **lost | {"station_flags": neighbour}
        )
    # The reverse path filter: no table has seen these.
    for number in range(23):
        at, skb = 4_000_000 + 100_000 * number, 0x8000 + 256 * number
        packet = v4(6, f"10.9.0.{2 + number % 2}", "192.0.2.7", tcp(42000, 443, 2), ident=number)
        lost = {"reason": 12, "place": 1, "stack": 1, "in": b"eth1"}
        seen(9200 + number, "dropped", at, skb, packet, traced=False, **lost)
    # A rule's drops, which the kernel confirms.
    for number in range(5):
        at, skb = 8_000_000 + 100_000 * number, 0xF000 + 256 * number
        packet = v4(6, "10.1.0.2", "192.0.2.7", tcp(43000 + number, 23, 2), ident=number)
        call(500 + 10 * number, at, 2, skb, packet, first=True, verdict=0, **both)
        lost = {"reason": 8, "place": 2, "stack": 1}
        seen(9300 + number, "dropped", at + 1_500, skb, packet, **lost)
    # No socket, forwarding to nowhere, and what nobody knows.
    for number, (reason, place) in enumerate(((3, 6), (0, 5), (0, 8))):
        packet = v4(17, "10.1.0.3", "10.1.0.1", udp(44000, 9999, b"?"), ident=number)
        lost = {"reason": reason, "place": place, "in": b"eth0"}
        seen(9400 + number, "dropped", 9_000_000 + number, 0x20000, packet, traced=False, **lost)
    kinds = (record.ENTRY, entries), (record.RULE, rules)
    for kind, some in (*kinds, (record.STATION, stations), (record.EXIT, exits)):
        writer.records(kind, joined(*some))
    delivered = [len(entries), len(rules), len(exits)]
    counted = {"due": len(stations), "delivered": len(stations), "lost": 0, "missed": 0}
    books: dict[str, Any] = {"due": delivered, "delivered": delivered, "calls": len(exits)}
    return {**books, "stations": {**counted, "refused": 0}}
