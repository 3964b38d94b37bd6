# SPDX-License-Identifier: GPL-2.0-only
"""A row's flow pushed into the kernel: the expression takes the flow and nothing else."""

from __future__ import annotations

import pytest

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.stream.frames import read_file
from ipttrace.trace.query.pcap import flow_expression
from ipttrace.trace.session import Trace
from tests.data.netlink_rows import Told
from tests.paths import LAB

RECORDING = LAB


@pytest.fixture(scope="module")
def trace() -> Trace:
    trace = Trace()
    for frame in read_file(RECORDING):
        trace.feed(frame)
    return trace


def test_every_flow_of_a_recording_becomes_an_expression_that_libpcap_takes(trace: Trace) -> None:
    store = trace.store
    flows = {}
    for row in store.rows(range(store.first, store.end)):
        flows.setdefault((row.flow, row.proto, row.src), row)
    assert len(flows) > 10
    for row in flows.values():
        text = flow_expression(store.raw(row.index), row)
        # THEN the kernel could take it: it is not empty, and libpcap makes a program of it
        assert text
        assert pcapfilter.compile(text)
        assert row.src in text


def test_a_translated_flow_is_filtered_on_both_sides_of_the_translation(trace: Trace) -> None:
    # GIVEN a packet whose destination was rewritten
    store = trace.store
    rows = store.rows(range(store.first, store.end))
    row = next(row for row in rows if row.ct_orig_dst and row.ct_orig_dst != row.dst and row.sport)
    text = flow_expression(store.raw(row.index), row)
    # THEN both destinations are in the filter
    assert f"host {row.dst}" in text
    assert f"host {row.ct_orig_dst}" in text


def test_a_packet_on_a_bridge_is_filtered_by_the_addresses_that_it_has() -> None:
    told = Told()
    told.nft(b"b", 7, [(b"in", 1, 0)], family=7, first=True)
    told.legacy(b"filter", [(b"INPUT", 1, 0)], first=True)
    store = told.trace("netlink").store
    bridged, routed = (flow_expression(store.raw(seq), store.row(seq)) for seq in range(2))
    assert bridged == routed
    assert pcapfilter.compile(bridged)
