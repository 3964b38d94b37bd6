# SPDX-License-Identifier: GPL-2.0-only
"""Which process has the socket of a packet: by the stages of its connection, or of its port.

A packet that comes in is of the socket that gets it, one that goes out of the one that sends
it; a packet that is forwarded has none in its namespace.  Nothing is guessed: what no stage
has shown is unknown.  Must not loop over rows in Python, or do I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final

import numpy as np

from ipttrace.netfilter import EGRESS, HOOKS, INGRESS, UNKNOWN_HOOK
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.sockets.stage import End, Process, Stage
from ipttrace.trace.store import OWNER_COLUMNS, Columns, Names, Store

_MOST: Final = 1 << 15  # ends and ports: beyond, the ones not met for longest go
_BACK: Final = 1 << 14  # rows that a stage may complete: those that came just before it
_EARLIER: Final = 1_000_000_000  # ns, likewise

_IN: Final = (HOOKS.index("PREROUTING"), HOOKS.index("INPUT"), INGRESS, UNKNOWN_HOOK)
_OUT: Final = (HOOKS.index("OUTPUT"), HOOKS.index("POSTROUTING"), EGRESS)
_ANY: Final = ("0.0.0.0", "::")
_NOWHERE: Final[End] = ("", 0)

_FRESH: Final = 1 << 11  # changes after which all are sorted again

_Key = tuple[int, ...]
"""Namespace, protocol, IP version, both ports, the socket's address and the other, 4 words each."""
_WORDS: Final = 12

_Value = tuple[int, int, int]
"""Of OWNER_COLUMNS."""
_NOBODY: Final[_Value] = (0, 0, 0)


class Owners:
    """The processes of one stream's sockets."""

    def __init__(self, names: Names) -> None:
        """`names`: the store's."""
        self._names = names
        self._hash = Hash(_WORDS)
        self._known: OrderedDict[int, _Value] = OrderedDict()  # by the hash of a key
        self._fresh: dict[int, _Value] = {}  # what is newer than the first of both:
        self._tables = [_Table({}), _Table({})]

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, stages: Iterable[Stage]) -> int | None:
        """Adds what stages show.

        Returns the time from which on rows may have an owner that had none, ns since the
        epoch; None: nothing is new.
        """
        keys: list[_Key] = []
        values: list[_Value] = []
        times: list[int] = []
        for stage in stages:
            closed = stage.remote is None and stage.stage == record.CLOSED
            value = _NOBODY if closed else self._value(stage.process)
            if value is not None:
                of_stage = list(_keys(stage))
                keys += of_stage
                values += [value] * len(of_stage)
                times += [stage.time] * len(of_stage)
        if not keys:
            return None
        words = np.array(keys, np.uint64)
        hashes = self._hash.full([words[:, at] for at in range(_WORDS)]).tolist()
        since = []
        for key, value, time in zip(hashes, values, times, strict=True):
            if self._known.get(key, _NOBODY) != value:
                self._fresh[key] = self._known[key] = value
                since += [time] if value != _NOBODY else []
            if key in self._known:
                self._known.move_to_end(key)
        while len(self._known) > _MOST:
            old, _ = self._known.popitem(last=False)
            self._fresh[old] = _NOBODY
        self._index()
        return min(since, default=None)

    def _value(self, process: Process | None) -> _Value | None:
        if process is None or not (process.pid or process.comm):
            return None
        names = self._names
        return process.pid, names.add(process.comm), names.add(process.container)

    def _index(self) -> None:
        """Makes what was learnt findable: a small table, and now and then a whole one."""
        if len(self._fresh) > _FRESH:
            for key in [key for key, value in self._known.items() if value == _NOBODY]:
                del self._known[key]
            self._fresh = {}
            self._tables[0] = _Table(self._known)
        self._tables[1] = _Table(self._fresh)

    def fill(self, columns: Columns) -> None:
        """Fills in OWNER_COLUMNS of rows, all columns of SCHEMA, shape (n, …)."""
        found, values = self._of(columns)
        if found.any():
            for at, name in enumerate(OWNER_COLUMNS):
                columns[name] = np.where(found, values[:, at], columns[name])

    def complete(self, store: Store, host: int, since: int) -> None:
        """Fills them in for rows that the store already has.

        `host`: of the stream; `since`: as `learn` returns it.
        """
        for part in store.parts(max(store.first, store.end - _BACK)):
            of = part.columns
            without = (of["owner_pid"] == 0) & (of["owner_comm"] == 0) & (of["host"] == host)
            rows = np.flatnonzero(without & (of["time"] >= since - _EARLIER))
            if not rows.size:
                continue
            found, values = self._of({name: of[name][rows] for name in _NEEDED})
            own = {name: values[found, at] for at, name in enumerate(OWNER_COLUMNS)}
            store.own(part.first + rows[found], own)

    def _of(self, columns: Columns) -> tuple[Array, Array]:
        """Which rows have an owner, bool (n,), and their values, uint32 (n, 3)."""
        hook = columns["hook"]
        ported = columns["known"] & np.uint8(packet.PORTS) != 0
        values = np.zeros((len(hook), len(OWNER_COLUMNS)), np.uint32)
        found = np.zeros(len(hook), bool)
        for hooks, local, remote in ((_IN, "dst", "src"), (_OUT, "src", "dst")):
            rows = np.flatnonzero(np.isin(hook, hooks) & ported)
            if not rows.size:
                continue
            words = _words({name: columns[name][rows] for name in _NEEDED}, local, remote)
            for kind in _KINDS:
                known, found_values = self._find(kind(words))
                values[rows[known]], found[rows[known]] = found_values[known], True
                if known.all():
                    break
                rows, words = rows[~known], [word[~known] for word in words]
        return found, values

    def _find(self, words: list[Array]) -> tuple[Array, Array]:
        """Which rows are known, bool (n,), and their values, uint32 (n, 3)."""
        hashes = self._hash.full(words)
        values = np.zeros((len(hashes), len(OWNER_COLUMNS)), np.uint32)
        for table in self._tables:  # the newer one last
            table.look_up(hashes, values)
        known: Array = (values[:, 0] | values[:, 1]) != 0
        return known, values


class _Table:
    """Values by hash."""

    def __init__(self, known: Mapping[int, _Value]) -> None:
        hashes = np.fromiter(known, np.uint64, len(known))
        values = np.array(list(known.values()), np.uint32).reshape(-1, len(OWNER_COLUMNS))
        order = np.argsort(hashes)
        self._hashes, self._values = hashes[order], values[order]

    def look_up(self, hashes: Array, values: Array) -> None:
        """Replaces the `values`, uint32 (n, 3), of those that are there."""
        if self._hashes.size:
            at = np.searchsorted(self._hashes, hashes)
            at[at == len(self._hashes)] = 0
            known = self._hashes[at] == hashes
            values[known] = self._values[at[known]]


_NEEDED: Final = ("netns", "proto", "version", "known", "hook", "src", "dst", "sport", "dport")


def _words(columns: Columns, local: str, remote: str) -> list[Array]:
    ports = {"src": columns["sport"], "dst": columns["dport"]}
    both = ports[local].astype(np.uint32) << np.uint32(16) | ports[remote]
    ends = [np.ascontiguousarray(columns[name]).view(np.uint32) for name in (local, remote)]
    first = columns["netns"], columns["proto"].astype(np.uint32), columns["version"]
    return [*(one.astype(np.uint32) for one in first), both, *ends[0].T, *ends[1].T]


def _whole(words: list[Array]) -> list[Array]:
    """The key of a connection."""
    return words


def _port(words: list[Array]) -> list[Array]:
    """The key of a port at the row's own address."""
    nothing = np.zeros_like(words[3])
    return [*words[:3], words[3] & np.uint32(0xFFFF0000), *words[4:8], *(nothing,) * 4]


def _any_address(words: list[Array]) -> list[Array]:
    """The key of a port at any address."""
    nothing = np.zeros_like(words[3])
    port = words[3] & np.uint32(0xFFFF0000)
    return [*words[:2], nothing, port, *(nothing,) * 8]


_KINDS: Final = (_whole, _port, _any_address)


def _keys(stage: Stage) -> Iterable[_Key]:
    """The keys of the packets of a stage's socket, before and after NAT."""
    if stage.remote is None:
        yield _key(stage, stage.local, None)
        return
    yield _key(stage, stage.local, stage.remote)
    if stage.original is not None and stage.original != stage.local:
        yield _key(stage, stage.original, stage.remote)
    if stage.answers is not None and stage.answers != stage.remote:
        yield _key(stage, stage.local, stage.answers)


def _key(stage: Stage, local: End, remote: End | None) -> _Key:
    version = stage.family
    if remote is None and local[0] in _ANY:
        local, version = ("", local[1]), 0
    other = _NOWHERE if remote is None else remote
    ports = local[1] << 16 | other[1]
    return (stage.netns, stage.protocol, version, ports, *_address(local), *_address(other))


def _address(end: End) -> tuple[int, ...]:
    raw = ip_address(end[0]).packed if end[0] else b""
    return tuple(np.frombuffer(raw.ljust(16, b"\0"), np.uint32).tolist())
