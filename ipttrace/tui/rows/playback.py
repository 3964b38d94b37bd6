# SPDX-License-Identifier: GPL-2.0-only
"""Playback of a recording: its clock, and a selection that ends at the clock's time.

All rows are in the store; playback only limits which are shown, so going back in
time costs nothing.  Must not touch widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import localtime, monotonic_ns, strftime
from typing import Final

from ipttrace.trace.arrays import Array
from ipttrace.trace.row import Row
from ipttrace.trace.selection import PORTION, Selection
from ipttrace.trace.store import Store

SPEEDS: Final = (0.1, 1.0, 10.0, 100.0)  # beyond the last, all rows are shown at once


class Clock:
    """The time up to which a recording has been played, ns since the epoch."""

    def __init__(self, now: Callable[[], int] = monotonic_ns) -> None:
        """`now`: ns of a monotonic clock."""
        self._now = now
        self._from = 0  # the time that was set last …
        self._since = 0  # … and when, by `now`
        self.running = False
        self.speed = 1.0

    @property
    def time(self) -> int:
        """The time reached."""
        if not self.running:
            return self._from
        return self._from + int((self._now() - self._since) * self.speed)

    @property
    def label(self) -> str:
        """State, local time and speed, for the status bar."""
        clock = strftime("%H:%M:%S", localtime(self.time // 1_000_000_000))
        return f"{'▶' if self.running else '⏸'} {clock} {self.speed:g}×"

    def put(self, time: int) -> None:
        """Goes to this time."""
        self._from, self._since = time, self._now()

    def run(self, running: bool) -> None:
        """Starts or stops."""
        self.put(self.time)
        self.running = running

    def change_speed(self, step: int) -> float | None:
        """Faster (1) or slower (-1).  Returns the new speed; None beyond the fastest."""
        self.put(self.time)
        at = SPEEDS.index(self.speed) + step
        if at >= len(SPEEDS):
            return None
        self.speed = SPEEDS[max(0, at)]
        return self.speed


class PlayedRows:
    """A selection without the rows that are later than a clock."""

    def __init__(self, selection: Selection, store: Store, clock: Clock) -> None:
        self.all = selection
        self._store = store
        self._clock = clock
        self._end = selection.first

    @property
    def first(self) -> int:
        return min(self.all.first, self._end)

    @property
    def end(self) -> int:
        return self._end

    @property
    def behind(self) -> int:
        return self.all.behind

    def pull(self, most: int = PORTION) -> bool:
        more = self.all.pull(most)
        # One past the last row of this time.
        self._end = max(self.all.position(self._store.at(self._clock.time + 1)), self.all.first)
        return more

    def rows(self, positions: Sequence[int], /) -> list[Row]:
        return self.all.rows(positions)

    def seqs(self, first: int, end: int) -> Array:
        return self.all.seqs(first, min(end, self._end))

    def seq(self, position: int) -> int | None:
        return self.all.seq(position) if position < self._end else None

    def position(self, seq: int) -> int:
        return min(self.all.position(seq), self._end)
