# SPDX-License-Identifier: GPL-2.0-only
"""What tallies cost each frame of the screen: rules, flows, totals, and their views.

Run it, or call `run`: ``{name: {"value": number, "unit": text, "goal": number}}``.
Goals are for one core.  Needs no root and no kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace import tally
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.tally.flows import LIMIT
from ipttrace.trace.tally.listing import Listings
from tests.data import synth

Results = dict[str, dict[str, Any]]

FRAME = 2_000
RULES = 5_000

_RNG = np.random.default_rng(1)


def _store(journeys: int, flows: int) -> Store:
    trace = Trace()
    for batch in synth.make(journeys, flows=flows).batches(20_000):
        for kind, some in zip((Kind.ENTRY, Kind.RULE, Kind.EXIT), batch, strict=True):
            trace.feed(Frame(kind, some.tobytes()))
    return trace.store


def _frames(tallies: tally.Tallies, store: Store, budget: int) -> list[float]:
    """Returns the ms of each complete pull."""
    durations = []
    more = True
    while more:
        start = time.process_time()
        more = tallies.pull(store, budget)
        durations.append(1e3 * (time.process_time() - start))
    return durations[:-1]


def _spread(store: Store, rules: int, every_flow_new: bool) -> Store:
    """Returns the same rows, with random numbers below `rules`, or each of a new flow."""
    spread = Store()
    spread.names = store.names
    for part in store.parts():
        first, last = int(part.begins[0]), int(part.ends[-1])
        columns = dict(part.columns)
        steps = {name: column[first:last] for name, column in part.steps.items()}
        if rules:
            steps["rulenum"] = _RNG.integers(1, rules, last - first).astype(np.uint32)
        if every_flow_new:
            columns["flow"] = _RNG.integers(1, 1 << 63, len(part)).astype(np.uint64)
        spread.append(columns, part.ends - first, steps)
    return spread


def _best(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        work()
        best = min(best, 1e3 * (time.process_time() - start))
    return best


def run() -> Results:
    """Runs all measurements, in about 10 seconds."""
    results: Results = {}

    def note(name: str, value: float, goal: float) -> None:
        results[f"tally.{name}"] = {"value": round(value, 2), "unit": "ms", "goal": goal}

    store = _store(60_000, 5_000)
    note("frame_of_2000_rows", median(_frames(tally.Tallies(), store, FRAME)), 1.5)
    note("frame_when_behind", median(_frames(tally.Tallies(), store, tally.PORTION)), 5)
    flood = _spread(store, 0, every_flow_new=True)
    tallies = tally.Tallies()
    durations: list[float] = []
    while tallies.flows.slots.evicted < LIMIT // 4:
        # Another store with the same rows, but new random flows.
        tallies._next = 0
        durations += _frames(tallies, flood, FRAME)
        flood = _spread(store, 0, every_flow_new=True)
    note("frame_of_2000_new_flows", median(durations[-100:]), 5)
    note("frame_of_2000_new_flows_worst", max(durations[-100:]), 10)
    note("top_500_of_100000_flows", _best(lambda: tallies.flows.top("cost", 500, store.names)), 15)
    long = _spread(store, RULES, every_flow_new=False)
    tallies = tally.Tallies()
    note("frame_over_40000_rules", median(_frames(tallies, long, FRAME)[-20:]), 5)
    tallies = tally.Tallies()
    _frames(tallies, _spread(store, RULES // 25, every_flow_new=False), 6_000)
    listings = Listings(tallies.rules, store.names)
    host, netns = tallies.rules.namespaces()[0]
    hit = len(listings.of(host, netns).figures)
    note(f"listing_of_{hit}_rules_hit", _best(lambda: listings.of(host, netns)), 50)
    return results


if __name__ == "__main__":
    for name, result in run().items():
        print(f"{name:40} {result['value']:>12,} {result['unit']:10} goal {result['goal']:,}")
