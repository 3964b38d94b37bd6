# SPDX-License-Identifier: GPL-2.0-only
"""The descriptor that the agent's stream is written to, even if its reader stalls.

Must not interpret what is written.
"""

from __future__ import annotations

import os
import select
from typing import Final

from ipttrace.capture.errors import CaptureError

# Checks in a row, a second apart, at which a stalled reader is given up.
_MOST_STALLED: Final = 10


class Descriptor:
    """A sink on a file descriptor: writes all data, however little write(2) accepts at once.

    `writing`: whether a write is under way, for signal handlers.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.writing = False
        self._written = 0
        self._checked = -1
        self._stalled = 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data` and returns its length.  Raises OSError."""
        rest = memoryview(data)
        self.writing = True
        try:
            while rest:
                try:
                    count = os.write(self._fd, rest)
                except BlockingIOError:
                    # Another process that shares the pipe made it non-blocking.
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
                    continue
                rest = rest[count:]
                self._written += count
        finally:
            self.writing = False
        return len(data)

    def check(self) -> None:
        """Raises CaptureError if a write has been stalled for some calls in a row.

        To be called from the handler of a timer's signal: Python resumes a blocked
        write(2) after a signal unless its handler raises.
        """
        if not self.writing:
            return
        self._stalled = self._stalled + 1 if self._written == self._checked else 0
        self._checked = self._written
        if self._stalled >= _MOST_STALLED:
            raise CaptureError("the stream's reader has stalled: the end of the stream is lost")
