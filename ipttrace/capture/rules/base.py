# SPDX-License-Identifier: GPL-2.0-only
"""What both watches of rules share: start and end, notes, the cost of reading.

The agent holds a `RuleTexts`; the `RuleWatch` that it makes runs in a thread of its own
(ipttrace/capture/watch.py).  Must not read rules.
"""

from __future__ import annotations

import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

from ipttrace.capture.rules.frames import warning
from ipttrace.capture.watch import Finding

# Distinct notes of one watch: a namespace's name or an error may differ each time.
_MOST_NOTES: Final = 1000


class RuleTexts(ABC):
    """The agent's handle on a watch of rules.

    `first` is set after the first look, whatever it found.
    """

    def __init__(self) -> None:
        self.first = threading.Event()

    @abstractmethod
    def make(self) -> RuleWatch:
        """Returns the watch; to be called from its thread.  Raises CaptureError."""

    def report(self) -> list[Finding]:
        """Returns what rows that are about to be written depend on; for the agent's thread."""
        return []

    def settled(self, timeout: float) -> bool:
        """Returns whether all changes known by now are read; waits for it up to `timeout` s."""
        return True

    @abstractmethod
    def end(self) -> None:
        """Wakes the watch, which is about to be closed."""


class RuleWatch(ABC):
    """A Watch whose `look` waits by itself until there is something to do."""

    def __init__(self, first: threading.Event) -> None:
        self.interval = 0.0
        self._first = first
        self._noted: set[str] = set()

    @abstractmethod
    def look(self) -> Iterator[Finding]:
        """Yields what is new.  Raises CaptureError, OSError."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the watch holds."""

    def _note(self, text: str) -> Iterator[Finding]:
        """Yields a note, once for each text."""
        if text not in self._noted and len(self._noted) < _MOST_NOTES:
            self._noted.add(text)
            yield warning(text)


def cpu_seconds() -> float:
    """Returns the CPU time of this thread and of all commands that the process has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime
