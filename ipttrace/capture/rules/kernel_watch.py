# SPDX-License-Identifier: GPL-2.0-only
"""Watches the legacy rules of every namespace for the kernel engine, generation by generation.

The module numbers the changes of all tables and reports which have changed.  A table
is read while no change is under way in its namespace, and the result is used only if
none happened meanwhile: it then holds since the table's last change.  A change is
reported before the new rules are read, so that a reader never takes old rules for new
ones.

Reading costs CPU time: changed tables are read at once, but take a fifth of one
processor at most; counters take a 50th.  Whoever changes rules all the time (any user
may, in a namespace of his own) is read less and less often, and after all others.  Must
not call the engine, create a table that did not exist, or keep a namespace alive.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Generator, Iterator
from typing import Final

from ipttrace.capture import iptables_save, xtables
from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.kernel.control import NotWatched
from ipttrace.capture.legacy_texts import LegacyTexts, printed_texts
from ipttrace.capture.rules import frames
from ipttrace.capture.rules.base import RuleTexts, cpu_seconds
from ipttrace.capture.rules.frames import Key
from ipttrace.capture.rules.kernel_changes import FAMILIES, ChangeWatch, Group, Sent
from ipttrace.capture.rules.pauses import Pauses
from ipttrace.capture.watch import Finding
from ipttrace.capture.xtables import Chains
from ipttrace.ready import readable

_COUNT_EVERY: Final = 2.0  # s
_SCAN_EVERY: Final = 30.0
# After a read, the watch rests for so many times the CPU time that the read took.
_READ_SHARE: Final = 4
_COUNT_SHARE: Final = 49
_LONGEST_REST: Final = 30.0
_RETRY: Final = 10.0  # s after a failure


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


class KernelRuleWatch(ChangeWatch):
    """Reads the tables whenever the module reports a change of them."""

    def __init__(self, only: int | None, first: threading.Event, ended: int) -> None:
        """`only`: inode of the one namespace; `ended`: an eventfd that ends any wait."""
        super().__init__(only, first)
        self._ended = ended
        self._texts: dict[Group, LegacyTexts] = {}
        self._pauses = Pauses()
        self._counted: dict[Group, float] = {}  # groups that have rules: when they were read
        self._read_rest = self._count_rest = self._compare_rest = 0.0

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
        if self._compare and time.monotonic() >= self._compare_rest:
            cost = yield from self._compare_entries()
            self._compare_rest = time.monotonic() + min(_READ_SHARE * cost, _LONGEST_REST)
        if (group := self._next_due()) is not None:
            cost = yield from self._read(group)
            self._read_rest = time.monotonic() + min(_READ_SHARE * cost, _LONGEST_REST)
        elif (group := self._next_counted()) is not None:
            cost = yield from self._read(group)
            self._count_rest = time.monotonic() + _COUNT_SHARE * cost

    def _first_look(self) -> Iterator[Finding]:
        """Reads everything, without a rest."""
        generation = self._control.newest_generation()
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
        if self._compare:
            due.append(self._compare_rest)
        if self._due:
            due.append(max(self._read_rest, self._pauses.end(self._due)))
        if self._counted:
            due.append(max(min(self._counted.values()) + _COUNT_EVERY, self._count_rest))
        readable(self._changes, self._ended, timeout=max(0.0, min(due) - now))

    def _next_due(self) -> Group | None:
        """Returns the group to be read now: of those that changed least often, the first."""
        now = time.monotonic()
        return None if now < self._read_rest else self._pauses.calmest(self._due, now)

    def _next_counted(self) -> Group | None:
        """Returns the group whose counters are due, the longest unread first."""
        now = time.monotonic()
        if not self._counted or now < self._count_rest:
            return None
        group = min(self._counted, key=self._counted.__getitem__)
        return group if now >= self._counted[group] + _COUNT_EVERY else None

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
                for each in (self._due, self._compare, self._texts):
                    each.pop((netns, family), None)
                self._pauses.forget((netns, family))
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

    def _read(self, group: Group) -> Generator[Finding, None, float]:
        """Reads the tables of a namespace and family; returns the CPU seconds that took."""
        begun = cpu_seconds()
        netns, _ = group
        yield from self._find(netns)
        self._due.pop(group, None)
        self._pauses.begin(group, time.monotonic())
        if group in self._counted:
            self._counted[group] = time.monotonic()
        if netns in self._paths:
            yield from self._read_tables(group)
        return cpu_seconds() - begun

    def _read_tables(self, group: Group) -> Iterator[Finding]:
        netns, family = group
        path = self._paths[netns]
        try:
            with namespaces.held(path, netns) as fd:
                before = self._settled(fd)
                unknown = self._unknown_upto
                if before is not None:
                    yield from self._receive(before)
                    changed = dict(self._changed)
                    mono = time.monotonic_ns()
                    with namespaces.inside(path, netns):
                        names = iptables_save.names(family)
                        entries = _entries(family, names)
                        tables = iptables_save.read(family) if names else {}
                    after = self._settled(fd)
        except (FileNotFoundError, ProcessLookupError):
            # The namespace has gone, or only the process by which it was reached.
            self._scan_due = 0.0
            self._due[group] = None
            return
        except CommandMissing as error:
            yield from self._note(f"{error}: rows have no rule texts")
            return
        except NotWatched:
            raise
        except (CaptureError, OSError, Unreadable) as error:
            yield from self._note(f"rules of {namespaces.title(path, netns)}: {error}")
            return
        if before is None or after is None:
            # Always changing, or disarmed.
            self._due[group] = None
            return
        # A change that happened meanwhile makes the group due again.
        yield from self._receive(after)
        if self._unknown_upto != unknown:
            return
        has_rules = False
        for table, chains in tables.items():
            key = (netns, family, table)
            has_rules = has_rules or any(chain.rules for chain in chains.values())
            since = self._changed.setdefault(key, before)
            if since != changed.get(key, before):
                continue  # it has changed since it was read
            if before == after:
                # Of lost reports only an upper bound is known.
                since = min(since, before)
            if since <= before:
                self._learn(group, entries.get(table), chains)
                yield from self._table(key, since, mono, chains)
        if before == after:
            yield from self._gone(
                {key for key in self._sent if key[:2] == group and key[2] not in names}
            )
        if has_rules:
            self._counted[group] = time.monotonic()
        else:
            self._counted.pop(group, None)

    def _compare_entries(self) -> Generator[Finding, None, float]:
        """Reports the rules whose texts are known by their entries; returns the CPU seconds.

        Reading entries costs a fraction of what printing them does: in tables that are replaced
        all the time, the chains that stay the same, or come again, have their texts at once.
        """
        begun = cpu_seconds()
        group = netns, family = next(iter(self._compare))
        del self._compare[group]
        path, texts = self._paths.get(netns), self._texts.get(group)
        if path is None or texts is None:
            return 0.0  # nothing has been printed yet
        try:
            with namespaces.held(path, netns) as fd:
                before = self._settled(fd)
                if before is None:
                    return cpu_seconds() - begun
                yield from self._receive(before)
                unknown, changed = self._unknown_upto, dict(self._changed)
                mono = time.monotonic_ns()
                with namespaces.inside(path, netns):
                    entries = _entries(family, iptables_save.names(family))
                after = self._settled(fd)
        except NotWatched:
            raise
        except OSError:
            return cpu_seconds() - begun  # the next reading finds out why
        if after is None:
            return cpu_seconds() - begun
        yield from self._receive(after)
        for table, chains in entries.items():
            key = (netns, family, table)
            since = self._changed.get(key)
            if since is None or since != changed.get(key) or since > before:
                continue  # it has changed since it was read
            if self._unknown_upto != unknown:
                continue
            sent = self._sent.setdefault(key, Sent())
            if since in (sent.since, sent.entries):
                continue
            rules, without = frames.legacy_rules(texts.table(chains))
            if frames.fits(rules):
                sent.entries = since
                yield frames.rules(key, since, "legacy", mono, rules, self._upto, without)
        return cpu_seconds() - begun

    def _learn(self, group: Group, chains: Chains | None, printed: Table) -> None:
        """Keeps the texts of a table that was the same from reading its entries to printing it."""
        if chains is not None:
            texts = self._texts.setdefault(group, LegacyTexts())
            texts.learn(chains, printed)
            texts.bound([chains])
            texts.forget_sets()  # a set's index may be another set's after any change

    def _table(self, key: Key, since: int, mono: int, table: Table) -> Iterator[Finding]:
        sent = self._sent.setdefault(key, Sent())
        if sent.since != since:
            sent.since = since
            sent.counters.clear()
            chains, _ = frames.legacy_rules(printed_texts(table))
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


def _entries(family: int, names: list[str]) -> dict[str, Chains]:
    """Returns the chains of tables in the thread's namespace, as far as they can be read."""
    if not names:
        return {}
    with contextlib.closing(xtables.Sockets()) as sockets:
        found = {name: sockets.read(family, name).chains for name in names}
    return {name: chains for name, chains in found.items() if chains is not None}
