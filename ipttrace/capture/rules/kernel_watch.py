# SPDX-License-Identifier: GPL-2.0-only
"""The rules of every namespace, as they were when: a watch.

The module numbers the changes of all tables and tells of each.  A table is read
while no change is under way, and what was read counts only if none fell in
between: then it holds from the table's last change on.  Changes are told of
first, in order, so that a reader never takes old rules for new ones; what the
frames hold is told in ipttrace/trace/rules/history.py.

Reading costs: changed tables are read at once but for a fifth of one processor
at most, counters for a 50th.  Must not touch the engine, make a table that was
not there, or keep a namespace alive.
"""

from __future__ import annotations

import json
import os
import resource
import select
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ipttrace.capture import iptables_save as ruleset_save
from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Change, Control
from ipttrace.capture.watch import Seen
from ipttrace.stream.frames import Kind

FAMILIES: Final = (4, 6)
# A frame of more is not written; readers refuse 16 MB.
MOST: Final = 8 << 20

_COUNT_EVERY: Final = 2.0  # s
_SCAN_EVERY: Final = 30.0
# Rest after so many times what it cost.
_READ_SHARE: Final = 4
_COUNT_SHARE: Final = 49
_LONGEST_REST: Final = 30.0
# After a failure, s.
_AGAIN: Final = 10.0
# How long a change may be under way, and how long its message may take, s.
_SETTLES: Final = 2.0
_TELLS: Final = 1.0

_Key = tuple[int, int, str]
_Place = tuple[int, int]  # namespace, family


@dataclass(slots=True)
class _Told:
    """What the stream has been told of a table."""

    since: int = 0  # of the newest rules that it has; 0: none
    counters: list[dict[str, Any]] = field(default_factory=list)  # the newest two


def _spent() -> float:
    """CPU seconds of this thread and of all that it has run."""
    of = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + of.ru_utime + of.ru_stime


class Rules:
    """To be made by the agent; `make` is for the watch's own thread."""

    def __init__(self, only: str | None = None) -> None:
        """`only`: the one namespace that is traced, as `namespaces.inode` takes it."""
        self.first = threading.Event()  # set after the first look, whatever it found
        self._only = only
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def make(self) -> RuleWatch:
        """The watch.  Raises CaptureError."""
        try:
            only = None if self._only is None else namespaces.inode(self._only)
            return RuleWatch(only, self.first, self._ended)
        except BaseException:
            self.first.set()
            raise

    def settled(self, timeout: float) -> bool:
        """Nobody tells it of changes: there is nothing to wait for."""
        return True

    def end(self) -> None:
        """Wakes the watch, which is about to be closed."""
        os.eventfd_write(self._ended, 1)


class RuleWatch:
    """See Watch: `look` waits by itself until there is something to do."""

    def __init__(self, only: int | None, first: threading.Event, ended: int) -> None:
        if not kmod.loaded():
            raise CaptureError("the module is not loaded")
        self.interval = 0.0
        self._only = only
        self._first = first
        self._ended = ended
        self._control = Control()
        try:
            self._changes = self._control.changes()
        except BaseException:
            self._control.close()
            raise
        self._upto = 0  # every change up to it has been told
        self._lost_upto = 0  # what was changed up to it is not known
        self._changed: dict[_Key, int] = {}  # last change that is known
        self._told: dict[_Key, _Told] = {}
        self._paths: dict[int, str] = {}
        self._due: dict[_Place, None] = {}  # to be read, in order of need
        self._counted: dict[_Place, float] = {}  # with rules: when they were read
        self._read_rest = self._count_rest = self._scan_due = 0.0
        self._said: set[str] = set()

    def close(self) -> None:
        """Nobody is told any more."""
        self._changes.close()
        self._control.close()

    def look(self) -> Iterator[Seen]:
        """What there is to do now; where there is nothing, waits for it."""
        self.interval = _AGAIN
        try:
            yield from self._look()
            self.interval = 0.0
        finally:
            self._first.set()

    def _look(self) -> Iterator[Seen]:
        if not self._upto:
            yield from self._begin()
            return
        self._wait()
        yield from self._hear()
        if time.monotonic() >= self._scan_due:
            yield from self._scan()
        if self._due and time.monotonic() >= self._read_rest:
            cost = yield from self._read(next(iter(self._due)))
            self._read_rest = time.monotonic() + min(_READ_SHARE * cost, _LONGEST_REST)
        elif (place := self._countable()) is not None:
            cost = yield from self._read(place)
            self._count_rest = time.monotonic() + _COUNT_SHARE * cost

    def _begin(self) -> Iterator[Seen]:
        """The first look: everything, without a rest."""
        generation = self._settled()
        if generation is None:
            # Until it is armed again, or never: a look costs next to nothing.
            select.select([self._ended], [], [], 1.0)
            return
        self._upto = generation
        yield Kind.RULES, {"upto": generation}
        yield from self._scan()
        for place in list(self._due):
            if self._over():
                return
            yield from self._read(place)

    def _over(self) -> bool:
        return bool(select.select([self._ended], [], [], 0)[0])

    def _wait(self) -> None:
        now = time.monotonic()
        due = [self._scan_due]
        if self._due:
            due.append(self._read_rest)
        if self._counted:
            due.append(max(min(self._counted.values()) + _COUNT_EVERY, self._count_rest))
        fds = [self._changes.fileno(), self._ended]
        select.select(fds, [], [], max(0.0, min(due) - now))

    def _countable(self) -> _Place | None:
        now = time.monotonic()
        if not self._counted or now < self._count_rest:
            return None
        place = min(self._counted, key=self._counted.__getitem__)
        return place if now >= self._counted[place] + _COUNT_EVERY else None

    # -- what the module tells

    def _settled(self) -> int | None:
        """The generation, once no change is under way; None where it is not told.

        Raises CaptureError where changes have been missed.
        """
        deadline = time.monotonic() + _SETTLES
        while True:
            status = self._control.status()
            if status.ruleset:
                return status.ruleset
            if status.state != "armed":
                return None
            if not status.rules_seen:
                raise CaptureError(
                    "this kernel does not let changes of rules be seen: no row has its rule's text"
                )
            if time.monotonic() > deadline:
                raise CaptureError(
                    "a change of rules was missed: rows from now on have no rule's text"
                )
            time.sleep(0.002)

    def _hear(self, until: int = 0) -> Iterator[Seen]:
        """Tells of the changes that have come; waits for those up to `until`."""
        deadline = time.monotonic() + _TELLS
        while True:
            yield from self._tell(self._changes.take())
            left = deadline - time.monotonic()
            if self._upto >= until:
                return
            if left <= 0:
                yield self._lost(until)
                return
            select.select([self._changes.fileno()], [], [], left)

    def _tell(self, changes: list[Change]) -> Iterator[Seen]:
        marks: dict[_Key, int] = {}
        for change in changes:
            if change.generation <= self._upto:
                continue
            if change.generation > self._upto + 1 or not change.netns or not change.family:
                # Messages were lost, or nobody knows what was changed.
                yield from self._mark(marks)
                marks = {}
                yield self._lost(change.generation)
                continue
            self._upto = change.generation
            if self._only not in (None, change.netns):
                continue
            key = (change.netns, change.family, change.table)
            self._changed[key] = change.generation
            self._due[key[:2]] = None
            # The first is enough: from there on they are not known.
            marks.setdefault(key, change.generation)
        yield from self._mark(marks)
        if changes:
            yield Kind.RULES, {"upto": self._upto}

    def _mark(self, marks: dict[_Key, int]) -> Iterator[Seen]:
        for key, since in marks.items():
            yield self._rules(key, since, upto=since)

    def _lost(self, generation: int) -> Seen:
        """All tables may have been changed since what was told last."""
        frame = {"since": self._upto + 1, "upto": generation}
        self._upto = self._lost_upto = generation
        self._changed.clear()
        self._told.clear()
        self._scan_due = 0.0
        for netns in self._paths:
            self._due.update({(netns, family): None for family in FAMILIES})
        return Kind.RULES, frame

    # -- namespaces

    def _scan(self) -> Iterator[Seen]:
        """Which namespaces there are; those that are new are to be read."""
        self._scan_due = time.monotonic() + _SCAN_EVERY
        before, self._paths = self._paths, namespaces.paths(self._only)
        for netns in self._paths.keys() - before.keys():
            self._due.update({(netns, family): None for family in FAMILIES})
        for netns in before.keys() - self._paths.keys():
            yield from self._gone({key for key in self._told if key[0] == netns})
            for family in FAMILIES:
                self._due.pop((netns, family), None)
                self._counted.pop((netns, family), None)

    def _gone(self, keys: set[_Key]) -> Iterator[Seen]:
        for key in keys:
            del self._told[key]
            netns, family, table = key
            yield (
                Kind.RULES,
                {"netns": netns, "family": family, "table": table, "gone": True},
            )

    def _look_up(self, netns: int) -> Iterator[Seen]:
        if netns not in self._paths:
            yield from self._scan()
            if netns not in self._paths:
                yield from self._say(
                    f"no name and no process leads to network namespace {netns}:"
                    " the texts of its rules are not known"
                )

    # -- reading

    def _read(self, place: _Place) -> Generator[Seen, None, float]:
        """Reads the tables of a namespace and family; returns what it cost, CPU seconds."""
        begun = _spent()
        yield from self._look_up(place[0])
        before = self._settled()
        if before is not None:
            yield from self._hear(before)
        self._due.pop(place, None)
        if place in self._counted:
            self._counted[place] = time.monotonic()
        if before is not None and place[0] in self._paths:
            yield from self._read_there(place, before)
        return _spent() - begun

    def _read_there(self, place: _Place, before: int) -> Iterator[Seen]:
        """`before`: the generation, of which all has been told."""
        netns, family = place
        try:
            with ruleset_save.inside(self._paths[netns], netns):
                names = ruleset_save.names(family)
                mono = time.monotonic_ns()
                tables = ruleset_save.read(family) if names else {}
        except (FileNotFoundError, ProcessLookupError):
            # It has gone, or its process has: perhaps there is another way.
            self._scan_due = 0.0
            self._due[place] = None
            return
        except CommandMissing as error:
            yield from self._say(f"{error}, without which no row has its rule's text")
            return
        except (CaptureError, OSError, Unreadable) as error:
            yield from self._say(f"rules of {self._name(netns)}: {error}")
            return
        after = self._settled()
        if after is None:
            return
        # The same place becomes due again by a change that fell in between.
        yield from self._hear(after)
        if self._lost_upto > before:
            return
        ruled = False
        for table, chains in tables.items():
            key = (netns, family, table)
            ruled = ruled or any(chain.rules for chain in chains.values())
            since = self._changed.setdefault(key, before)
            if since <= before:
                yield from self._table(key, since, mono, chains)
        if before == after:
            yield from self._gone(
                {key for key in self._told if key[:2] == place and key[2] not in names}
            )
        if ruled:
            self._counted[place] = time.monotonic()
        else:
            self._counted.pop(place, None)

    def _table(self, key: _Key, since: int, mono: int, chains: Table) -> Iterator[Seen]:
        told = self._told.setdefault(key, _Told())
        if told.since != since:
            told.since = since
            told.counters.clear()
            texts = {
                name: {"policy": chain.policy, "rules": chain.rules}
                for name, chain in chains.items()
            }
            if fits(texts):
                yield self._rules(key, since, mono=mono, chains=texts)
            else:
                yield from self._say(
                    f"table {key[2]} of {self._name(key[0])} has more than {MOST >> 20} MB of"
                    " rules: the texts of these are not known"
                )
        counted = {
            name: {"policy": chain.counted, "rules": chain.counters}
            for name, chain in chains.items()
        }
        # Twice the same says that nothing is counted; more often says nothing.
        if told.counters[-2:] == [counted, counted] or not fits(counted):
            return
        told.counters = [*told.counters[-1:], counted]
        netns, family, table = key
        frame = {"netns": netns, "family": family, "table": table}
        yield Kind.COUNTERS, {**frame, "mono": mono, "since": since, "chains": counted}

    def _rules(self, key: _Key, since: int, **more: Any) -> Seen:
        netns, family, table = key
        frame = {
            "netns": netns,
            "family": family,
            "table": table,
            "backend": "legacy",
            "since": since,
            "mono": time.monotonic_ns(),
            "upto": self._upto,
            **more,
        }
        return Kind.RULES, frame

    def _name(self, netns: int) -> str:
        path = self._paths.get(netns, "")
        return f"network namespace {Path(path).name if '/netns/' in path else netns}"

    def _say(self, text: str) -> Iterator[Seen]:
        """A note, once."""
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            yield Kind.NOTE, {"level": "warn", "text": text}


def fits(value: Any) -> bool:
    """Whether it is not too long for a frame."""
    return len(json.dumps(value, separators=(",", ":"))) <= MOST
