# SPDX-License-Identifier: GPL-2.0-only
"""Which rules of legacy tables were in force when, and their texts.

The kernel does not announce that a legacy table was replaced: its entries are read now
and then, and whenever iptables' lock was taken or released, and compared without counters.
docs/decisions/0010-legacy-rules-between-readings.md says what follows from it.  Must not create
a table: reading one that does not exist would.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ipttrace.capture import iptables_save, xtables
from ipttrace.capture.iptables_save import CommandMissing
from ipttrace.capture.legacy_texts import LegacyTexts, TextTable, common
from ipttrace.capture.netlink.legacy.lock import LockWatch, Moment
from ipttrace.capture.netlink.legacy.printing import Printing
from ipttrace.capture.netlink.legacy.sessions import Gap, Sessions
from ipttrace.capture.netlink.legacy.tables import Key, Tables
from ipttrace.capture.xtables import Blob

# Looking for changes takes a fifth of a processor, unless that made rows wait too long; half of
# one while iptables' lock is taken again and again.
_REST: Final = 4
_LONGEST_REST: Final = 0.1  # s
_IDLE_REST: Final = 0.1  # s more
_RETRY: Final = 10.0  # s, after rules could not be read
# How long rows wait, s: for later readings to show that none was missed, and for texts.
_UNSETTLED: Final = 0.3
_UNPRINTED: Final = 2.0
_MOST_READINGS: Final = 64
# How long tables must have stayed the same before texts are read, s, if replacements of them
# cannot be counted.
_QUIET: Final = 0.3

_Blobs = dict[Key, Blob]


class Stretch(NamedTuple):
    """A time, and the rules that packets met whose events were read in it.

    `start`: CLOCK_MONOTONIC ns, until that of the next stretch; `seen`: the tables as they
    were read, one after another, then without those that may have been other ones meanwhile;
    `known`: the chains that were in force all the time; `epochs`: of `LegacyRules.texts`.
    """

    start: int
    seen: tuple[Tables, ...]
    known: Tables
    epochs: dict[int, int]


class _Reading:
    """All tables, as they were read at one time; and the gap between the reading before and it."""

    def __init__(self, number: int, begun: int, blobs: _Blobs) -> None:
        self.number = number
        self.begun = begun  # CLOCK_MONOTONIC ns
        self.flushed = begun  # events read later were sent after the reading
        self.blobs = blobs
        self.changed: frozenset[Key] = frozenset()  # since the reading before
        self.gap = Gap(0, 0, certain=True)
        self.quiet = True  # was the lock free all the time?
        self.hidden: frozenset[Key] = frozenset()  # see Gap.hidden
        self.epochs: dict[int, int] = {}
        self.tables: Tables = {
            key: blob.chains for key, blob in blobs.items() if blob.chains is not None
        }

    @property
    def same(self) -> bool:
        """Have the tables been the same ones since the reading before?"""
        return not self.changed and not self.hidden

    def find_hidden(self, before: _Reading) -> bool:
        """Finds `hidden`; returns whether there are none."""
        self.hidden = self.gap.hidden(before.blobs.keys() | self.blobs.keys(), self.changed)
        return not self.hidden


class LegacyRules:
    """The legacy tables of one namespace; methods are for the thread inside the namespace."""

    def __init__(self) -> None:
        """Of the calling thread's namespace.  Raises OSError."""
        self.checked = 0  # which rules events met that were read before is known; ns
        self.failed = ""  # why texts are unknown, for a message
        self.learned = False  # did texts of `tables` become known at the last check?
        self._texts = {family: LegacyTexts() for family in xtables.VERSIONS}
        self._unlocked = False  # are tables replaced by programs that do not take the lock?
        self._seen_at = 0.0  # when a change was seen last, s
        self._due = self._soonest = 0.0
        self._retry_at: dict[Key, float] = {}  # after a failure
        self._sockets = xtables.Sockets()
        self._lock = LockWatch()
        self._sessions = Sessions()
        self._moment = Moment(0, 0, 0)  # the lock at the last look
        self._printing: list[Printing] = []
        empty = _Reading(0, 0, {})
        self._newest = empty
        self._unsettled: deque[_Reading] = deque()  # `hidden` may become smaller
        self._settled: deque[_Reading] = deque()  # wait for texts
        self._before_last = self._last = self._reported = empty  # of those that were returned

    def close(self) -> None:
        """Closes the sockets, which hold the namespace."""
        self._sockets.close()
        self._lock.close()

    @property
    def tables(self) -> Tables:
        """The tables of the newest stretch."""
        return self._reported.tables

    @property
    def epochs(self) -> dict[int, int]:
        """Those of `tables`."""
        return self._reported.epochs

    def fileno(self) -> int:
        """A descriptor that is readable when tables may have changed; -1 if there is none."""
        return self._lock.fileno()

    @property
    def unparsed(self) -> bool:
        """Are there tables whose entries could not be read?"""
        return len(self.tables) < len(self._reported.blobs)

    @staticmethod
    def existing() -> set[int]:
        """The IP versions that have tables in the calling thread's namespace."""
        return {family for family in xtables.VERSIONS if iptables_save.names(family)}

    def check(
        self, flush: Callable[[], object] = lambda: None, *, force: bool = False
    ) -> list[Stretch] | None:
        """Compares the tables with those of the last check; None if it is not due.

        `flush`: reads all events that the kernel has sent; `force`: checks even if it is not
        due, and waits for texts.  Returns nothing if the newest stretch goes on; else stretches
        in which the rules changed, and new ones.  The first takes the place of those that begin
        later, which `checked` did not return.
        """
        if not force and not self.is_due():
            return None
        self.learned = False
        self._look(flush)
        self._print()
        if force and self._printing:
            for one in self._printing:
                one.wait()
            self._look(flush)
        elif force and self._unsettled:
            self._look(flush)
        self._settle(force=force)
        return self._returned(force=force)

    def texts(self, tables: Tables, epochs: dict[int, int]) -> dict[Key, TextTable]:
        """The texts of the rules in `tables`, of a stretch with these `epochs`, if known."""
        return {
            key: self._texts[key[0]].table(chains, epochs.get(key[0]))
            for key, chains in tables.items()
        }

    def is_due(self, *, rows_wait: bool = True) -> bool:
        """Whether it is time for a check; if no rows wait for one, a later time."""
        now, moved = time.monotonic(), self._lock.now() != self._moment
        printed = any(one.done and one.last is None for one in self._printing)
        due = self._due if rows_wait else self._due + _IDLE_REST
        return now >= due or printed or (moved and now >= self._soonest)

    # -- readings

    def _look(self, flush: Callable[[], object]) -> None:
        """Reads all tables, and flushes events if others may have been in force."""
        for one in self._printing:
            if one.last is None and one.done:
                one.last = self._newest.number + 1
        begun = time.monotonic()
        before = self._newest
        reading, locked = self._read(before)
        self._newest = reading
        reading.changed = frozenset(
            key
            for key in before.blobs.keys() & reading.blobs.keys()
            if before.blobs[key] != reading.blobs[key]
        )
        reading.gap = self._sessions.add(locked, self._moment, len(reading.changed))
        reading.quiet = locked == self._moment and not locked.open
        none_hidden = reading.find_hidden(before)
        if reading.changed or not none_hidden or before.blobs.keys() != reading.blobs.keys():
            self._note_change(reading)
            flush()
            reading.flushed = time.monotonic_ns()
        self._unsettled.append(reading)
        end = time.monotonic()
        self._soonest = end + end - begun
        self._due = end + min(_REST * (end - begun), _LONGEST_REST)

    def _read(self, before: _Reading) -> tuple[_Reading, Moment]:
        """Returns a reading, and the lock before it; `_moment` is the lock behind it."""
        locked = self._lock.now()
        begun = time.monotonic_ns()
        raw = {
            (family, name): self._sockets.fetch(family, name)
            for family in self._sockets.families
            for name in iptables_save.names(family)
        }
        self._moment = self._lock.now()
        blobs = {
            key: xtables.NONE
            if one is None
            else xtables.parse(one[1], key[0], one[0], before.blobs.get(key, xtables.NONE))
            for key, one in raw.items()
        }
        return _Reading(before.number + 1, begun, blobs), locked

    def _note_change(self, reading: _Reading) -> None:
        """Texts that were printed between two such changes may be of other rules."""
        if reading.changed:
            self._seen_at = time.monotonic()
        missed = reading.gap.missed
        if missed is not None and missed < 0 and not self._unlocked:
            self._unlocked = True
            self._printing.clear()
            self._texts = {family: LegacyTexts() for family in xtables.VERSIONS}

    # -- texts

    def _print(self) -> None:
        """Prints the tables that have rules whose texts are not known."""
        now = time.monotonic()
        printing = {(one.family, one.table) for one in self._printing}
        for key, chains in self._newest.tables.items():
            if key in printing or now < self._retry_at.get(key, 0.0):
                continue
            if not self._texts[key[0]].knows(chains):
                self._printing.append(Printing(*key, self._newest.number, chains))

    def _learn(self, one: Printing) -> None:
        """Takes what was printed between two readings."""
        key = (one.family, one.table)
        now = time.monotonic()
        if self._unlocked and now < self._seen_at + _QUIET:
            self._retry_at[key] = now + min(one.took, _LONGEST_REST)
            return
        if one.failure is not None:
            # Tables that change meanwhile can be the reason.
            same = one.chains == self._newest.tables.get(key)
            if isinstance(one.failure, CommandMissing) or same:
                self.failed = str(one.failure)
                # Rows wait for each check: a failing command must not delay every one.
                self._retry_at[key] = now + _RETRY
                return
        else:
            self.failed = ""
        texts = self._texts[one.family]
        self.learned = texts.learn(one.chains, one.printed) or self.learned
        if one.chains != self._newest.tables.get(key):
            self._retry_at[key] = now + one.took  # it is replaced faster than it is printed
        texts.bound([each for key, each in self._newest.tables.items() if key[0] == one.family])

    # -- stretches

    def _settle(self, *, force: bool) -> None:
        """Moves on the readings of which later ones show nothing more."""
        oldest = time.monotonic_ns() - int(_UNSETTLED * 1e9)
        while self._unsettled:
            reading = self._unsettled[0]
            final = (
                force
                or self._unlocked
                or self._newest.quiet
                or not reading.gap.certain
                or reading.begun < oldest
                or len(self._unsettled) > _MOST_READINGS
            )
            before = self._settled[-1] if self._settled else self._last
            if not reading.find_hidden(before) and not final:
                return
            self._unsettled.popleft()
            self._keep_texts(reading)
            self._settled.append(reading)

    def _keep_texts(self, reading: _Reading) -> None:
        """Forgets texts that may not hold any more, and learns those that were printed."""
        for family, texts in self._texts.items():
            if reading.hidden:
                texts.forget_sets()
            if not reading.same:
                texts.replaced([one for key, one in reading.tables.items() if key[0] == family])
            reading.epochs[family] = texts.epoch
        for one in list(self._printing):
            key = (one.family, one.table)
            if one.first < reading.number and (one.last is None or reading.number <= one.last):
                if key in reading.hidden or (self._unlocked and key in reading.changed):
                    one.chains = {}
                elif not reading.same:
                    one.chains = common(one.chains, reading.tables.get(key, {}))
            if one.last == reading.number:
                self._printing.remove(one)
                self._learn(one)

    def _returned(self, *, force: bool) -> list[Stretch]:
        """Returns the stretches of readings whose texts need not be waited for."""
        patience = time.monotonic() - _UNPRINTED
        waits = [one.first for one in self._printing if one.begun > patience]
        first = min(waits, default=self._newest.number + 1)
        found: list[Stretch] = []
        while self._settled:
            reading = self._settled[0]
            if reading.number >= first and not force and len(self._settled) <= _MOST_READINGS:
                break
            self._settled.popleft()
            found += self._stretches(reading)
        return found

    def _stretches(self, reading: _Reading) -> list[Stretch]:
        before, earlier = self._last, self._before_last
        self._before_last, self._last = before, reading
        self.checked = reading.begun
        if reading.same and before.blobs.keys() == reading.blobs.keys():
            return []
        self._reported = reading
        seen, hidden = [before.tables, reading.tables], reading.hidden
        if before.flushed > before.begun:
            # Events read before the flush may be of the tables before.
            seen.insert(0, earlier.tables)
            hidden |= before.hidden
        known = {
            key: common(*(each[key] for each in seen))
            for key in reading.tables
            if key not in hidden and all(key in each for each in seen)
        }
        if hidden:
            seen.append({key: one for key, one in reading.tables.items() if key not in hidden})
        epochs = min((one.epochs for one in (earlier, before)), key=lambda each: sum(each.values()))
        return [
            Stretch(before.begun, tuple(seen), known, epochs),
            Stretch(reading.flushed, (reading.tables,), reading.tables, reading.epochs),
        ]
