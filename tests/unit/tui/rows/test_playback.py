# SPDX-License-Identifier: GPL-2.0-only
"""Playback of a recording: its speed, and moving in time."""

from __future__ import annotations

from ipttrace.trace.selection import AllRows
from ipttrace.trace.session import Trace
from ipttrace.tui.rows.playback import Clock, PlayedRows
from tests.data import streams
from tests.data.traces import feed_stream

SECOND = 1_000_000_000


def test_the_rows_shown_end_at_the_clocks_time() -> None:
    # GIVEN a recording of 4,000 packets, one each millisecond, four rows each
    trace = Trace()
    feed_stream(trace, streams.hello() + streams.rows(16_000))
    ours = [0]
    clock = Clock(lambda: ours[0])
    selection = PlayedRows(AllRows(trace.store), trace.store, clock)
    clock.put(streams.WALL)
    clock.run(True)
    # WHEN a second passes
    ours[0] += SECOND
    selection.pull()
    # THEN the rows of one second are there
    times = [row.time for row in selection.rows(range(selection.first, selection.end))]
    assert max(times) <= streams.WALL + SECOND
    assert 4000 <= len(times) <= 4004
    # AND at ten times the speed, those of ten seconds
    assert clock.change_speed(1) == 10.0
    ours[0] += SECOND // 10
    selection.pull()
    assert 8000 <= selection.end <= 8004
    # WHEN going back
    clock.put(streams.WALL + SECOND // 2)
    clock.run(False)
    ours[0] += SECOND
    selection.pull()
    # THEN the later rows are gone, and the clock has stopped
    assert 2000 <= selection.end <= 2004


def test_beyond_the_fastest_speed_all_rows_are_shown() -> None:
    clock = Clock(lambda: 0)
    assert clock.change_speed(-1) == 0.1
    assert clock.change_speed(-1) == 0.1
    assert [clock.change_speed(1) for _ in range(3)] == [1.0, 10.0, 100.0]
    assert clock.change_speed(1) is None
