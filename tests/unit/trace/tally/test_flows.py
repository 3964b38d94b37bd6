# SPDX-License-Identifier: GPL-2.0-only
"""Flows beyond the limit are summed up, and no packet is counted twice or lost."""

from __future__ import annotations

from collections import Counter

from ipttrace.trace.tally.flows import FlowsTally
from tests.data import synth
from tests.data.netlink_rows import IP, RULE, RecordedCalls
from tests.data.traces import synthetic


def test_flows_beyond_the_limit_are_summed_and_the_newest_stay() -> None:
    store = synthetic(synth.make(6000, flows=2000), size=500).store
    everything, few = FlowsTally(), FlowsTally(limit=300)
    for at in range(0, store.end, 200):
        for part in store.parts(at, at + 200):
            everything.feed(part)
            few.feed(part)
    flows = everything.top("rows", 10_000, store.names)
    assert len(flows) > 300
    kept = few.top("rows", 10_000, store.names)
    assert len(kept) <= 300
    other = few.other
    assert other.flows > 0
    for name in ("packets", "rows", "bytes", "drops", "cost_ns"):
        assert getattr(other, name) + sum(getattr(flow, name) for flow in kept) == sum(
            getattr(flow, name) for flow in flows
        )
    newest = Counter({flow.flow: flow.last for flow in flows}).most_common(50)
    assert {flow for flow, _ in newest} <= {flow.flow for flow in kept}


def test_a_flow_traced_over_netlink_has_no_cost() -> None:
    # GIVEN a packet that was traced over netlink only
    calls = RecordedCalls()
    calls.nft(b"filter", IP, [(b"INPUT", 1, RULE)], first=True)
    trace, tally = calls.trace("netlink"), FlowsTally()
    for part in trace.store.parts():
        tally.feed(part)
    # THEN its cost is unknown, not 0
    (flow,) = tally.top("packets", 100, trace.store.names)
    assert (flow.rows, flow.cost_ns, flow.max_cost_ns) == (1, None, None)
