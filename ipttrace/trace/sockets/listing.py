# SPDX-License-Identifier: GPL-2.0-only
"""Connections and listeners of all streams, each with its stages: what the sockets view shows.

Connections are few beside packets: they are looked at one by one.  Must not do I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ipttrace.stream import record
from ipttrace.trace.row import Row
from ipttrace.trace.sockets.stage import End, Process, Stage
from ipttrace.trace.sockets.words import BAD, explain

ORDERS: Final = ("last", "took", "queue", "state", "process", "netns", "host")
_MOST: Final = 1 << 12  # lines: beyond, the one not met for longest goes
_SYNS: Final = (record.CONNECTING, record.SYN_TAKEN, record.SYN_DROPPED)
_UP: Final = (record.CONNECTED, record.ACCEPTED)
_PORTS: Final = (record.LISTENING, record.BOUND)

Ends = tuple[End, End]
"""Who sends to whom."""

_Key = tuple[int, int] | tuple[int, int, int, End]


@dataclass(slots=True)
class Line:
    """A connection's end on a host, or a listener."""

    key: _Key
    host: int
    begun: int  # time of its first stage
    newest: Stage
    stages: dict[int, Stage] = field(default_factory=dict)  # the newest of each, the first first
    firsts: dict[int, int] = field(default_factory=dict)  # times of the first of each
    queue: int | None = None  # accept queue
    queue_most: int | None = None
    process: Process | None = None  # that has it; None: unknown
    bad: Stage | None = None  # the newest stage in which it came to nothing
    accepted: int = 0  # of a listener
    dropped: int = 0

    @property
    def is_port(self) -> bool:
        """Whether it is a listener, or a port that a process has bound."""
        return self.newest.remote is None

    @property
    def syns(self) -> int:
        """How many SYNs were repeated."""
        return max((self.stages[one].repeated for one in _SYNS if one in self.stages), default=0)

    @property
    def took(self) -> int | None:
        """From its first stage to the one in which a process has it, or in which it failed, ns.

        None: neither.
        """
        ended = max((self.stages[one].time for one in _UP if one in self.stages), default=0)
        if not ended and self.failed and not self.is_port:
            ended = self.newest.time
        return ended - self.begun if ended > self.begun else None

    @property
    def given_up(self) -> bool:
        """Whether the client's process has ended it before there was an answer."""
        known = self.stages
        return (
            record.CLOSED in known
            and record.CONNECTING in known
            and not any(one in known for one in (record.CONNECTED, record.REFUSED))
        )

    @property
    def failed(self) -> bool:
        """Whether it came to nothing, as a whole or in part."""
        return self.bad is not None or self.given_up

    @property
    def why(self) -> str:
        """Why it came to nothing, or what is special about its newest stage; "": nothing is."""
        if self.given_up:
            return "given up: no answer to its SYN"
        if self.bad is None:
            return "" if self.is_port else explain(self.newest)
        text = explain(self.bad)
        if self.bad.stage != record.RESET:
            return text
        early = record.ESTABLISHED in self.stages and record.ACCEPTED not in self.stages
        return f"reset {text}" + (", before a process has accepted it" if early else "")

    @property
    def ends(self) -> tuple[Ends, ...]:
        """The ends that its packets have, before and after NAT, from the client to the server."""
        one = self.newest
        if one.remote is None:
            return ()
        if one.server:
            servers = (one.local, one.original)
            return tuple((one.remote, each) for each in servers if each is not None)
        servers = (one.remote, one.answers)
        return tuple((one.local, each) for each in servers if each is not None)


class Listing:
    """All lines."""

    def __init__(self) -> None:
        self._lines: OrderedDict[_Key, Line] = OrderedDict()
        self._listeners: dict[tuple[int, int], Line] = {}  # by host and address
        self.version = 0  # grows with each change
        self.forgotten = 0  # lines for which there was no room
        self.newest = 0  # time of the newest stage

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, host: int, stages: Iterable[Stage]) -> None:
        """Adds stages of a host, in order of its stream."""
        for stage in stages:
            self.version += 1
            self.newest = max(self.newest, stage.time)
            self._add(host, stage)

    def _add(self, host: int, stage: Stage) -> None:
        key: _Key = (host, stage.connection)
        if stage.remote is None:
            key = (host, stage.netns, stage.protocol, stage.local)
            if stage.stage in _PORTS:
                self._lines.pop(key, None)  # another one has it now
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key, host, stage.time, stage)
            if len(self._lines) > _MOST:
                _, old = self._lines.popitem(last=False)
                self._drop_listener(old)
                self.forgotten += 1
        self._lines.move_to_end(key)
        line.newest = stage
        line.process = stage.process or line.process
        line.stages[stage.stage] = stage
        line.firsts.setdefault(stage.stage, stage.time)
        if stage.queue is not None:
            line.queue, line.queue_most = stage.queue, stage.queue_most
        if stage.stage in BAD and not stage.is_allowed:
            line.bad = stage
        if line.is_port:
            self._note_listener(line, stage)
        else:
            self._count(host, stage)

    def _note_listener(self, line: Line, stage: Stage) -> None:
        if stage.stage == record.CLOSED:
            self._drop_listener(line)
        elif stage.sk:
            self._listeners[line.host, stage.sk] = line

    def _drop_listener(self, line: Line) -> None:
        for address in [key for key, one in self._listeners.items() if one is line]:
            del self._listeners[address]

    def _count(self, host: int, stage: Stage) -> None:
        """Counts for the listener what its connections come to."""
        listener = self._listeners.get((host, stage.listener)) if stage.listener else None
        if listener is None:
            return
        if stage.queue is not None:
            listener.queue, listener.queue_most = stage.queue, stage.queue_most
        listener.accepted += stage.stage == record.ACCEPTED
        if stage.stage in (record.SYN_DROPPED, record.ACK_DROPPED):
            listener.dropped += 1
            listener.bad = stage

    def top(self, order: str, most: int, *, ascending: bool = False) -> list[Line]:
        """The first `most` lines in an order of ORDERS, the newest first where it is the same."""
        lines = list(reversed(self._lines.values()))
        if order != "last":
            lines.sort(key=_KEYS[order], reverse=not ascending)
        elif ascending:
            lines.reverse()
        return lines[:most]

    def of_row(self, row: Row) -> Line | None:
        """The line of a row's connection, in the row's namespace if there is one."""
        sides = {(_end(row.src, row.sport), _end(row.dst, row.dport))}
        if row.ct_orig_src and row.ct_orig_dst:
            original = _end(row.ct_orig_src, row.ct_orig_sport)
            sides.add((original, _end(row.ct_orig_dst, row.ct_orig_dport)))
        sides |= {(second, first) for first, second in sides}
        found = None
        for line in reversed(self._lines.values()):
            if line.host != row.host or line.newest.protocol_name != row.proto:
                continue
            if not sides.isdisjoint(line.ends):
                if line.newest.netns == row.netns:
                    return line
                found = found or line
        return found


def _end(address: str, port: int | None) -> End:
    return address, port or 0


def _process_name(line: Line) -> str:
    return "" if line.process is None else line.process.comm


_KEYS: Final = {
    "took": lambda line: line.took or 0,
    "queue": lambda line: (line.queue or 0, line.queue_most or 0),
    "state": lambda line: line.newest.name.lower(),
    "process": _process_name,
    "netns": lambda line: line.newest.netns,
    "host": lambda line: line.host,
}
