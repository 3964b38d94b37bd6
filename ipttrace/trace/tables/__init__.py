# SPDX-License-Identifier: GPL-2.0-only
"""Reassembly and conntrack of each namespace over time, from TABLES frames.

frames  the frames, checked

There are three forms of frame, all with ``mono``, ns of CLOCK_MONOTONIC, which all frames
of one look have in common:

``{"mono"}``: the end of a look, once a second.  What it had no frame for has not changed.

``{"mono", "netns": inode, "name", "table": "ipv4"|"ipv6"|"conntrack", "values": {…}}``:
all values of one table of a namespace, when one of them has changed.  ``"since"``: when
they were last seen to be as in the frame before; absent if there was none.  Values have
the kernel's names.  What the kernel does not report is absent; ``null``: the table is gone.

- ipv4, ipv6: the limits ``high_thresh``, ``low_thresh`` (bytes), ``time`` (s) and
  ``max_dist`` (sysctl ipfrag_*, ip6frag_*); ``queues``, packets that wait for fragments,
  and their ``memory`` in bytes (sockstat); the counters ``ReasmReqds``, ``ReasmOKs``,
  ``ReasmFails``, ``ReasmTimeout`` and ``ReasmOverlaps`` (snmp, snmp6, netstat).
  ``nf_conntrack_frag6_*``: where conntrack reassembles IPv6 packets itself, its queues
  have limits of their own; the kernel reports neither their number nor their memory, and
  of their counters only timeouts, each also as a failure.
- conntrack: ``entries`` of the namespace, ``max``, ``buckets`` and ``expect_max`` (sysctl
  nf_conntrack_*), and the counters that conntrack(8) shows with -S, summed over all CPUs.

``{"mono", "gone": [inode, …]}``: these namespaces no longer exist.

Must not do I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from ipttrace.trace.tables import frames as frame
from ipttrace.trace.tables.frames import CONNTRACK, COUNTERS, IPV4, IPV6, TABLES, Table, Values

__all__ = [
    "CONNTRACK",
    "COUNTERS",
    "IPV4",
    "IPV6",
    "TABLES",
    "Growth",
    "KernelTables",
    "NamespaceTables",
    "Table",
    "TableHistory",
]

CHANGES: Final = 120  # that are kept of a table
RECENT: Final = 10_000_000_000  # ns for which an increased counter counts as trouble
_NEARLY_FULL: Final = 0.9
_MOST_NAMESPACES: Final = 1024
# What Python needs for a table, for one of its changes, and for each value in that, bytes.
_TABLE: Final = 1500
_CHANGE: Final = 400
_VALUE: Final = 130
# Counters that mean that packets were lost, by table.
LOSSES: Final = {
    IPV4: ("ReasmFails", "ReasmTimeout", "ReasmOverlaps"),
    IPV6: ("ReasmFails", "ReasmTimeout"),
    CONNTRACK: ("drop", "early_drop", "insert_failed"),
}


@dataclass(frozen=True, slots=True)
class _Change:
    """The values from `mono` on; they were as before at `since`.  ns."""

    mono: int
    since: int | None
    values: Values


@dataclass(frozen=True, slots=True)
class Growth:
    """A counter from `since` to `until`, ns of CLOCK_MONOTONIC."""

    since: int
    until: int
    times: tuple[int, ...]  # when something changed, ascending
    counts: tuple[int, ...]  # by how much it had grown before each of these, and at the end


class TableHistory:
    """One table of a namespace: the newest values, and how they came to be."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.size = _TABLE
        self._changes: deque[_Change] = deque()
        self._now = 0  # of the newest look, ns

    @property
    def values(self) -> Values:
        """The newest values; empty if the kernel reports none."""
        return self._changes[-1].values if self._changes else {}

    @property
    def known(self) -> bool:
        """Whether the kernel reports anything."""
        return bool(self.values)

    def add(self, mono: int, since: int | None, values: Values) -> None:
        """Adds a change; an earlier time than the last begins anew."""
        if self._changes and mono <= self._changes[-1].mono:
            self._clear()
        self._changes.append(_Change(mono, since, values))
        self.size += _CHANGE + _VALUE * len(values)
        if len(self._changes) > CHANGES:
            oldest = self._changes.popleft()
            self.size -= _CHANGE + _VALUE * len(oldest.values)
        self._now = mono

    def look(self, mono: int) -> None:
        """Notes that nothing has changed until `mono`."""
        self._now = max(self._now, mono)

    def _clear(self) -> None:
        self._changes.clear()
        self.size = _TABLE

    def rate(self, counter: str) -> float | None:
        """Returns the current rate of a counter, per second; None if it is unknown."""
        if counter not in self.values or not self._changes:
            return None
        last = self._changes[-1]
        if last.mono < self._now:
            return 0.0
        growth = self._growth(len(self._changes) - 1, counter)
        if growth is None or last.since is None or last.since >= last.mono:
            return None
        return growth * 1e9 / (last.mono - last.since)

    def growth(self, counter: str) -> Growth | None:
        """Returns when a counter grew, and by how much; None if that is unknown."""
        if not self._changes:
            return None
        times: list[int] = []
        counts = [0]
        for at in range(1, len(self._changes)):
            growth = self._growth(at, counter)
            if growth is None:
                return None
            times.append(self._changes[at].mono)
            counts.append(counts[-1] + growth)
        if counter not in self.values:
            return None
        return Growth(self._changes[0].mono, self._now, tuple(times), tuple(counts))

    def recent(self, counter: str) -> int:
        """Returns by how much a counter grew in the last RECENT ns; 0 if that is unknown."""
        total = 0
        for at in range(len(self._changes) - 1, 0, -1):
            if self._changes[at].mono < self._now - RECENT:
                break
            total += self._growth(at, counter) or 0
        return total

    def _growth(self, at: int, counter: str) -> int | None:
        """A counter's growth with a change; None if it is absent, or was reset."""
        if at < 1:
            return None
        old, new = (self._changes[which].values.get(counter) for which in (at - 1, at))
        return None if old is None or new is None or new < old else new - old

    @property
    def used(self) -> int | None:
        """Entries, or the queues' memory in bytes; None if unknown."""
        return self.values.get("entries" if self.table == CONNTRACK else "memory")

    @property
    def limit(self) -> int | None:
        """What `used` may reach; None if unknown, or if there is no limit."""
        name = "max" if self.table == CONNTRACK else "high_thresh"
        limit = self.values.get(name)
        # 0 entries: no limit; 0 bytes: nothing is reassembled.
        return None if limit == 0 and self.table == CONNTRACK else limit

    @property
    def share(self) -> float | None:
        """`used` divided by `limit`."""
        used, limit = self.used, self.limit
        return used / limit if used is not None and limit else None

    @property
    def losing(self) -> tuple[str, ...]:
        """The counters of LOSSES that have grown lately."""
        return tuple(name for name in LOSSES[self.table] if self.recent(name))

    @property
    def level(self) -> str:
        """Returns ``full``, ``warn`` or ``ok``.

        ``full``: what is new is dropped, now or lately; ``warn``: that is near, or packets
        were lost lately.
        """
        used, limit = self.used, self.limit
        full = used is not None and limit is not None and used >= limit and (used or limit == 0)
        if full or self.recent("drop"):
            return "full"
        return "warn" if self.near or self.losing else "ok"

    @property
    def near(self) -> bool:
        """Whether 90 % of the entries, or the low threshold of the memory, are reached."""
        used, limit = self.used, self.limit
        if used is None or not limit:
            return False
        low = self.values.get("low_thresh", limit) if self.table != CONNTRACK else limit
        return used >= min(low, _NEARLY_FULL * limit)


@dataclass(slots=True)
class NamespaceTables:
    """The tables of a namespace.  Callers must not modify it."""

    netns: int
    name: str = ""
    tables: dict[Table, TableHistory] = field(default_factory=dict)

    def table(self, name: Table) -> TableHistory:
        """Returns a table; one without values if the kernel reports none."""
        return self.tables.get(name) or TableHistory(name)

    @property
    def size(self) -> int:
        """Bytes of memory, estimated."""
        return sum(one.size for one in self.tables.values())


class KernelTables:
    """The tables of all namespaces of a host."""

    def __init__(self) -> None:
        self.version = 0  # increases with each frame
        self.mono = 0  # of the newest frame, ns
        self.size = 0  # bytes, estimated
        self.offset: int | None = None  # CLOCK_REALTIME - CLOCK_MONOTONIC, ns; None: unknown
        self._namespaces: dict[int, NamespaceTables] = {}

    def feed(self, news: dict[str, Any]) -> None:
        """Applies a TABLES frame.  Raises StreamError, one line, if it is malformed."""
        mono = frame.moment(news.get("mono"), "the time")
        gone = frame.gone(news.get("gone", []))
        if "netns" in news:
            self._table(news, mono)
        for netns in gone:
            old = self._namespaces.pop(netns, None)
            self.size -= 0 if old is None else old.size
        if not news.keys() - {"mono"}:
            for one in self._namespaces.values():
                for history in one.tables.values():
                    history.look(mono)
        self.mono = mono
        self.version += 1

    def _table(self, news: dict[str, Any], mono: int) -> None:
        netns = frame.natural(news["netns"], "the namespace")
        name, table = frame.name(news.get("name", "")), frame.table(news.get("table"))
        since = None if "since" not in news else frame.moment(news["since"], "since")
        values = frame.values(news.get("values"))
        known = self._namespaces.get(netns)
        if known is None:
            if len(self._namespaces) >= _MOST_NAMESPACES:
                frame.bad("too many namespaces")
            known = self._namespaces[netns] = NamespaceTables(netns)
        known.name = name
        history = known.tables.get(table)
        before = 0 if history is None else history.size
        if history is None:
            # Replaced, never modified, so that readers need no lock.
            history = TableHistory(table)
            known.tables = {**known.tables, table: history}
        history.add(mono, since, values)
        self.size += history.size - before

    def namespaces(self) -> list[NamespaceTables]:
        """Returns the namespaces by name; those without a name first."""
        return sorted(self._namespaces.values(), key=lambda one: (one.name, one.netns))

    def namespace(self, netns: int) -> NamespaceTables | None:
        """Returns the namespace with this inode; None if it is unknown."""
        return self._namespaces.get(netns)
