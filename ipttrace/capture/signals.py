# SPDX-License-Identifier: GPL-2.0-only
"""Signals: told to end by them, and woken by a timer's while a write waits.

Must not end anything itself: whoever runs the loop does.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

from ipttrace.capture.output import Descriptor

# How often something else is done while a slow reader holds up a write, s.
_ASIDE: Final = 0.25


class Stop:
    """Set by signals; a flag, so that a frame is never cut in two.

    From then on a reader that stands still is given up after a while.
    """

    def __init__(self, sink: Descriptor) -> None:
        self.reason = ""
        self._sink = sink
        self._aside: Callable[[], None] | None = None
        self._signalled = False
        signal.signal(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup(1) means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on)

    def _on(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self._signalled = True
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def meanwhile(self, do: Callable[[], None]) -> None:
        """Has `do` done now and then while a write waits for the reader."""
        self._aside = do
        if not self._signalled:
            signal.setitimer(signal.ITIMER_REAL, _ASIDE, _ASIDE)

    def over(self) -> None:
        """To be called last: python sets signals back to their default, and is then killed by
        an alarm or a second Ctrl-C if it takes long to be gone."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        aside = self._aside
        if aside is not None and self._sink.writing:
            # It may take longer than until the next alarm.
            self._aside = None
            try:
                aside()
            finally:
                self._aside = aside
        if self._signalled:
            self._sink.check()
