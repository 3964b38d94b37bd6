# SPDX-License-Identifier: GPL-2.0-only
"""Where packets died, counted by reason and place, and by rule."""

from __future__ import annotations

from dataclasses import replace

from ipttrace.stream.frames import Kind
from ipttrace.trace import query
from ipttrace.trace.session import Trace
from ipttrace.trace.tally import Tallies
from ipttrace.trace.tally.drops import DropsTally
from tests.data.records import udp, v4
from tests.data.stations import PACKET, begun, feed, records, station

OTHER = v4(17, "10.1.0.9", "192.0.2.7", udp(4001, 53, b"another"))


def _trace() -> Trace:
    """Seven packets die in routing, of which five are one flow's; a rule drops three."""
    trace = begun()
    lost = [
        station(100 + at, "dropped", 100_000 * at, PACKET if at < 5 else OTHER, False, skb=at)
        for at in range(1, 8)
    ]
    for one in lost:
        one["reason"], one["place"] = 12, 1
    trace.feed(records(Kind.STATION, *lost))
    for number in (10, 20, 30):
        drop = station(200 + number, "dropped", 1000 * number, PACKET, reason=8, place=2)
        feed(trace, number, 2, drop, verdict=0)
    trace.feed(records(Kind.STATION, station(300, "received", 0, OTHER, False, skb=77)))
    return trace


def _counted(trace: Trace, text: str = "") -> Tallies:
    mask = None
    if text:
        compiled = query.compile(text)
        mask = lambda part: compiled.mask(part, query.context_of(trace.store))  # noqa: E731
    tallies = Tallies(mask=mask)
    while tallies.pull(trace.store):
        pass
    return tallies


def test_drops_are_counted_by_reason_and_place_and_by_rule() -> None:
    trace = _trace()
    drops = _counted(trace).drops
    outside, rule = drops.top("drops", 10, trace.store.names)
    assert (outside.reason, outside.place) == ("IP_RPFILTER", "ip_rcv_finish_core+0x1d2")
    assert (outside.drops, outside.by_rule, outside.table, outside.step) == (7, False, "", None)
    # A rule's drops are the rule's, whatever the kernel calls them.
    assert (rule.drops, rule.by_rule, rule.reason, rule.table) == (3, True, "", "filter")
    assert rule.step is not None
    assert (rule.step.chain, rule.step.rulenum) == ("FORWARD", 7)
    assert trace.store.row(outside.seq).reason == "IP_RPFILTER"
    # The flow that lost most, and its share.
    assert outside.flow_drops == 4
    assert trace.store.row(outside.flow_seq).src == "10.1.0.2"
    (first, _) = drops.top("drops", 10, trace.store.names, ascending=True)
    assert first.by_rule


def test_drops_follow_the_filter() -> None:
    trace = _trace()
    (only,) = _counted(trace, "src=10.1.0.9").drops.top("drops", 10, trace.store.names)
    assert (only.drops, only.reason) == (3, "IP_RPFILTER")
    assert trace.store.row(only.seq).src == "10.1.0.9"


def test_what_happens_outside_the_tables_is_no_table_and_has_no_cost() -> None:
    trace = _trace()
    tallies = _counted(trace)
    assert [one.table for one in tallies.totals.hooks(trace.store.names)] == ["filter"]
    assert tallies.totals.rows == 11
    assert tallies.totals.outcomes.tolist()[0] == 10
    flows = {one.src: one for one in tallies.flows.top("drops", 10, trace.store.names)}
    assert (flows["10.1.0.2"].drops, flows["10.1.0.9"].drops) == (7, 3)
    assert flows["10.1.0.9"].dropped_why == "IP_RPFILTER"
    assert flows["10.1.0.9"].cost_ns is None
    assert flows["10.1.0.9"].verdict == "DROP"
    assert flows["10.1.0.2"].dropped_table == "filter" or flows["10.1.0.2"].dropped_why


def test_lines_beyond_the_limit_stay_in_the_sum() -> None:
    trace = begun()
    for at in range(100):
        made = station(100 + at, "dropped", 100 * at, PACKET, False, skb=at)
        made["reason"] = 1000 + at
        trace.feed(records(Kind.STATION, made))
    tally = DropsTally(limit=16)
    for part in trace.store.parts():
        for at in range(0, len(part), 10):
            some = {name: column[at : at + 10] for name, column in part.columns.items()}
            some_rows = replace(part, first=part.first + at, columns=some)
            tally.feed(replace(some_rows, begins=part.begins[:10], ends=part.ends[:10]))
    held = tally.top("drops", 100, trace.store.names)
    assert len(held) <= 16
    assert sum(one.drops for one in held) + tally.other == 100
