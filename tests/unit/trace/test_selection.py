# SPDX-License-Identifier: GPL-2.0-only
"""Looking at some of the rows: places stay, whatever comes and goes."""

from __future__ import annotations

import numpy as np

from ipttrace.trace.selection import AllRows, MatchingRows
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Part
from tests.data.traces import feed_stream
from tests.tui import streams


def fed(trace: Trace, count: int, start: int = 0) -> None:
    feed_stream(trace, streams.hello() + streams.rows(count, start))


def drops(part: Part) -> np.ndarray:
    return (part.columns["verdict"] & 0xFF) == 0


def test_a_filtered_view_has_the_rows_that_match_and_no_other() -> None:
    # GIVEN 2,800 rows, one packet in seven dropped in its fourth table
    trace = Trace(10_000)
    fed(trace, 2800)
    # WHEN only drops are looked at, a portion at a time
    lens = MatchingRows(trace.store, drops)
    while lens.pull(100):
        pass
    # THEN each of them has a place
    rows = lens.rows(range(lens.first, lens.end))
    assert len(rows) == 100
    assert {row.verdict for row in rows} == {"DROP"}
    assert [row.index for row in rows] == lens.seqs(0, 100).tolist()
    assert all(lens.position(row.index) == at for at, row in enumerate(rows))
    assert lens.position(rows[5].index + 1) == 6
    assert lens.behind == 0


def test_places_stand_still_while_rows_come_and_go() -> None:
    # GIVEN a view of drops over a store that holds 1,600 rows
    trace = Trace(1600)
    lens = MatchingRows(trace.store, drops)
    seen: dict[int, int] = {}
    # WHEN 20,000 rows come by
    for start in range(0, 20_000, 400):
        fed(trace, 400, start)
        while lens.pull(150):
            pass
        for place in range(lens.first, lens.end):
            seq = lens.seq(place)
            assert seq is not None
            # THEN no place ever changes its row
            assert seen.setdefault(place, seq) == seq
    # AND those that the store let go of are gone from the view
    assert lens.first > 0
    assert lens.seq(lens.first - 1) is None
    assert lens.rows([lens.first])[0].index >= trace.store.first
    assert len(seen) == lens.end


def test_all_rows_have_their_numbers_for_places() -> None:
    trace = Trace(1600)
    fed(trace, 2000)
    lens = AllRows(trace.store)
    assert (lens.first, lens.end) == (trace.store.first, 2000)
    assert lens.seq(lens.first - 1) is None
    assert lens.position(0) == lens.first
    assert not lens.pull()
