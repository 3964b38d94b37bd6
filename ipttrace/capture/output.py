# SPDX-License-Identifier: GPL-2.0-only
"""Where the agent's stream goes, whatever the reader does.

Must not know what is written.
"""

from __future__ import annotations

import os
import select
from typing import Final

from ipttrace.capture.errors import CaptureError

# Seconds that a reader may stand still once we were told to end.
_STALLS: Final = 4


class Descriptor:
    """A sink on a file descriptor: all of the data, whatever write(2) takes at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.writing = False
        self._taken = 0
        self._seen = -1
        self._stalls = 0

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        self.writing = True
        try:
            while rest:
                try:
                    count = os.write(self._fd, rest)
                except BlockingIOError:
                    # Somebody whose pipe it is too made it so.
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
                    continue
                rest = rest[count:]
                self._taken += count
        finally:
            self.writing = False
        return len(data)

    def check(self) -> None:
        """To be called by a timer's signal.  Raises CaptureError if the reader stands still.

        By exception, because a write(2) that blocks is gone on with after any
        other signal.
        """
        if not self.writing:
            return
        self._stalls = self._stalls + 1 if self._taken == self._seen else 0
        self._seen = self._taken
        if self._stalls >= _STALLS:
            raise CaptureError("nobody reads the stream: its end is missing")
