# SPDX-License-Identifier: GPL-2.0-only
"""Selections of rows: positions never change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ipttrace.trace.selection import AllRows, MatchingRows
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Part
from tests.data import streams
from tests.data.traces import feed_stream


def fed(trace: Trace, count: int, start: int = 0) -> None:
    feed_stream(trace, streams.hello() + streams.rows(count, start))


def drops(part: Part) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = (part.columns["verdict"] & 0xFF) == 0
    return mask


def test_a_selection_has_exactly_the_matching_rows() -> None:
    # GIVEN 2,800 rows, one packet in seven dropped in its fourth table
    trace = Trace(10_000)
    fed(trace, 2800)
    # WHEN only drops are selected, a portion at a time
    selection = MatchingRows(trace.store, drops)
    while selection.pull(100):
        pass
    # THEN each of them has a position
    rows = selection.rows(range(selection.first, selection.end))
    assert len(rows) == 100
    assert {row.verdict for row in rows} == {"DROP"}
    assert [row.index for row in rows] == selection.seqs(0, 100).tolist()
    assert all(selection.position(row.index) == at for at, row in enumerate(rows))
    assert selection.position(rows[5].index + 1) == 6
    assert selection.behind == 0


def test_positions_stay_while_rows_come_and_go() -> None:
    # GIVEN a selection of drops in a store that holds 1,600 rows
    trace = Trace(1600)
    selection = MatchingRows(trace.store, drops)
    seen: dict[int, int] = {}
    # WHEN 20,000 rows come
    for start in range(0, 20_000, 400):
        fed(trace, 400, start)
        while selection.pull(150):
            pass
        for position in range(selection.first, selection.end):
            seq = selection.seq(position)
            assert seq is not None
            # THEN no position ever changes its row
            assert seen.setdefault(position, seq) == seq
    # AND evicted rows are gone from the selection
    assert selection.first > 0
    assert selection.seq(selection.first - 1) is None
    assert selection.rows([selection.first])[0].index >= trace.store.first
    assert len(seen) == selection.end


def test_positions_in_all_rows_are_sequence_numbers() -> None:
    trace = Trace(1600)
    fed(trace, 2000)
    selection = AllRows(trace.store)
    assert (selection.first, selection.end) == (trace.store.first, 2000)
    assert selection.seq(selection.first - 1) is None
    assert selection.position(0) == selection.first
    assert not selection.pull()
