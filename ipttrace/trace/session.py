# SPDX-License-Identifier: GPL-2.0-only
"""A trace: frames of one stream in, rows out.

The same for a live agent and for a file.  Must not do I/O: the caller reads the stream.
"""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from ipttrace.stream import record
from ipttrace.stream.budget import Budget
from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.calls import Assembler, Calls, Flows
from ipttrace.trace.drops import Stations
from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.rules import Rulesets
from ipttrace.trace.sockets import Owners, Sockets, Stage
from ipttrace.trace.store import ENGINES, Columns, FullNames, Store, fill
from ipttrace.trace.tables import KernelTables

_KINDS: Final = {Kind.ENTRY: record.ENTRY, Kind.RULE: record.RULE, Kind.EXIT: record.EXIT}
_LEVELS: Final = ("info", "warn", "error")
_BESIDE: Final = ("stations", "sockets")  # have counters of their own in the books
_MOST_NOTES: Final = 1000
_MOST_NETNS: Final = 1 << 14  # names of namespaces that are added to those of HELLO
_NS_LIMIT: Final = 1 << 63


class Trace:
    """What one stream contained: rows, rules, neighbours, kernel tables, books and notes."""

    def __init__(
        self, capacity: int = 1_000_000, *, store: Store | None = None, host: int = 0
    ) -> None:
        """`store`: shared with other traces; `host`: this trace's number in it, 0 to 255."""
        self.store = Store(capacity) if store is None else store
        self.host = host
        self.rows = 0  # made by this trace, still held or not
        # Kept from an earlier trace of this host: its rows refer to them.
        self.rulesets = self.store.rulesets.setdefault(host, Rulesets())
        self.rulesets.begin()
        self.neighbours = self.store.neighbours[host] = Neighbours()
        self.kernel_tables = self.store.kernel_tables[host] = KernelTables()
        self.hello: dict[str, Any] = {}
        self.books: dict[str, Any] = {}
        self.notes: list[tuple[str, str]] = []  # level and clean text
        self.ended: dict[str, Any] | None = None  # the END frame
        self.clock: tuple[int, int] | None = None  # CLOCK_MONOTONIC and CLOCK_REALTIME, ns
        self.records = 0
        self.note_count = 0  # of all notes, also those that are not kept any more
        self._engine = 0
        self._assembler = Assembler()
        self._flows = Flows(self.store.aliases)
        self._budget = Budget()
        self._names = FullNames(self.store.names)
        self._stations = Stations(self.store)
        self.sockets = Sockets()
        self._owners = Owners(self.store.names)

    def feed(self, frame: Frame) -> int:
        """Processes a frame; returns the number of rows that it finished.

        Raises StreamError, one line, if the frame is malformed, or if more would have to
        be kept than a stream may need.
        """
        new = self._feed(frame)
        self._budget.check(
            {
                "records whose calls have not ended": self._assembler.size,
                "stations": self._stations.size,
                "rules": self.rulesets.size,
                "neighbours": self.neighbours.size,
                "kernel tables": self.kernel_tables.size,
                "sockets": self.sockets.size,
            }
        )
        return new

    def _feed(self, frame: Frame) -> int:
        kind = _KINDS.get(frame.kind)  # type: ignore[call-overload]
        if kind is not None:
            records = frame.records
            self.records += len(records)
            return self._keep(self._assembler.feed(kind, records))
        if frame.kind == Kind.STATION:
            records = frame.records
            self.records += len(records)
            self._stations.add(records)
            # Those of a batch of calls come before its exits.
            return self._keep(None) if self._assembler.between else 0
        if frame.kind == Kind.SOCKET:
            records = frame.records
            self.records += len(records)
            mono, wall = self.clock or (0, 0)
            self._own(self.sockets.feed(records, wall - mono))
            return 0
        if frame.kind == Kind.HELLO:
            return self._hello(frame.json)
        if frame.kind == Kind.CLOCK:
            # Records so far have times of the previous clock.
            new = self._keep(self._assembler.flush(), complete=True)
            self._set_clock(frame.json)
            return new
        if frame.kind == Kind.BOOKS:
            self.books = _books(frame.json)
            return self._keep(None, complete=True)
        if frame.kind == Kind.PLACES:
            self._stations.learn(frame.json)
        elif frame.kind == Kind.PROCESSES:
            self.sockets.learn(frame.json)
        elif frame.kind == Kind.NOTE:
            self._note(frame.json)
        elif frame.kind == Kind.RULES:
            self.rulesets.feed(frame.json)
        elif frame.kind == Kind.COUNTERS:
            self.rulesets.feed_counters(frame.json)
        elif frame.kind == Kind.NAMES:
            self._names.learn(frame.json)
            self._learn_netns(frame.json.get("netns", {}))
        elif frame.kind == Kind.NEIGHBOURS:
            self.neighbours.feed(frame.json)
        elif frame.kind == Kind.TABLES:
            self.kernel_tables.feed(frame.json)
        elif frame.kind == Kind.END:
            end = frame.json
            self.books = {**self.books, **_books(end)}
            self.ended = end
            return self.finish()
        return 0

    def finish(self) -> int:
        """Ends the trace, with or without an END frame; returns the number of new rows."""
        return self._keep(self._assembler.finish(), complete=True)

    def summary(self) -> dict[str, Any]:
        """Returns the figures for the line that ends every command.

        `lost` and `missed` are None if the stream broke off: only END has the last books.
        """
        known = self.ended is not None
        return {
            "rows": self.rows,
            "records": self.records,
            "lost": self.lost if known else None,
            "missed": self.missed if known else None,
            "engine": self.engine,
            "incomplete": self.incomplete,
        }

    def notes_after(self, number: int) -> list[tuple[str, str]]:
        """Returns the notes after the first `number` ones of the stream that are still kept."""
        return self.notes[max(len(self.notes) - max(self.note_count - number, 0), 0) :]

    @property
    def lost(self) -> int:
        """Records that no buffer had room for, as of the last books; 0 before the first."""
        lost: int = sum(self.books.get("lost", ()))
        return lost + self._beside("lost")

    @property
    def missed(self) -> int:
        """Calls and stations that no probe saw, as of the last books; 0 before the first."""
        missed: int = self.books.get("missed", 0)
        return missed + self._beside("missed")

    @property
    def has_stations(self) -> bool:
        """Whether there have been stations in the stream."""
        return self._stations.active

    def _beside(self, counter: str) -> int:
        """A counter of stations and of sockets, as of the last books."""
        both: list[dict[str, int]] = [self.books.get(name, {}) for name in _BESIDE]
        return sum(one.get(counter, 0) for one in both)

    @property
    def engine(self) -> str:
        """The engine named in the stream's HELLO."""
        return ENGINES[self._engine]

    @property
    def incomplete(self) -> int:
        """The number of calls without a row: entry or exit never came, or too late to be joined."""
        return self._assembler.incomplete

    def _keep(self, calls: Calls | None, *, complete: bool = False) -> int:
        """Appends the rows of calls, and of the stations beside them.

        `complete`: no call will come that belongs to a station so far.
        """
        if self._stations.active:
            new = self._stations.append(calls, self._fill, complete_batch=complete)
        else:
            new = 0 if calls is None else self.store.append(*self._fill(calls))
        self.rows += new
        return new

    def _fill(self, calls: Calls) -> tuple[Columns, Array, Columns]:
        mono, wall = self.clock or (0, 0)
        of_stream = (self._names, self._flows, self.rulesets, self._engine)
        filled = fill(calls, *of_stream, wall - mono, self.host)
        if len(self._owners):
            self._owners.fill(filled[0])
        return filled

    def _own(self, stages: list[Stage]) -> None:
        """Notes who has the sockets of these stages, for rows to come and for the latest."""
        since = self._owners.learn(stages)
        if since is not None:
            self._owners.complete(self.store, self.host, since)

    def _hello(self, hello: dict[str, Any]) -> int:
        new = 0
        if self.hello:
            new = self.finish()
            self.rulesets.begin()
            self.ended = None
            self._names = FullNames(self.store.names)
            self._stations = Stations(self.store)
            self.sockets.begin()
            self._owners = Owners(self.store.names)
        engine = hello.get("engine", "")
        if engine not in ENGINES:
            raise StreamError(f"unknown engine in the stream: {clean(str(engine), 80)}")
        self._engine = ENGINES.index(engine)
        if "clock" in hello:
            self._set_clock(hello["clock"])
        self.hello = hello
        return new

    def _set_clock(self, value: object) -> None:
        self.clock = mono, wall = _clock(value)
        self.kernel_tables.offset = wall - mono

    def _learn_netns(self, names: object) -> None:
        """Adds names of namespaces to those of HELLO, where readers find them."""
        known = self.hello.get("netns")
        if not isinstance(names, dict) or not isinstance(known, dict | None):
            raise StreamError("malformed names of namespaces in the stream")
        if names and len(known or {}) + len(names) <= _MOST_NETNS:
            # Replaced, never modified, so that readers need no lock.
            self.hello = {**self.hello, "netns": {**(known or {}), **names}}

    def _note(self, note: dict[str, Any]) -> None:
        level, text = note.get("level"), note.get("text")
        if not isinstance(text, str):
            raise StreamError("a note in the stream has no text")
        if len(self.notes) >= _MOST_NOTES:
            del self.notes[: _MOST_NOTES // 10]
        self.note_count += 1
        self.notes.append((level if level in _LEVELS else "info", clean(text)))


def _is_natural(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -1 < value < _NS_LIMIT


def _clock(value: object) -> tuple[int, int]:
    if isinstance(value, dict):
        mono, wall = value.get("mono"), value.get("wall")
        if _is_natural(mono) and _is_natural(wall):
            return mono, wall
    raise StreamError("malformed clock in the stream")


def _books(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the books after checking the counters that the summary adds up."""
    lists = [value[name] for name in ("due", "delivered", "lost") if name in value]
    for numbers in lists:
        if not isinstance(numbers, list) or len(numbers) > 16 or not all(map(_is_natural, numbers)):
            raise StreamError("malformed books in the stream")
    for name in ("calls", "refused", "matched", "followed", "flipped", "silenced", "missed"):
        if name in value and not _is_natural(value[name]):
            raise StreamError(f"malformed books in the stream: {name}")
    for name in _BESIDE:
        counted = value.get(name, {})
        if not isinstance(counted, dict) or not all(map(_is_natural, counted.values())):
            raise StreamError(f"malformed books in the stream: {name}")
    return value
