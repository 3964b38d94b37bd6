# SPDX-License-Identifier: GPL-2.0-only
"""Tallies of the rows that a query matches have the counts of those rows one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ipttrace.trace import query
from ipttrace.trace.store import Store
from ipttrace.trace.tally import Tallies
from tests.data.traces import replay
from tests.paths import LAB


@pytest.fixture(scope="module")
def store() -> Store:
    return replay(LAB).store


def tallied(store: Store, text: str, budget: int = 10_000) -> Tallies:
    asked, context = query.compile(text), query.context_of(store)
    tallies = Tallies(mask=lambda part: asked.mask(part, context))
    while tallies.pull(store, budget):
        pass
    return tallies


@pytest.mark.parametrize("text", ["proto=UDP", "verdict=DROP", "table=filter", "rulenum=99999"])
@pytest.mark.parametrize("budget", [7, 10_000])
def test_only_matching_rows_count(store: Store, text: str, budget: int) -> None:
    asked, context = query.compile(text), query.context_of(store)
    found = [np.flatnonzero(asked.mask(p, context)) + p.first for p in store.parts()]
    rows = store.rows(np.concatenate(found))
    tallies = tallied(store, text, budget)
    assert tallies.totals.rows == len(rows)
    # A packet counts once, by whichever of its rows matches first.
    assert tallies.totals.packets == len({row.journey for row in rows})
    assert tallies.totals.outcomes[0] == sum(row.verdict == "DROP" for row in rows)
    flows = tallies.flows.top("packets", 10_000, store.names)
    assert {f.flow: (f.rows, f.packets) for f in flows} == {
        flow: (
            sum(row.flow == flow for row in rows),
            len({row.journey for row in rows if row.flow == flow}),
        )
        for flow in {row.flow for row in rows}
    }
    hits = Counter((row.netns, step) for row in rows for step in row.path)
    held, live = tallies.rules.slots.columns, tallies.rules.slots.live
    assert int(held["hits"][live].sum()) == sum(hits.values())
    chains = Counter(store.names.text(int(one)) for one in np.repeat(held["chain"], held["hits"]))
    steps = Counter[str]()
    for (_, step), count in hits.items():
        steps[step.chain] += count
    assert {name: count for name, count in chains.items() if name} == steps


def test_rates_and_plots_go_on_after_the_last_match(store: Store) -> None:
    # GIVEN the flow of the first row, which ended long before the recording did
    first = store.row(store.first)
    every, some = tallied(store, ""), tallied(store, f"flow={hex(first.flow)}")
    assert 0 < some.totals.rows < every.totals.rows
    assert some.rules.newest == every.rules.newest
    assert some.totals.newest == every.totals.newest
    assert not some.rules.rates(some.rules.slots.live).any()
    assert every.rules.rates(every.rules.slots.live).any()
