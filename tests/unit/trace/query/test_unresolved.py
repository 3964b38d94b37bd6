# SPDX-License-Identifier: GPL-2.0-only
"""`unresolved` matches the accepted rows whose next hop does not answer, as of now."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from ipttrace.stream import record
from ipttrace.trace import query
from ipttrace.trace.query.unresolved import next_hop
from ipttrace.trace.query.until import Until
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from tests.data import neighbours as made
from tests.data.neighbours import CLIENT, FAILED, INCOMPLETE, REACHABLE, ROUTER
from tests.data.records import entry, leave, rule, udp, v4
from tests.data.traces import feed_records

# In tests.data.neighbours: 10.0.0.9 is FAILED, 10.0.0.10 INCOMPLETE, 10.0.0.2 REACHABLE,
# 10.0.0.77 absent, 10.7.1.1 behind 10.0.0.9, and so is 203.0.113.1 if it leaves by lan0.
V4 = ("10.0.0.9", "10.0.0.10", "10.0.0.2", "10.0.0.77", "10.7.1.1", "10.7.7.7", "203.0.113.1")
V6 = ("2001:db8::9", "2001:db8::2")
SILENT = {
    **dict.fromkeys(("10.0.0.9", "10.0.0.10", "10.7.1.1", "203.0.113.1"), "ARP"),
    "2001:db8::9": "ND",
}
NEIGHBOURS = [
    *made.NEIGHBOURS,
    made.neighbour("2001:db8::9", INCOMPLETE),
    made.neighbour("2001:db8::2", REACHABLE),
]
ROUTES = [*made.ROUTES, made.route("2001:db8::/64", (2, None))]

DROP, ACCEPT = 0, 1
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
LEAVING = {(b"filter", FORWARD), (b"filter", OUTPUT), (b"filter", POSTROUTING)} | {
    (table, POSTROUTING) for table in (b"mangle", b"nat", b"t")
}


def v6(dst: str) -> bytes:
    head = bytes.fromhex("60000000000811ff")
    return head + ip_address("fe80::1").packed + ip_address(dst).packed + udp(1, 2)


def namespace(netns: int = ROUTER) -> dict[str, Any]:
    return made.namespace(netns, neighbours=NEIGHBOURS, routes=ROUTES)


def packets(trace: Trace, netns: int = ROUTER) -> dict[int, str]:
    """Feeds rows of each kind; returns what `unresolved` is for each, by what was fed."""
    expected: dict[int, str] = {}
    tables, hooks, verdicts = (b"filter", b"mangle", b"nat", b"t"), range(5), (DROP, ACCEPT)
    cases = itertools.product((*V4, *V6), tables, hooks, verdicts, (b"lan0", b""))
    entries, rules, exits = [], [], []
    for call, (dst, table, hook, verdict, out) in enumerate(cases, 1):
        six = ":" in dst
        packet = v6(dst) if six else v4(17, "10.9.0.1", dst, udp(1, 2))
        family = 10 if six else 2
        more: dict[str, Any] = {
            "table": table,
            "hook": hook,
            "out": out,
            "netns": netns,
            "family": family,
        }
        entries.append(entry(call, packet=packet, **more))
        rules.append(rule(call, 0, b"c", 1))
        exits.append(leave(call, 1, verdict))
        leaves = (table, hook) in LEAVING and verdict == ACCEPT and out
        expected[call] = SILENT.get(dst, "") if leaves else ""
    feed_records(trace, entries, rules, exits)
    trace.finish()
    return expected


def matched(store: Store, text: str) -> set[int]:
    """The calls of the rows that a query matches."""
    asked, context = query.compile(text), query.context_of(store)
    return {
        int(call)
        for part in store.parts()
        for call in part.columns["call"][np.flatnonzero(asked.mask(part, context))]
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no_arp", {"ARP"}),
        ("no_nd", {"ND"}),
        ("unresolved", {"ARP", "ND"}),
        ("unresolved=arp", {"ARP"}),
        ("unresolved!=ARP", {"ND"}),
        ("unresolved in ARP,ND", {"ARP", "ND"}),
        ("unresolved=none", {""}),
        ("unresolved in ND,none", {"ND", ""}),
        ("not unresolved", {""}),
        ("unresolved~.", {"ARP", "ND"}),
        ("unresolved~^", {"ARP", "ND"}),
        ("unresolved!~A", {"ND"}),
    ],
)
def test_a_row_is_unresolved_if_it_leaves_towards_a_neighbour_that_does_not_answer(
    text: str, wanted: set[str]
) -> None:
    # GIVEN rows to neighbours in every state, in every hook, table and with either verdict
    trace = Trace()
    trace.neighbours.feed(namespace())
    expected = packets(trace)
    assert set(expected.values()) == {"", "ARP", "ND"}
    # THEN the query matches those that were accepted and leave
    assert matched(trace.store, text) == {call for call in expected if expected[call] in wanted}
    # AND so does what marks a single row
    for row in trace.store.rows(range(trace.store.end)):
        hop = next_hop(row, trace.store.neighbours)
        assert ("" if hop is None else hop.unresolved) == expected[row.call]


def test_nothing_is_unresolved_where_neighbours_are_unknown() -> None:
    # GIVEN neighbours of another namespace, or of another host
    trace = Trace()
    trace.neighbours.feed(namespace(CLIENT))
    Trace(store=trace.store, host=1).neighbours.feed(namespace())
    expected = packets(trace)
    assert not matched(trace.store, "unresolved")
    assert matched(trace.store, "unresolved=none") == set(expected)


def test_a_row_without_a_verdict_is_not_unresolved() -> None:
    trace = Trace()
    trace.neighbours.feed(namespace())
    packet = v4(17, "10.9.0.1", "10.0.0.9", udp(1, 2))
    of: dict[str, Any] = {"netns": ROUTER, "out": b"lan0", "hook": POSTROUTING}
    ended = leave(1, 1, flags=record.EXIT_F_NO_VERDICT)
    feed_records(trace, [entry(1, packet=packet, **of)], [rule(1, 0, b"c", 1)], [ended])
    trace.finish()
    assert len(trace.store) == 1
    assert not matched(trace.store, "unresolved")


def test_the_same_row_matches_while_the_neighbour_does_not_answer() -> None:
    # GIVEN rows that came while their neighbour was resolved
    trace = Trace()
    trace.neighbours.feed(made.namespace(neighbours=[made.neighbour("10.0.0.9", REACHABLE)]))
    expected = packets(trace)
    silent = {call for call, text in expected.items() if text == "ARP"}
    assert not matched(trace.store, "no_arp")
    # WHEN it ceases to answer THEN they match; and not any more when it answers again
    trace.neighbours.feed(made.news(1, neighbours_changed=[made.neighbour("10.0.0.9", FAILED)]))
    assert matched(trace.store, "no_arp")
    assert matched(trace.store, "no_arp") < silent
    trace.neighbours.feed(made.news(2, neighbours_gone=[[4, "10.0.0.9", 2, False]]))
    assert not matched(trace.store, "no_arp")


@pytest.mark.parametrize(
    ("more", "changes"),
    [
        ({}, False),
        ({"neighbours_changed": [made.neighbour("10.0.0.2", made.STALE)]}, False),
        ({"neighbours_changed": [made.neighbour("10.0.0.9", FAILED, probes=3)]}, False),
        ({"neighbours_changed": [made.neighbour("10.0.0.2", FAILED)]}, True),
        ({"neighbours_changed": [made.neighbour("10.0.0.9", REACHABLE)]}, True),
        ({"neighbours_changed": [made.neighbour("10.0.0.88", INCOMPLETE)]}, True),
        ({"neighbours_gone": [[4, "10.0.0.9", 2, False]]}, True),
        ({"neighbours_gone": [[4, "10.0.0.99", 2, False]]}, False),
        ({"routes": made.ROUTES}, False),
        ({"routes": made.ROUTES[:3]}, True),
        ({"devices_changed": [made.device(2, "lan0", mtu=9000)]}, False),
        ({"devices_changed": [made.device(2, "lan1")]}, True),
        ({"devices_changed": [made.device(2, "lan0", 0x80)]}, True),
    ],
)
def test_only_news_that_can_change_a_next_hop_have_rows_judged_again(
    more: dict[str, Any], changes: bool
) -> None:
    trace = Trace()
    trace.neighbours.feed(made.namespace())
    before = trace.neighbours.reach_version
    trace.neighbours.feed(made.news(1, **more))
    assert (trace.neighbours.reach_version != before) == changes


def test_queries_know_whether_neighbours_change_them() -> None:
    for text in ("no_arp", "not no_nd", "tcp and (drop or not unresolved)"):
        assert query.compile(text).changes
    for text in ("", "drop", "not (tcp and port=1)"):
        assert not query.compile(text).changes


def test_until_ends_with_the_first_row_that_is_unresolved_when_it_comes() -> None:
    trace = Trace()
    until = Until(query.compile("no_arp"))
    trace.neighbours.feed(namespace())
    expected = packets(trace)
    found = until.feed(trace.store)
    assert found is not None
    first = min(call for call, text in expected.items() if text == "ARP")
    assert trace.store.row(found).call == first
