# SPDX-License-Identifier: GPL-2.0-only
"""What takes an engine's place where only drops are traced: it has no rows, and changes nothing.

Must not attach anything.
"""

from __future__ import annotations

import os
import select
from typing import Final

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.stream import record
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import Records


class _Descriptors:
    """What the agent waits on: the descriptors that it watches, and the time."""

    def __init__(self) -> None:
        self.cpus = os.cpu_count() or 1
        self._poll = select.poll()

    def watch(self, fd: int) -> None:
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        self._poll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        return {fd for fd, _ in self._poll.poll(seconds * 1000)}


class NoEngine:
    """An engine without rows."""

    name: Final = "none"

    def __init__(self) -> None:
        self.notes: list[tuple[Level, str]] = []
        self.names: dict[str, str] = {}
        self.over = ""
        self.before = 1 << 63  # nothing is ever waited for
        self.addresses = HiddenAddresses()
        self.buffers = _Descriptors()
        self._armed = True

    def arm(self) -> None:
        self._armed = True

    def disarm(self) -> None:
        self._armed = False

    def filter(self, program: bytes) -> None:
        pass

    def take(self) -> list[Records]:
        return [np.zeros(0, dtype) for dtype in record.DTYPES]

    def lost_exits(self) -> int:
        return 0

    def books(self) -> Books:
        return {
            "engine": self.name,
            "state": "armed" if self._armed else "disarmed",
            "calls": 0,
            "refused": 0,
            "matched": 0,
            "flipped": 0,
            "due": [0, 0, 0],
            "delivered": [0, 0, 0],
            "lost": [0, 0, 0],
            "missed": 0,
        }

    def close(self) -> None:
        pass
