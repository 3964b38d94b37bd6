# SPDX-License-Identifier: GPL-2.0-only
"""A recording played: a clock of its own, and the list only up to its time.

The rows are all in the store; what is shown ends where the clock stands, so
that going back along time costs nothing.  Pure; must not touch widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Final

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.lens import PORTION, Lens
from ipttrace.trace.row import Row
from ipttrace.trace.store import Store

SPEEDS: Final = (0.1, 1.0, 10.0, 100.0)  # and beyond them, as fast as it goes


class Clock:
    """The time that a recording has been played up to, ns since the epoch."""

    def __init__(self, now: Callable[[], int] = monotonic_ns) -> None:
        self._now = now
        self._from = 0  # where it stood …
        self._since = 0  # … at this moment of ours
        self.running = False
        self.speed = 1.0

    @property
    def time(self) -> int:
        """Where it stands."""
        if not self.running:
            return self._from
        return self._from + int((self._now() - self._since) * self.speed)

    def put(self, time: int) -> None:
        """Go to this time."""
        self._from, self._since = time, self._now()

    def run(self, running: bool) -> None:
        """Go on, or stand still."""
        self.put(self.time)
        self.running = running

    def turn(self, step: int) -> float | None:
        """Faster (1) or slower (-1); returns the speed, None beyond the fastest."""
        self.put(self.time)
        at = SPEEDS.index(self.speed) + step
        if at >= len(SPEEDS):
            return None
        self.speed = SPEEDS[max(0, at)]
        return self.speed


class Played:
    """A lens that ends where the clock stands."""

    def __init__(self, lens: Lens, store: Store, clock: Clock) -> None:
        self.under = lens
        self._store = store
        self._clock = clock
        self._end = lens.first

    @property
    def first(self) -> int:
        return min(self.under.first, self._end)

    @property
    def end(self) -> int:
        return self._end

    @property
    def behind(self) -> int:
        return self.under.behind

    def pull(self, most: int = PORTION) -> bool:
        more = self.under.pull(most)
        # One past the last row of this time.
        self._end = max(self.under.place(self._store.at(self._clock.time + 1)), self.under.first)
        return more

    def rows(self, places: Sequence[int], /) -> list[Row]:
        return self.under.rows(places)

    def seqs(self, first: int, end: int) -> Array:
        return self.under.seqs(first, min(end, self._end))

    def seq(self, place: int) -> int | None:
        return self.under.seq(place) if place < self._end else None

    def place(self, seq: int) -> int:
        return min(self.under.place(seq), self._end)
