# SPDX-License-Identifier: GPL-2.0-only
"""The limits of tracing: rows a second (--max-rate) and rows of one arming (--stop-after).

Rows are counted as the exit records of calls.  Must not call the engine, read the
clock or write the stream: the agent passes counts and times.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from ipttrace.stream.messages import Level

_WINDOW: Final = 1.0  # s over which a rate is averaged


class Budget:
    """The rows that one arming may still bring; None means no limit."""

    def __init__(self, max_rate: int | None = None, stop_after: int | None = None) -> None:
        """`max_rate`: rows a second, averaged over one second; `stop_after`: rows of one arming."""
        self._max_rate = max_rate
        self._stop_after = stop_after
        self._first = 0
        # Times, and the rows counted by then.  The first is the start, or at least a second old.
        self._samples: deque[tuple[float, int]] = deque()
        self._exceeding = 0.0  # the rate that was too high; 0: none was

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._max_rate is not None or self._stop_after is not None

    def begin(self, delivered: int, lost: int, now: float) -> None:
        """Starts counting anew: armed at `now` s.

        `delivered`, `lost`: rows until then, and rows for which no buffer had room.
        """
        self._first = delivered
        self._exceeding = 0.0
        self._samples = deque([(now, delivered + lost)])

    def spent(self, delivered: int, lost: int, now: float) -> bool:
        """Returns whether a limit has been reached at `now` s.  Parameters as in `begin`.

        Lost rows count for the rate, because they cost the host as much as others.
        """
        if self._max_rate is not None and self._too_fast(delivered + lost, now, self._max_rate):
            return True
        return self._stop_after is not None and delivered - self._first >= self._stop_after

    def _too_fast(self, rows: int, now: float, limit: int) -> bool:
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        began, before = samples[0]
        # Divided by a second also in the first one: the rest of it can only bring more rows.
        rate = (rows - before) / max(_WINDOW, now - began)
        if rate <= limit:
            samples.append((now, max(rows, samples[-1][1])))
            return False
        self._exceeding = rate
        return True

    def note(self, delivered: int) -> tuple[Level, str]:
        """Returns level and text of the note about a reached limit.

        `delivered`: as in `begin`, with the last rows.
        """
        if self._exceeding:
            rate = f"{math.ceil(self._exceeding):,} rows/s"
            return "warn", (
                f"disarmed: {rate} is more than --max-rate {self._max_rate};"
                " arm again with a narrower filter"
            )
        return "info", (
            f"disarmed after {delivered - self._first:,} rows (--stop-after {self._stop_after});"
            " arm again for as many more"
        )
