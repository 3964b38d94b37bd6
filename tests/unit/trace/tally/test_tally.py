# SPDX-License-Identifier: GPL-2.0-only
"""Tallies have the same counts as adding up the rows one by one."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.tally import Tallies
from ipttrace.trace.tally.flows import FlowsTally
from ipttrace.trace.tally.listing import Listings, RuleKey
from ipttrace.trace.tally.row_facts import OUTCOMES
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.trace.tally.totals import TotalsTally
from tests.data import synth
from tests.data.traces import feed_records, feed_synthetic, replay
from tests.paths import LAB


def tallied(store: Store, budget: int = 10_000) -> Tallies:
    tallies = Tallies()
    while tallies.pull(store, budget):
        pass
    return tallies


def rows_of(store: Store) -> list[Row]:
    return store.rows(range(store.first, store.end))


@pytest.fixture(scope="module")
def synthetic() -> Trace:
    trace = Trace()
    feed_synthetic(trace, synth.make(3000, flows=40))
    return trace


@pytest.fixture(scope="module")
def lab() -> Trace:
    return replay(LAB)


@pytest.fixture(params=["synthetic", "lab"])
def trace(request: pytest.FixtureRequest) -> Trace:
    found: Trace = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("budget", [1, 137, 10_000])
def test_every_step_is_a_hit_and_the_last_one_has_the_verdict(trace: Trace, budget: int) -> None:
    # GIVEN the sums over the rows one by one
    hits: Counter[tuple[object, ...]] = Counter()
    ends: defaultdict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
    for row in rows_of(trace.store):
        where = (row.netns, row.family, row.table)
        for step in row.path:
            hits[(*where, step.chain, step.rulenum, step.match == "policy")] += 1
        if row.verdict:
            ends[(*where, row.chain, row.rulenum, row.match == "policy")][row.verdict] += 1
    # WHEN the rows are counted in portions of any size
    tally = tallied(trace.store, budget).rules
    # THEN the listings of all namespaces have the same counts
    listings = Listings(tally, trace.store.names)
    found = {}
    for host, netns in tally.namespaces():
        for key, of in listings.of(host, netns).figures.items():
            full = (netns, *key[:4], key.kind == "policy")
            found[full] = of.hits
            assert of.decided == sum(ends[full].values())
            assert of.drops == ends[full]["DROP"]
    assert found == hits


def test_the_costs_of_a_rule_are_those_of_the_calls_that_it_decided(trace: Trace) -> None:
    costs = defaultdict(list)
    for row in rows_of(trace.store):
        assert row.cost_ns is not None
        rule = (row.family, row.table, row.chain, row.rulenum, row.match == "policy")
        costs[row.netns, *rule].append(row.cost_ns)
    tally = tallied(trace.store).rules
    listings = Listings(tally, trace.store.names)
    checked = 0
    for host, netns in tally.namespaces():
        for key, of in listings.of(host, netns).figures.items():
            mine = sorted(costs[netns, *key[:4], key.kind == "policy"])
            if not of.decided:
                assert np.isnan(of.p50_ns)
                assert not mine
                continue
            for share, said in ((0.5, of.p50_ns), (0.99, of.p99_ns)):
                exact = mine[max(int(np.ceil(share * len(mine))) - 1, 0)]
                assert said == pytest.approx(exact, rel=0.07)
                checked += 1
    assert checked


@pytest.mark.parametrize("budget", [97, 10_000])
def test_a_flow_has_packets_drops_costs_and_the_rule_that_dropped_it(
    trace: Trace, budget: int
) -> None:
    flows: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows_of(trace.store):
        flows[row.flow].append(row)
    tally = tallied(trace.store, budget).flows
    top = tally.top("packets", 10_000, trace.store.names)
    assert len(top) == len(tally) == len(flows)
    for flow in top:
        rows = flows[flow.flow]
        firsts = [row for row in rows if row.call == row.journey & ((1 << 56) - 1)]
        drops = [row for row in rows if row.verdict == "DROP"]
        assert flow.rows == len(rows)
        assert flow.packets == len(firsts)
        assert flow.bytes == sum(row.len or 0 for row in firsts)
        assert flow.drops == len(drops)
        assert flow.cost_ns == sum(row.cost_ns or 0 for row in rows)
        assert flow.max_cost_ns == max(row.cost_ns or 0 for row in rows)
        assert flow.first == rows[0].time
        assert flow.last == max(row.time for row in rows)
        assert flow.verdict == rows[-1].verdict
        assert (flow.proto, flow.src, flow.sport, flow.dst, flow.dport) == (
            rows[0].proto,
            rows[0].src,
            rows[0].sport,
            rows[0].dst,
            rows[0].dport,
        )
        if drops:
            assert flow.dropped_table == drops[-1].table
            assert flow.dropped_at is not None
            assert (flow.dropped_at.chain, flow.dropped_at.rulenum) == (
                drops[-1].chain,
                drops[-1].rulenum,
            )
        else:
            assert (flow.dropped_table, flow.dropped_at) == ("", None)


@pytest.mark.parametrize("order", ["packets", "drops", "cost", "bytes"])
def test_the_top_flows_are_the_first_of_all_flows(trace: Trace, order: str) -> None:
    tally = tallied(trace.store).flows
    name = "cost_ns" if order == "cost" else order
    every = tally.top(order, len(tally), trace.store.names)
    values = [getattr(flow, name) for flow in every]
    assert values == sorted(values, reverse=True)
    some = tally.top(order, 5, trace.store.names)
    assert [getattr(flow, name) for flow in some] == values[:5]


def test_totals_are_sums_over_all_rows(trace: Trace) -> None:
    rows = rows_of(trace.store)
    tally = tallied(trace.store, 500).totals
    assert tally.rows == len(rows)
    verdicts = Counter(row.verdict for row in rows)
    assert {
        name: n for name, n in zip(OUTCOMES, tally.outcomes.tolist(), strict=True) if n
    } == verdicts
    assert tally.packets == len({row.journey for row in rows})
    places = Counter((row.family, row.hook, row.table) for row in rows)
    found = tally.hooks(trace.store.names)
    assert {(one.family, one.hook, one.table): one.rows for one in found} == places
    assert sum(one.drops for one in found) == verdicts["DROP"]
    protocols = Counter(row.proto for row in rows)
    assert {one.proto: one.rows for one in tally.protocols()} == protocols
    assert sum(one.packets for one in tally.protocols()) == tally.packets
    # AND by second, in the last ten minutes
    seconds = Counter((row.time // 10**9, row.verdict) for row in rows)
    held = tally.seconds(600)
    assert held.newest == max(row.time for row in rows) // 10**9
    for name in OUTCOMES:
        series = held.outcomes[name].tolist()
        for back, count in enumerate(reversed(series)):
            assert count == seconds[held.newest - back, name]
    costs = [row.cost_ns or 0 for row in rows]
    assert int(held.series["cost_ns"].sum()) == sum(costs)
    assert int(held.series["packets"].sum()) == tally.packets


def test_rows_stay_counted_when_the_store_drops_them() -> None:
    # GIVEN a store that holds few rows, counted as they arrive
    trace, tallies = Trace(300), Tallies()
    for batch in synth.make(2000).batches(400):
        feed_records(trace, *batch)
        while tallies.pull(trace.store):
            pass
    assert trace.store.first > 0
    # THEN every row is counted once
    assert tallies.totals.rows == trace.rows == trace.store.end
    assert tallies.skipped == 0
    assert tallies.behind(trace.store) == 0


def test_rows_dropped_before_they_were_counted_are_skipped() -> None:
    trace = Trace(300)
    feed_synthetic(trace, synth.make(2000))
    tallies = tallied(trace.store)
    assert tallies.skipped == trace.store.first > 0
    assert tallies.totals.rows + tallies.skipped == trace.rows


def test_a_pull_counts_no_more_than_its_budget() -> None:
    trace, tallies = Trace(), Tallies()
    assert tallies.pull(trace.store) is False
    feed_synthetic(trace, synth.make(1000))
    assert tallies.pull(trace.store, 100) is True
    assert tallies.counted == tallies.totals.rows == 100
    assert tallies.behind(trace.store) == trace.store.end - 100


def test_rows_with_very_long_paths_are_counted_a_few_at_a_time() -> None:
    # GIVEN calls with 4,000 steps each
    one = Trace(10)
    feed_synthetic(one, synth.make(1))
    store = Store(100_000)
    store.names = one.store.names
    (part, *_) = one.store.parts()
    columns = {name: column[:1] for name, column in part.columns.items()}
    steps = {name: np.resize(column[:1], 4000) for name, column in part.steps.items()}
    for _ in range(50):
        store.append(columns, np.array([4000]), steps)
    # WHEN they are counted
    tallies = Tallies()
    pulls = 1
    while tallies.pull(store):
        pulls += 1
    # THEN it takes several pulls, and no row is lost
    assert pulls > 5
    assert tallies.totals.rows + tallies.skipped == 50
    hits = tallies.rules.slots.columns["hits"].sum()
    assert hits == 4000 * tallies.totals.rows


def test_two_hosts_in_one_store_have_separate_counts() -> None:
    # GIVEN the same records, with the same call numbers, from two hosts
    store = Store()
    traces = [Trace(store=store, host=host) for host in (0, 1)]
    records = synth.make(500, flows=9)
    for trace in traces:
        feed_synthetic(trace, records)
    tallies = tallied(store)
    # THEN each has its own rules and flows, and packets count for both
    assert {host for host, _ in tallies.rules.namespaces()} == {0, 1}
    listings = Listings(tallies.rules, store.names)
    netns = tallies.rules.namespaces()[0][1]
    one, other = (listings.of(host, netns).figures for host in (0, 1))
    assert sorted(map(repr, one.items())) == sorted(map(repr, other.items()))
    flows = tallies.flows.top("packets", 1000, store.names)
    assert Counter(flow.host for flow in flows) == {0: len(flows) // 2, 1: len(flows) // 2}
    alone = Trace()
    feed_synthetic(alone, records)
    assert tallies.totals.packets == 2 * tallied(alone.store).totals.packets


def test_absurd_numbers_break_nothing() -> None:
    # GIVEN records with the largest numbers that fit
    records = synth.make(300)
    rng = np.random.default_rng(1)
    for kind, names in (
        (records.entries, ("netns", "len", "family", "hook", "ruleset", "time")),
        (records.exits, ("cost", "verdict")),
        (records.rules, ("rulenum", "match")),
    ):
        for name in names:
            some = rng.random(len(kind)) < 0.3
            kind[name][some] = np.iinfo(kind.dtype[name]).max
    trace = Trace()
    feed_records(trace, records.entries, records.rules, records.exits)
    trace.finish()
    store = trace.store
    assert len(store)
    # WHEN they are counted and every figure is read
    tallies = tallied(store, 50)
    tallies.totals.note_books(0, {"lost": [1 << 62, 1 << 62, 1], "missed": 1 << 62})
    listings = Listings(tallies.rules, store.names)
    for host, netns in tallies.rules.namespaces():
        assert all(of.hits > 0 for of in listings.of(host, netns).figures.values())
    assert all(flow.rows for flow in tallies.flows.top("cost", 1000, store.names))
    assert tallies.totals.rows == len(store)
    tallies.totals.hooks(store.names)
    tallies.totals.seconds()
    tallies.totals.quantile(0.99)


def test_an_empty_trace_has_empty_tallies() -> None:
    store, tallies = Store(), Tallies()
    assert tallies.pull(store) is False
    assert tallies.rules.namespaces() == []
    assert tallies.flows.top("packets", 10, store.names) == []
    assert tallies.totals.hooks(store.names) == []
    assert tallies.totals.protocols() == []
    assert np.isnan(tallies.totals.quantile(0.5))
    listing = Listings(tallies.rules, store.names).of(0, 1)
    assert (listing.tables, listing.figures) == ([], {})
    assert listing.figures_of(RuleKey(4, "filter", "INPUT", 1, "rule")).hits == 0
    assert isinstance(tallies.flows, FlowsTally)
    assert isinstance(tallies.rules, RulesTally)
    assert isinstance(tallies.totals, TotalsTally)
