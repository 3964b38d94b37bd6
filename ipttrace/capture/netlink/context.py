# SPDX-License-Identifier: GPL-2.0-only
"""What all namespaces of one run share: numbers, notes, rule changes, the log setting.

The engine makes one, and gives it to each namespace.  Must not know the engine.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

from ipttrace.capture.breakpoints import Wanted
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.changes import RuleChange
from ipttrace.capture.netlink.events import UniqueNumbers
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.capture.netlink.reader import Mailbox
from ipttrace.stream.messages import Level


class RunContext:
    """Shared by the namespaces of a run."""

    def __init__(
        self,
        first: int,
        *,
        legacy: bool,
        listen: bool = True,
        beside_module: bool = False,
        marked: Wanted | None = None,
    ) -> None:
        """`first`: the first number of calls and journeys; `legacy`: trace legacy tables.

        `listen`: for reports of traced packets, else only for changes of rules; `beside_module`:
        which traces the legacy tables: refuse a filter rather than flip further packets, and
        leave the log alone; `marked`: flip no packet, but trace those that rules
        mark, and these breakpoints.
        """
        self.numbers = UniqueNumbers(first)
        self.names = RecordNames()
        self.legacy = legacy
        self.listen = listen
        self.beside_module = beside_module
        self.flips = marked is None
        # A socket filter that matches packets that were flipped elsewhere; -1: none.
        self.carried = -1
        self._breakpoints = marked
        self.notes: list[tuple[Level, str]] = []
        # Reads all messages that the kernel has sent until now; the engine sets it.
        self.flush: Callable[[], object] = lambda: None
        # Makes the agent look at once when a descriptor is readable, or not any more.
        self.watch: Callable[[int], object] = lambda _: None
        self.unwatch: Callable[[int], object] = lambda _: None
        # Leaves a mailbox to the calling thread for a while; the engine sets it.
        self.paused: Callable[[Mailbox], contextlib.AbstractContextManager[None]] = lambda _: (
            contextlib.nullcontext()
        )
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

    def mark(self, *, wanted: bool) -> None:
        """Whether breakpoints mark packets, as soon as the module is loaded."""
        if self._breakpoints is None:
            return
        if not wanted:
            self._breakpoints.close()
            return
        try:
            self._breakpoints.open()
        except CaptureError as error:
            self._breakpoints = None
            self.warn(f"rules with -j IPTTRACE mark no packets: {error}")

    def log_setting(self) -> LogSetting:
        """What changes the namespaces' loggers; made, with its guard, at the first call.

        Raises CaptureError.
        """
        if self._log_setting is None:
            self._log_setting = LogSetting()
        return self._log_setting

    def close(self) -> None:
        """Restores the loggers of all namespaces."""
        self.mark(wanted=False)
        if self._log_setting is not None:
            self._log_setting.restore()
