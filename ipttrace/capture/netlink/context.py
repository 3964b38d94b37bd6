# SPDX-License-Identifier: GPL-2.0-only
"""What all namespaces of one run share: numbers, notes, rule changes, the log setting.

The engine makes one, and gives it to each namespace.  Must not know the engine.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from ipttrace.capture.netlink.changes import RuleChange
from ipttrace.capture.netlink.events import UniqueNumbers
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.stream.messages import Level


class RunContext:
    """Shared by the namespaces of a run."""

    def __init__(self, first: int, *, legacy: bool) -> None:
        """`first`: the first number of calls and journeys; `legacy`: trace legacy tables."""
        self.numbers = UniqueNumbers(first)
        self.names = RecordNames()
        self.legacy = legacy
        self.notes: list[tuple[Level, str]] = []
        # Reads all messages that the kernel has sent until now; the engine sets it.
        self.flush: Callable[[], object] = lambda: None
        self.changes: queue.Queue[RuleChange] = queue.Queue()
        self._generation = 0
        self._log_setting: LogSetting | None = None

    def next_generation(self) -> int:
        """The stream's number for the next ruleset generation, of any namespace."""
        self._generation += 1
        return self._generation

    def warn(self, text: str) -> None:
        """Adds a note of level "warn"."""
        self.notes.append(("warn", text))

    def log_setting(self) -> LogSetting:
        """What changes the namespaces' loggers; made, with its guard, at the first call.

        Raises CaptureError.
        """
        if self._log_setting is None:
            self._log_setting = LogSetting()
        return self._log_setting

    def close(self) -> None:
        """Restores the loggers of all namespaces."""
        if self._log_setting is not None:
            self._log_setting.restore()
