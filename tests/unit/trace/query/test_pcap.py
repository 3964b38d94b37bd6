# SPDX-License-Identifier: GPL-2.0-only
"""A row's flow as a pcap-filter expression for the kernel."""

from __future__ import annotations

from collections import defaultdict

import pytest

from ipttrace.capture.filter import nft
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.trace.query.pcap import flow_expression
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.netlink_rows import INET, RULE, RecordedCalls
from tests.data.records import tcp, v4
from tests.data.traces import replay
from tests.paths import LAB

RECORDING = LAB


@pytest.fixture(scope="module")
def trace() -> Trace:
    return replay(RECORDING)


def test_the_expression_of_each_flow_in_a_recording_takes_all_packets_of_the_flow(
    trace: Trace,
) -> None:
    store = trace.store
    flows: dict[int, list[Row]] = defaultdict(list)
    for row in store.rows(range(store.first, store.end)):
        if row.src:
            flows[row.flow].append(row)
    assert len(flows) > 10
    for rows in flows.values():
        texts = {flow_expression(store, row) for row in rows[:: max(len(rows) // 5, 1)]}
        for text in texts:
            program = pcapfilter.compile(text)
            for row in rows:
                raw = store.raw(row.index)
                packet = bytes(raw["packet"][: int(raw["caplen"])])
                if row.frag is None and row.icmp is None:
                    assert pcapfilter.matches(program, packet), (text, row)


CLIENT, ROUTER = ("10.1.0.2", 40001), ("10.1.0.1", 8080)
GATEWAY, SERVER = ("10.2.0.1", 40001), ("10.2.0.2", 80)
TO_SERVER = [(CLIENT, ROUTER), (CLIENT, SERVER), (GATEWAY, SERVER)]
BACK = [(SERVER, GATEWAY), (SERVER, CLIENT), (ROUTER, CLIENT)]


def _packet(src: tuple[str, int], dst: tuple[str, int]) -> bytes:
    return v4(6, src[0], dst[0], tcp(src[1], dst[1], 2))


def test_over_netlink_a_flow_s_expression_has_all_ends_that_its_rows_show() -> None:
    # GIVEN a connection behind DNAT and MASQUERADE, of which no row has conntrack's tuples
    calls = RecordedCalls()
    for number, ways in enumerate((TO_SERVER, BACK)):
        for at, way in enumerate(ways):
            calls.nft(
                b"t", INET, [(b"c", 1, RULE)], first=at == 0, packet=_packet(*way), skb=7 + number
            )
    store = calls.trace("netlink").store
    texts = {flow_expression(store, row) for row in store.rows(range(6))}
    # WHEN any of its rows is chosen THEN its packets match on both sides, in both directions
    for text in texts:
        program = pcapfilter.compile(text)
        assert all(pcapfilter.matches(program, _packet(*way)) for way in TO_SERVER + BACK)
        # AND a later fragment of it
        later = v4(6, CLIENT[0], SERVER[0], bytes(8), frag=185)
        assert pcapfilter.matches(program, later)
        # AND an ICMP error that quotes one of them
        error = v4(1, "10.9.9.9", GATEWAY[0], b"\x0b\0\0\0\0\0\0\0" + _packet(GATEWAY, SERVER))
        assert pcapfilter.matches(program, error)
        # BUT not others between the same hosts
        for src, dst in ((("10.1.0.2", 40002), SERVER), (CLIENT, ("10.2.0.2", 8080))):
            assert not pcapfilter.matches(program, _packet(src, dst))
        other = v4(1, "10.9.9.9", GATEWAY[0], b"\x0b\0\0\0\0\0\0\0" + _packet(SERVER, ROUTER))
        assert not pcapfilter.matches(program, other)
        # AND nftables can evaluate it, so that nothing else is traced
        assert nft.compile(program).exact


def test_the_expression_of_a_natted_flow_has_both_destinations(trace: Trace) -> None:
    # GIVEN a packet after DNAT
    store = trace.store
    rows = store.rows(range(store.first, store.end))
    row = next(row for row in rows if row.ct_orig_dst and row.ct_orig_dst != row.dst and row.sport)
    text = flow_expression(store, row)
    assert f"host {row.dst}" in text
    assert f"host {row.ct_orig_dst}" in text


def test_the_expression_of_a_bridged_packet_is_that_of_a_routed_one() -> None:
    calls = RecordedCalls()
    calls.nft(b"b", 7, [(b"in", 1, 0)], family=7, first=True)
    calls.legacy(b"filter", [(b"INPUT", 1, 0)], first=True)
    store = calls.trace("netlink").store
    bridged, routed = (flow_expression(store, store.row(seq)) for seq in range(2))
    assert bridged == routed
    assert pcapfilter.compile(bridged)
