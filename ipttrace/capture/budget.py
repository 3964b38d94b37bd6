# SPDX-License-Identifier: GPL-2.0-only
"""How much tracing was asked for: rows a second, and rows in all.

Rows are counted as the exit records of calls.  Only counts and says when it is
enough: must not touch the engine, the clock or the stream.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

# Over how long a rate is averaged, s.
_WINDOW: Final = 1.0
_ADVICE: Final = "arm again with a narrower filter"


class Budget:
    """Of one arming after another; None: no limit."""

    def __init__(self, max_rate: int | None = None, stop_after: int | None = None) -> None:
        """`max_rate`: rows a second, averaged over one; `stop_after`: rows of one arming."""
        self._max_rate = max_rate
        self._stop_after = stop_after
        self._first = 0
        # When, and how many rows were due by then; the first is a second old or of the start.
        self._samples: deque[tuple[float, int]] = deque()
        self._rate = 0.0  # the one that was too much

    @property
    def limited(self) -> bool:
        """Is there any limit?"""
        return self._max_rate is not None or self._stop_after is not None

    def begin(self, came: int, lost: int, now: float) -> None:
        """Armed at `now` s: all of it may be spent again.

        `came`, `lost`: rows until then that were delivered, and that no buffer had room for.
        """
        self._first = came
        self._rate = 0.0
        self._samples = deque([(now, came + lost)])

    def spent(self, came: int, lost: int, now: float) -> bool:
        """Whether it is used up, with the rows until `now`; each as in `begin`.

        Rows that were lost have cost the host as much as others.
        """
        if self._max_rate is not None and self._too_fast(came + lost, now):
            return True
        return self._stop_after is not None and came - self._first >= self._stop_after

    def _too_fast(self, rows: int, now: float) -> bool:
        assert self._max_rate is not None
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        began, before = samples[0]
        # In the first second, too: what came would not be less if it were over.
        rate = (rows - before) / max(_WINDOW, now - began)
        if rate <= self._max_rate:
            samples.append((now, max(rows, samples[-1][1])))
            return False
        self._rate = rate
        return True

    def words(self, came: int) -> tuple[str, str]:
        """Level and text of the note about it.  `came`: as in `begin`, with the last rows."""
        if self._rate:
            rate = f"{math.ceil(self._rate):,} rows/s"
            return "warn", f"disarmed: {rate} is more than --max-rate {self._max_rate}; {_ADVICE}"
        rows = f"{came - self._first:,} rows"
        said = f"--stop-after {self._stop_after} is reached; arm again for as many more"
        return "info", f"disarmed after {rows}: {said}"
