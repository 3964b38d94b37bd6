# SPDX-License-Identifier: GPL-2.0-only
"""Signals: requests to stop, and a timer that acts while a write is blocked.

Must not end the process: the agent's loop reads the reason and does so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

from ipttrace.capture.output import Descriptor

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# s between two calls of a function while a write is blocked.
_EVERY: Final = 0.25


class Stop:
    """Records that a signal asked to stop.

    `reason`: the signal's name, "" before.  A flag only, so that no frame is cut in two;
    from then on, a reader that stalls is given up after some seconds.
    """

    def __init__(self, sink: Descriptor) -> None:
        """Installs the handlers.  `sink`: what the stream is written to."""
        self.reason = ""
        self._sink = sink
        self._while_blocked: Callable[[], None] | None = None
        self._signalled = False
        signal.signal(signal.SIGALRM, self._on_alarm)
        for number in _STOPPING:
            # nohup(1) has SIGHUP ignored: that must stay so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self._signalled = True
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def while_blocked(self, do: Callable[[], None]) -> None:
        """Has `do` called several times a second while a write waits for the reader."""
        self._while_blocked = do
        if not self._signalled:
            signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)

    def ignore_signals(self) -> None:
        """Stops the timer and ignores all signals; to be called last.

        Python restores the default actions on its way out: an alarm, or a second Ctrl-C,
        would then kill the process.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGALRM, *_STOPPING):
            signal.signal(number, signal.SIG_IGN)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        do = self._while_blocked
        if do is not None and self._sink.writing:
            # It may take until after the next alarm, which must not call it again.
            self._while_blocked = None
            try:
                do()
            finally:
                self._while_blocked = do
        if self._signalled:
            self._sink.check()
