# SPDX-License-Identifier: GPL-2.0-only
"""Watches the legacy rules of every namespace for the kernel engine, generation by generation.

The module numbers the changes of all tables and sends a message for each.  A table
is read while no change is under way, and the result is used only if none happened
meanwhile: it then holds since the table's last change.  A change is reported before
the new rules are read, so that a reader never takes old rules for new ones.

Reading costs CPU time: changed tables are read at once, but take a fifth of one
processor at most; counters take a 50th.  Must not call the engine, create a table
that did not exist, or keep a namespace alive.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from ipttrace.capture import iptables_save
from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Change, Control
from ipttrace.capture.rules import frames
from ipttrace.capture.rules.base import RuleTexts, RuleWatch, cpu_seconds
from ipttrace.capture.rules.frames import Key
from ipttrace.capture.watch import Finding
from ipttrace.ready import readable
from ipttrace.stream.messages import ChainCounters

FAMILIES: Final = (4, 6)

_COUNT_EVERY: Final = 2.0  # s
_SCAN_EVERY: Final = 30.0
# After a read, the watch rests for so many times the CPU time that the read took.
_READ_SHARE: Final = 4
_COUNT_SHARE: Final = 49
_LONGEST_REST: Final = 30.0
_RETRY: Final = 10.0  # s after a failure
# How long a change may be under way, and how long its message may take, s.
_CHANGE_TAKES: Final = 2.0
_MESSAGE_TAKES: Final = 1.0

_Group = tuple[int, int]
"""Namespace and family: the tables that one run of iptables-save prints."""


@dataclass(slots=True)
class _Sent:
    """What the stream contains of a table."""

    since: int = 0  # generation of the newest rules; 0: none
    counters: list[dict[str, ChainCounters]] = field(default_factory=list)  # the newest two


class KernelRules(RuleTexts):
    """The agent's handle on a KernelRuleWatch."""

    def __init__(self, only: str | None = None) -> None:
        """`only`: the one namespace that is traced, as `netns.inode` takes it."""
        super().__init__()
        self._only = only
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def make(self) -> KernelRuleWatch:
        try:
            only = None if self._only is None else namespaces.inode(self._only)
            return KernelRuleWatch(only, self.first, self._ended)
        except BaseException:
            self.first.set()
            raise

    def end(self) -> None:
        os.eventfd_write(self._ended, 1)


class KernelRuleWatch(RuleWatch):
    """Reads the tables whenever the module reports a change of them."""

    def __init__(self, only: int | None, first: threading.Event, ended: int) -> None:
        """`only`: inode of the one namespace; `ended`: an eventfd that ends any wait."""
        super().__init__(first)
        if not kmod.loaded():
            raise CaptureError("the module is not loaded")
        self._only = only
        self._ended = ended
        self._control = Control()
        try:
            self._changes = self._control.changes()
        except BaseException:
            self._control.close()
            raise
        self._upto = 0  # all changes up to this generation have been reported
        self._unknown_upto = 0  # which tables changed up to this generation is unknown
        self._changed: dict[Key, int] = {}  # generation of the last known change
        self._sent: dict[Key, _Sent] = {}
        self._paths: dict[int, str] = {}
        self._due: dict[_Group, None] = {}  # to be read, in this order
        self._counted: dict[_Group, float] = {}  # groups that have rules: when they were read
        self._read_rest = self._count_rest = self._scan_due = 0.0

    def close(self) -> None:
        self._changes.close()
        self._control.close()

    def look(self) -> Iterator[Finding]:
        self.interval = _RETRY
        try:
            yield from self._look()
            self.interval = 0.0
        finally:
            self._first.set()

    def _look(self) -> Iterator[Finding]:
        if not self._upto:
            yield from self._first_look()
            return
        self._wait()
        yield from self._receive()
        if time.monotonic() >= self._scan_due:
            yield from self._scan()
        if self._due and time.monotonic() >= self._read_rest:
            cost = yield from self._read(next(iter(self._due)))
            self._read_rest = time.monotonic() + min(_READ_SHARE * cost, _LONGEST_REST)
        elif (group := self._next_counted()) is not None:
            cost = yield from self._read(group)
            self._count_rest = time.monotonic() + _COUNT_SHARE * cost

    def _first_look(self) -> Iterator[Finding]:
        """Reads everything, without a rest."""
        generation = self._stable_generation()
        if generation is None:
            # Disarmed, perhaps for good: asking once a second costs next to nothing.
            readable(self._ended, timeout=1.0)
            return
        self._upto = generation
        yield frames.reported(generation)
        yield from self._scan()
        for group in list(self._due):
            if self._is_ending():
                return
            yield from self._read(group)

    def _is_ending(self) -> bool:
        return bool(readable(self._ended, timeout=0))

    def _wait(self) -> None:
        now = time.monotonic()
        due = [self._scan_due]
        if self._due:
            due.append(self._read_rest)
        if self._counted:
            due.append(max(min(self._counted.values()) + _COUNT_EVERY, self._count_rest))
        readable(self._changes, self._ended, timeout=max(0.0, min(due) - now))

    def _next_counted(self) -> _Group | None:
        """Returns the group whose counters are due, the longest unread first."""
        now = time.monotonic()
        if not self._counted or now < self._count_rest:
            return None
        group = min(self._counted, key=self._counted.__getitem__)
        return group if now >= self._counted[group] + _COUNT_EVERY else None

    # -- changes, from the module

    def _stable_generation(self) -> int | None:
        """Waits until no change is under way; returns the generation, None if disarmed.

        Raises CaptureError if a change was missed.
        """
        deadline = time.monotonic() + _CHANGE_TAKES
        while True:
            status = self._control.status()
            if status.ruleset:
                return status.ruleset
            if status.state != "armed":
                return None
            if not status.rules_seen:
                raise CaptureError(
                    "this kernel does not allow to probe changes of rules: rows have no rule texts"
                )
            if time.monotonic() > deadline:
                raise CaptureError(
                    "a change of rules was missed: rows from now on have no rule texts"
                )
            time.sleep(0.002)

    def _receive(self, until: int = 0) -> Iterator[Finding]:
        """Reports the changes that have arrived; waits for all up to the generation `until`."""
        deadline = time.monotonic() + _MESSAGE_TAKES
        while True:
            yield from self._report(self._changes.take())
            left = deadline - time.monotonic()
            if self._upto >= until:
                return
            if left <= 0:
                yield self._forget(until)
                return
            readable(self._changes, timeout=left)

    def _report(self, changes: list[Change]) -> Iterator[Finding]:
        first: dict[Key, int] = {}
        for change in changes:
            if change.generation <= self._upto:
                continue
            if change.generation > self._upto + 1 or not change.netns or not change.family:
                # Messages were lost, or the module cannot say which table changed.
                yield from self._report_changed(first)
                first = {}
                yield self._forget(change.generation)
                continue
            self._upto = change.generation
            if self._only not in (None, change.netns):
                continue
            key = (change.netns, change.family, change.table)
            self._changed[key] = change.generation
            self._due[change.netns, change.family] = None
            # Only a table's first change is reported: its rules are unknown from there on.
            first.setdefault(key, change.generation)
        yield from self._report_changed(first)
        if changes:
            yield frames.reported(self._upto)

    def _report_changed(self, first: dict[Key, int]) -> Iterator[Finding]:
        for key, since in first.items():
            yield frames.changed(key, since, "legacy", since)

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

    # -- namespaces

    def _scan(self) -> Iterator[Finding]:
        """Looks for namespaces; new ones are to be read."""
        self._scan_due = time.monotonic() + _SCAN_EVERY
        before, self._paths = self._paths, namespaces.paths(self._only)
        for netns in self._paths.keys() - before.keys():
            self._due.update({(netns, family): None for family in FAMILIES})
        for netns in before.keys() - self._paths.keys():
            yield from self._gone({key for key in self._sent if key[0] == netns})
            for family in FAMILIES:
                self._due.pop((netns, family), None)
                self._counted.pop((netns, family), None)

    def _gone(self, keys: set[Key]) -> Iterator[Finding]:
        for key in keys:
            del self._sent[key]
            yield frames.gone(key)

    def _find(self, netns: int) -> Iterator[Finding]:
        if netns not in self._paths:
            yield from self._scan()
            if netns not in self._paths:
                yield from self._note(
                    f"network namespace {netns} has neither a name nor a process:"
                    " its rules cannot be read, so its rows have no rule texts"
                )

    # -- reading

    def _read(self, group: _Group) -> Generator[Finding, None, float]:
        """Reads the tables of a namespace and family; returns the CPU seconds that took."""
        begun = cpu_seconds()
        netns, _ = group
        yield from self._find(netns)
        before = self._stable_generation()
        if before is not None:
            yield from self._receive(before)
        self._due.pop(group, None)
        if group in self._counted:
            self._counted[group] = time.monotonic()
        if before is not None and netns in self._paths:
            yield from self._read_tables(group, before)
        return cpu_seconds() - begun

    def _read_tables(self, group: _Group, before: int) -> Iterator[Finding]:
        """`before`: the generation; all changes up to it have been reported."""
        netns, family = group
        path = self._paths[netns]
        try:
            with namespaces.inside(path, netns):
                names = iptables_save.names(family)
                mono = time.monotonic_ns()
                tables = iptables_save.read(family) if names else {}
        except (FileNotFoundError, ProcessLookupError):
            # The namespace has gone, or only the process by which it was reached.
            self._scan_due = 0.0
            self._due[group] = None
            return
        except CommandMissing as error:
            yield from self._note(f"{error}: rows have no rule texts")
            return
        except (CaptureError, OSError, Unreadable) as error:
            yield from self._note(f"rules of {namespaces.title(path, netns)}: {error}")
            return
        after = self._stable_generation()
        if after is None:
            return
        # A change that happened meanwhile makes the group due again.
        yield from self._receive(after)
        if self._unknown_upto > before:
            return
        has_rules = False
        for table, chains in tables.items():
            key = (netns, family, table)
            has_rules = has_rules or any(chain.rules for chain in chains.values())
            since = self._changed.setdefault(key, before)
            if since <= before:
                yield from self._table(key, since, mono, chains)
        if before == after:
            yield from self._gone(
                {key for key in self._sent if key[:2] == group and key[2] not in names}
            )
        if has_rules:
            self._counted[group] = time.monotonic()
        else:
            self._counted.pop(group, None)

    def _table(self, key: Key, since: int, mono: int, table: Table) -> Iterator[Finding]:
        sent = self._sent.setdefault(key, _Sent())
        if sent.since != since:
            sent.since = since
            sent.counters.clear()
            chains = frames.legacy_rules(table)
            if frames.fits(chains):
                yield frames.rules(key, since, "legacy", mono, chains, self._upto)
            else:
                title = namespaces.title(self._paths.get(key[0], ""), key[0])
                yield from self._note(
                    f"table {key[2]} of {title} has more than {frames.MOST >> 20} MB of rules:"
                    " rows have no rule texts for it"
                )
        counted = frames.legacy_counters(table)
        # The same counters twice let a reader compute a rate of 0; a third time adds nothing.
        if sent.counters[-2:] == [counted, counted] or not frames.fits(counted):
            return
        sent.counters = [*sent.counters[-1:], counted]
        yield frames.counters(key, since, mono, counted)
