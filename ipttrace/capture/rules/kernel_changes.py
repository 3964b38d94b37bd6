# SPDX-License-Identifier: GPL-2.0-only
"""Changes of legacy tables as the module reports them, put into the stream.

A change is reported before the new rules are read, so that a reader never takes old rules for
new ones.  Must not read tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Change, Control
from ipttrace.capture.rules import frames
from ipttrace.capture.rules.base import RuleWatch
from ipttrace.capture.rules.frames import Key
from ipttrace.capture.watch import Finding
from ipttrace.ready import readable
from ipttrace.stream.messages import ChainCounters

FAMILIES: Final = (4, 6)
# How long a change may be under way, and how long its report may take, s.
_CHANGE_TAKES: Final = 0.2
_MESSAGE_TAKES: Final = 1.0

Group = tuple[int, int]
"""Namespace and family: the tables that one run of iptables-save prints."""


@dataclass(slots=True)
class Sent:
    """What the stream contains of a table."""

    since: int = 0  # generation of the newest rules; 0: none
    entries: int = 0  # likewise, of rules of which only some texts were known
    counters: list[dict[str, ChainCounters]] = field(default_factory=list)  # the newest two


class ChangeWatch(RuleWatch):
    """Reports changes, and keeps which tables are to be read."""

    def __init__(self, only: int | None, first: threading.Event) -> None:
        """`only`: inode of the one namespace.  Raises CaptureError."""
        super().__init__(first)
        if not kmod.loaded():
            raise CaptureError("the module is not loaded")
        self._only = only
        self._control = Control()
        try:
            self._changes = self._control.changes()
        except BaseException:
            self._control.close()
            raise
        self._arrived: list[Change] = []  # not reported yet
        self._upto = 0  # all changes up to this generation have been reported
        self._unknown_upto = 0  # which tables changed up to this generation is unknown
        self._changed: dict[Key, int] = {}  # generation of the last known change
        self._sent: dict[Key, Sent] = {}
        self._paths: dict[int, str] = {}
        self._due: dict[Group, None] = {}  # to be read, in this order
        self._compare: dict[Group, None] = {}  # whose entries are to be read, likewise
        self._scan_due = 0.0

    def close(self) -> None:
        self._changes.close()
        self._control.close()

    def _settled(self, netns: int) -> int | None:
        """Returns the generation of the namespace with the descriptor `netns`.

        Waits a moment if a change is under way; None if that goes on, or if disarmed.
        Raises NotWatched.
        """
        deadline = time.monotonic() + _CHANGE_TAKES
        while True:
            if generation := self._control.status(netns).ruleset:
                return generation
            if self._control.newest_generation() is None or time.monotonic() > deadline:
                return None
            time.sleep(0.002)

    def _receive(self, until: int = 0) -> Iterator[Finding]:
        """Reports the changes that have arrived; waits for all up to the generation `until`."""
        deadline = time.monotonic() + _MESSAGE_TAKES
        while True:
            self._arrived += self._changes.take()
            yield from self._report()
            left = deadline - time.monotonic()
            if self._upto >= until:
                return
            if left <= 0:
                yield from self._look_for_changes()
                return
            readable(self._changes, timeout=left)

    def _report(self) -> Iterator[Finding]:
        """Reports what has arrived up to the last point where all before it has, too."""
        if self._changes.lost:
            self._changes.lost = False
            self._arrived.clear()
            yield from self._look_for_changes()
        ends = [at for at, change in enumerate(self._arrived) if not change.first]
        if not ends:
            return
        complete, self._arrived = self._arrived[: ends[-1]], self._arrived[ends[-1] :]
        upto = self._arrived.pop(0).last
        # In this order nothing is taken for reported that is not.
        for change in sorted(complete, key=lambda change: change.first or change.last):
            if not change.first or change.last <= self._upto:
                continue
            if not change.netns:
                yield self._forget(change.last)
                continue
            if self._only not in (None, change.netns):
                continue
            yield from self._report_change(change)
        if upto > self._upto:
            self._upto = upto
            yield frames.reported(upto)

    def _report_change(self, change: Change) -> Iterator[Finding]:
        """Only a table's first change is reported: its rules are unknown from there on."""
        families = (change.family,) if change.family else FAMILIES
        keys: list[Key] = [(change.netns, change.family, change.table)]
        if not change.family:
            keys = [key for key in self._changed if key[0] == change.netns]
        for family in families:
            self._due[change.netns, family] = self._compare[change.netns, family] = None
        for key in keys:
            self._changed[key] = change.last
            yield frames.changed(key, change.first, "legacy", change.first)

    def _look_for_changes(self) -> Iterator[Finding]:
        """Reports were lost: asks which namespaces have changed.  The others keep their rules."""
        upto = self._control.newest_generation()
        if upto is None:
            return
        since = self._upto + 1
        for netns, path in self._paths.items():
            try:
                with namespaces.held(path, netns) as fd:
                    generation = self._control.status(fd).ruleset
            except OSError:
                generation = 0
            if not generation or generation > self._upto:
                yield from self._report_change(Change(since, generation or upto, netns))
        if upto > self._upto:
            self._upto = upto
            yield frames.reported(upto)

    def _forget(self, generation: int) -> Finding:
        """Any table may have changed since the last report: all are to be read again."""
        frame = frames.unknown(self._upto + 1, generation)
        self._upto = self._unknown_upto = generation
        self._changed.clear()
        self._sent.clear()
        self._scan_due = 0.0
        for netns in self._paths:
            self._due.update({(netns, family): None for family in FAMILIES})
        return frame
