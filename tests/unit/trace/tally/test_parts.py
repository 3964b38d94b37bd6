# SPDX-License-Identifier: GPL-2.0-only
"""The parts of tallies: slots with eviction, cost histograms, rings of time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.flows import FlowsTally
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.trace.tally.slots import OTHER, Slots
from ipttrace.trace.tally.totals import TotalsTally
from tests.data import synth
from tests.data.traces import feed_synthetic

SECOND = 1_000_000_000


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def count(slots: Slots, some: np.ndarray) -> None:
    found, _, _ = slots.assign(some)
    np.add.at(slots.columns["hits"], found, 1)


def hits(slots: Slots, key: int) -> int | None:
    found = np.flatnonzero(slots._keys == np.uint64(key))
    return int(slots.columns["hits"][slots._slots[found[0]]]) if len(found) else None


def new_slots(limit: int) -> Slots:
    return Slots(limit, {"hits": ("i8", ()), "mark": ("i8", ())}, ("hits",))


def test_equal_keys_share_a_slot_and_new_keys_are_reported_once() -> None:
    slots = new_slots(100)
    found, first, fresh = slots.assign(keys(7, 5, 7, 9, 5))
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert len({*found.tolist()}) == 3
    assert OTHER not in found
    assert sorted(zip(first.tolist(), fresh.tolist(), strict=True)) == [
        (0, found[0]),
        (1, found[1]),
        (3, found[3]),
    ]
    again, first, fresh = slots.assign(keys(9, 7))
    assert again.tolist() == [found[3], found[0]]
    assert len(first) == len(fresh) == 0


def test_the_keys_not_counted_for_longest_are_evicted_for_new_ones() -> None:
    # GIVEN 32 keys, all except two counted again
    slots = new_slots(32)
    count(slots, np.arange(32, dtype=np.uint64))
    count(slots, np.setdiff1d(np.arange(32, dtype=np.uint64), keys(3, 17)))
    # WHEN two more are counted
    count(slots, keys(100, 101))
    # THEN those two are evicted, and their counts added to slot 0
    assert hits(slots, 3) is hits(slots, 17) is None
    assert hits(slots, 4) == 2
    assert hits(slots, 100) == hits(slots, 101) == 1
    assert slots.columns["hits"][OTHER] == 2
    assert slots.evicted == 2


def test_eviction_loses_no_count() -> None:
    rng = np.random.default_rng(3)
    slots = new_slots(200)
    total = 0
    for _ in range(300):
        some = rng.zipf(1.3, rng.integers(1, 150)).astype(np.uint64) % np.uint64(5000)
        count(slots, some)
        total += len(some)
        assert len(slots) <= 200
        assert len(set(slots.live.tolist())) == len(slots)
        assert int(slots.columns["hits"].sum()) == total
    assert slots.evicted > 0
    assert len(slots.columns["hits"]) <= 201


def test_new_keys_beyond_the_limit_count_for_slot_0() -> None:
    slots = new_slots(10)
    count(slots, np.arange(50, dtype=np.uint64))
    assert len(slots) == 10
    assert slots.columns["hits"][OTHER] == 40
    # AND later keys get a slot again
    count(slots, keys(1000))
    assert hits(slots, 1000) == 1


def test_a_reused_slot_is_empty() -> None:
    slots = new_slots(2)
    found, _, _ = slots.assign(keys(1, 2))
    slots.columns["mark"][found] = 99
    slots.assign(keys(2))
    found, _, fresh = slots.assign(keys(3))
    assert found.tolist() == fresh.tolist()
    assert slots.columns["mark"][found[0]] == 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_quantile_is_off_by_at_most_a_sixteenth(share: float) -> None:
    rng = np.random.default_rng(5)
    costs = np.exp(rng.normal(9, 2, 20_000)).astype(np.uint64) + 40
    counts = np.bincount(tally_costs.buckets(costs), minlength=tally_costs.BUCKETS)
    exact = np.sort(costs)[int(np.ceil(share * len(costs))) - 1]
    found = float(tally_costs.quantiles(counts[None], share)[0])
    assert abs(found - exact) / exact <= 1 / 16


def test_costs_of_zero_and_of_years_count_in_the_outermost_buckets() -> None:
    costs = np.array([0, 1, 31, 32, 1 << 40, (1 << 64) - 1], np.uint64)
    assert tally_costs.buckets(costs).tolist() == [0, 0, 0, 0, 255, 255]
    assert np.isnan(tally_costs.quantiles(np.zeros((1, 256)), 0.5)).all()


def rows_at(*times: int) -> Store:
    """A store with one row, of the same rule, at each of `times` (ns since the epoch)."""
    one = Trace(10)
    for batch in synth.make(1).batches(1000):
        for kind, some in zip((Kind.ENTRY, Kind.RULE, Kind.EXIT), batch, strict=True):
            one.feed(Frame(kind, some.tobytes()))
    (part, *_) = one.store.parts()
    store = Store(10_000)
    store.names = one.store.names
    for time in times:
        columns = {name: column[:1].copy() for name, column in part.columns.items()}
        columns["time"][:] = time
        steps = {name: column[:1] for name, column in part.steps.items()}
        store.append(columns, np.array([1]), steps)
    return store


def feed(tally: RulesTally | TotalsTally | FlowsTally, store: Store) -> None:
    for part in store.parts():
        tally.feed(part)


START = 1_700_000_000 * SECOND


def test_a_rate_covers_two_seconds_and_falls_when_no_rows_arrive() -> None:
    # GIVEN 100 rows a second for five seconds
    tally = RulesTally()
    feed(tally, rows_at(*(START + at * SECOND // 100 for at in range(500))))
    live = tally.slots.live
    assert tally.rates(live).tolist() == [100.0]
    # WHEN one second passes without rows, then two more
    assert tally.rates(live, START + 6 * SECOND).tolist() == [50.0]
    assert tally.rates(live, START + 8 * SECOND).tolist() == [0.0]


def test_rates_start_over_when_the_clock_is_set_back() -> None:
    # GIVEN rows of an hour, then rows from its beginning again
    tally = RulesTally()
    feed(tally, rows_at(*(START + at * SECOND for at in range(3600))))
    feed(tally, rows_at(*(START + at * SECOND // 10 for at in range(40))))
    tally.newest[0] = START + 4 * SECOND
    assert tally.rates(tally.slots.live).tolist() == [10.0]


def test_seconds_are_kept_for_ten_minutes() -> None:
    tally = TotalsTally()
    feed(tally, rows_at(*(START + at * SECOND for at in range(1000) for _ in range(2))))
    held = tally.seconds(600)
    assert held.newest == START // SECOND + 999
    assert held.outcomes["ACCEPT"].tolist() == [2] * 600
    # AND seconds without rows are empty
    later = tally.seconds(10, START + 1003 * SECOND)
    assert later.outcomes["ACCEPT"].tolist() == [2] * 6 + [0] * 4


def test_losses_count_for_the_second_of_their_report() -> None:
    tally = TotalsTally()
    feed(tally, rows_at(START))
    tally.note_books(0, {"lost": [1, 2, 0], "missed": 5})
    feed(tally, rows_at(START + 3 * SECOND))
    tally.note_books(0, {"lost": [1, 2, 4], "missed": 5})
    tally.note_books(1, {"lost": [10], "missed": 0})
    tally.note_books(1, {})
    held = tally.seconds(4)
    assert held.series["lost"].tolist() == [3, 0, 0, 14]
    assert held.series["missed"].tolist() == [5, 0, 0, 0]
    assert (tally.lost, tally.missed) == (17, 5)


def test_flows_beyond_the_limit_are_summed_and_the_newest_stay() -> None:
    trace = Trace()
    feed_synthetic(trace, synth.make(6000, flows=2000), 500)
    store = trace.store
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
