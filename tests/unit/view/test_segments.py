# SPDX-License-Identifier: GPL-2.0-only
"""Rows written from the store's columns: every byte as if each row had been formatted alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.arrays import Array
from ipttrace.trace.row import FIELDS, NETNS_NAME, TABLE, attribute
from ipttrace.trace.session import Trace
from ipttrace.trace.store import DIRECT, Store
from ipttrace.view import segments
from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.labels import Labels
from ipttrace.view.output import LineOutput, View
from ipttrace.view.text import TextView
from tests.data import synth, variety
from tests.data.rows import PLAIN
from tests.data.traces import feed_records

LABELS = Labels(("web1", "=web2"), {(0, variety.NETNS[0]): "lan", (1, variety.NETNS[0]): "dmz"})
ALONE = {variety.NETNS[0]: "=router\x1b[2J"}

VIEWS: dict[str, Callable[[], View]] = {
    "csv": lambda: CsvView(ALONE),
    "csv of two hosts": lambda: CsvView(LABELS),
    "jsonl": lambda: JsonlView(ALONE),
    "jsonl of two hosts": lambda: JsonlView(LABELS),
    "text": lambda: TextView(ALONE, utc=True),
    "text of two hosts": lambda: TextView(LABELS, utc=True),
    "text in colour": lambda: TextView(ALONE, utc=True, colour=True),
    "text on a narrow terminal": lambda: TextView(ALONE, utc=True, columns=100),
    "text on a wide terminal": lambda: TextView(ALONE, utc=True, columns=500, colour=True),
}


@cache
def store() -> Store:
    one = variety.trace(3000, seed=1)
    variety.trace(1000, seed=2, host=1, into=one)
    return one.store


def batches(store: Store) -> list[Array]:
    """Batches as from a stream, then some rows in any order, as from a selection."""
    rng = np.random.default_rng(3)
    everything = np.arange(store.first, store.end)
    cuts = np.sort(rng.integers(0, len(everything), 40))
    return [*np.split(everything, cuts), rng.permutation(everything)[:500], everything[:0]]


@pytest.mark.parametrize("name", VIEWS)
def test_columns_give_the_lines_that_rows_give(name: str) -> None:
    # GIVEN rows with every kind of value, from two hosts
    by_columns, by_rows = LineOutput(VIEWS[name]()), VIEWS[name]()
    for seqs in batches(store()):
        # WHEN they are written from columns
        data, count = by_columns.rows(store(), seqs)
        # THEN each byte is as from rows
        assert count == len(seqs)
        lines = by_rows.lines(store().rows(seqs))
        assert data.decode() == lines.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("name", ["csv", "jsonl", "text"])
def test_more_texts_than_are_remembered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "REMEMBERED", 50)
    test_columns_give_the_lines_that_rows_give(name)


@pytest.mark.parametrize("name", ["csv", "jsonl", "text on a wide terminal"])
def test_rules_that_become_known_later_are_written_from_then_on(name: str) -> None:
    # GIVEN an output that has written rows of rules that were not known yet
    trace = variety.trace(2000, seed=4)
    view, seqs = VIEWS[name](), np.arange(2000)
    output = LineOutput(view)
    before, _ = output.rows(trace.store, seqs)
    # WHEN the rules come
    for family in variety.FAMILIES:
        trace.feed(Frame(Kind.RULES, json.dumps(variety.rules_frame(2, family)).encode()))
    # THEN they are in the rows that are written next
    after, _ = output.rows(trace.store, seqs)
    assert after.count(b"-p tcp -j ACCEPT") > before.count(b"-p tcp -j ACCEPT") > 0


@pytest.mark.parametrize("view", [CsvView, JsonlView])
def test_a_namespace_that_gets_a_name_later_has_it_from_then_on(
    view: Callable[[dict[int, str]], View],
) -> None:
    # GIVEN an output that has written rows of a namespace without a name
    names: dict[int, str] = {}
    output, seqs = LineOutput(view(names)), np.arange(500)
    before, _ = output.rows(store(), seqs)
    # WHEN it is named
    names[variety.NETNS[0]] = 'blue, "new"'
    # THEN the rows that are written next have the name, quoted
    after, _ = output.rows(store(), seqs)
    assert after.decode() == view(names).lines(store().rows(seqs))
    assert after.count(b"blue") > before.count(b"blue") == 0


def test_the_compared_rows_have_fields_of_every_kind_of_value() -> None:
    rows = store().rows(np.arange(store().first, store().end))
    found = {name: {getattr(row, name) for row in rows} for name in ("ct_mark", "ct_zone")}
    assert found == {"ct_mark": {None, 0, 1, 0xFFFFFFFF}, "ct_zone": {None, 0, 1, 0xFFFF}}
    assert {row.len for row in rows} == {None, 0, 84, 4_000_000_000}
    assert {row.tables for row in rows} == {0, 1, 2, 5, 12}
    assert {row.trace_id for row in rows} == {None, 1, 0x1F2E3D4C, 0xFFFFFFFF}
    assert {"INVALID", "UNTRACKED", "NEW", None} <= {row.ct_state for row in rows}
    for port in ("physin", "physout"):
        assert {None, "lan0", 'a,b"c'} <= {getattr(row, port) for row in rows}


def test_an_output_can_go_on_with_another_store() -> None:
    # GIVEN an output that has written rows of one store
    other = Trace()
    records = synth.make(500)
    feed_records(other, records.entries, records.rules, records.exits)
    other.finish()
    output, seqs = LineOutput(CsvView()), np.arange(400)
    output.rows(store(), seqs)
    # WHEN it writes those of another one, whose names have other numbers
    data, _ = output.rows(other.store, seqs)
    # THEN they are its own
    assert data.decode() == CsvView().lines(other.store.rows(seqs))


def test_every_field_is_an_attribute_of_rows_and_has_columns() -> None:
    for name in FIELDS:
        assert hasattr(PLAIN, attribute(name)) or name == NETNS_NAME
        assert TABLE[name].columns
    assert set(DIRECT) <= set(FIELDS)
