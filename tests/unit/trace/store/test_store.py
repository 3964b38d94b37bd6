# SPDX-License-Identifier: GPL-2.0-only
"""The rows that a store holds."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from tests.data import synth
from tests.data.traces import feed_records, seqs_with, synthetic


@pytest.mark.parametrize("capacity", [1, 10, 160, 1000, 1 << 20])
def test_the_newest_rows_are_held_up_to_the_capacity(capacity: int) -> None:
    records = synth.make(1500)
    store = synthetic(records, capacity).store
    total = len(records.entries)
    assert store.end == total
    assert len(store) <= capacity
    assert len(store) >= min(total, capacity - capacity // 8)
    # WHEN all held rows are read
    rows = store.rows(range(store.first, store.end))
    # THEN they are the same as with room for all
    everything = synthetic(records, 1 << 20).store
    again = everything.rows(range(store.first, store.end))
    assert [(row.index, row.call, row.path, row.journey) for row in rows] == [
        (row.index, row.call, row.path, row.journey) for row in again
    ]


def test_an_evicted_row_raises_indexerror_and_is_omitted_from_lists() -> None:
    store = synthetic(synth.make(1000), 100).store
    assert store.first > 0
    with pytest.raises(IndexError, match="is not held"):
        store.row(0)
    with pytest.raises(IndexError):
        store.row(store.end)
    rows = store.rows([0, store.end - 1, store.first, store.end, store.end - 1])
    assert [row.index for row in rows] == [store.end - 1, store.first, store.end - 1]


def test_an_empty_store_has_no_rows() -> None:
    store = Store(10)
    assert (store.first, store.end, len(store)) == (0, 0, 0)
    assert store.rows([0, 1]) == []
    assert len(seqs_with(store, "flow", 1)) == 0
    assert len(store.column("time")) == 0
    assert store.column("src").shape == (0, 16)
    with pytest.raises(IndexError):
        store.row(0)
    with pytest.raises(ValueError, match="not 0"):
        Store(0)


def test_a_flow_and_a_journey_are_found_across_chunks() -> None:
    store = synthetic(synth.make(3000, flows=10), 2000).store
    rows = store.rows(range(store.first, store.end))
    for row in rows[:: len(rows) // 7]:
        flow = [each.index for each in rows if each.flow == row.flow]
        assert seqs_with(store, "flow", row.flow).tolist() == flow
        assert seqs_with(store, "flow", row.flow).dtype == np.int64
        middle = (store.first + store.end) // 2
        assert seqs_with(store, "flow", row.flow, middle).tolist() == [
            at for at in flow if at >= middle
        ]
        assert seqs_with(store, "flow", row.flow, 0, middle).tolist() == [
            at for at in flow if at < middle
        ]
        journey = [each.index for each in rows if each.journey == row.journey]
        assert seqs_with(store, "journey", row.journey).tolist() == journey


def test_columns_and_rows_agree() -> None:
    store = synthetic(synth.make(2000), 1500).store
    first, end = store.first + 5, store.end - 5
    rows = store.rows(range(first, end))
    assert store.column("call", first, end).tolist() == [row.call for row in rows]
    chains = [store.names.text(number) for number in store.column("chain", first, end)]
    assert chains == [row.chain for row in rows]
    steps = [
        [store.names.text(number) for number in part.steps["chain"][a:b]]
        for part in store.parts(first, end)
        for a, b in zip(part.begins.tolist(), part.ends.tolist(), strict=True)
    ]
    assert steps == [[step.chain for step in row.path] for row in rows]


def test_parts_held_by_a_reader_survive_eviction() -> None:
    records = synth.make(4000)
    trace = Trace(200)
    held = None
    for batch in records.batches(300):
        feed_records(trace, *batch)
        if held is None and len(trace.store) > 50:
            held = [
                (part.first, part.columns["call"], part.columns["call"].copy())
                for part in trace.store.parts()
            ]
    assert held
    for _, view, before in held:
        assert (view == before).all()


def test_paths_of_thousands_of_rules_use_bounded_memory() -> None:
    # GIVEN calls with very long paths
    store = Store(160)
    one = synthetic(synth.make(1), 10).store
    store.names = one.names
    (part, *_) = one.parts()
    columns = {name: column[:1] for name, column in part.columns.items()}
    steps = {name: np.resize(column[:1], 4000) for name, column in part.steps.items()}
    for _ in range(50):
        store.append(columns, np.array([4000]), steps)
    # THEN fewer rows are held than the capacity, each of them complete
    held = sum(len(part.steps["chain"]) for part in store.parts())
    assert len(store) < 50
    assert held < 100_000
    assert len(store.row(store.end - 1).path) == 4000
