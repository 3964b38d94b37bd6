# SPDX-License-Identifier: GPL-2.0-only
"""A row's flow as a pcap-filter expression for the kernel."""

from __future__ import annotations

import pytest

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.trace.query.pcap import flow_expression
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.netlink_rows import RecordedCalls
from tests.data.traces import replay
from tests.paths import LAB

RECORDING = LAB


@pytest.fixture(scope="module")
def trace() -> Trace:
    return replay(RECORDING)


def test_the_expression_of_every_flow_in_a_recording_compiles(trace: Trace) -> None:
    store = trace.store
    flows: dict[tuple[int, str, str | None], Row] = {}
    for row in store.rows(range(store.first, store.end)):
        flows.setdefault((row.flow, row.proto, row.src), row)
    assert len(flows) > 10
    for row in flows.values():
        text = flow_expression(store.raw(row.index), row)
        assert text
        assert pcapfilter.compile(text)
        assert row.src in text


def test_the_expression_of_a_natted_flow_has_both_destinations(trace: Trace) -> None:
    # GIVEN a packet after DNAT
    store = trace.store
    rows = store.rows(range(store.first, store.end))
    row = next(row for row in rows if row.ct_orig_dst and row.ct_orig_dst != row.dst and row.sport)
    text = flow_expression(store.raw(row.index), row)
    assert f"host {row.dst}" in text
    assert f"host {row.ct_orig_dst}" in text


def test_the_expression_of_a_bridged_packet_is_that_of_a_routed_one() -> None:
    calls = RecordedCalls()
    calls.nft(b"b", 7, [(b"in", 1, 0)], family=7, first=True)
    calls.legacy(b"filter", [(b"INPUT", 1, 0)], first=True)
    store = calls.trace("netlink").store
    bridged, routed = (flow_expression(store.raw(seq), store.row(seq)) for seq in range(2))
    assert bridged == routed
    assert pcapfilter.compile(bridged)
