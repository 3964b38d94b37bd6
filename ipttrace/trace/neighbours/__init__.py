# SPDX-License-Identifier: GPL-2.0-only
"""Neighbour tables (ARP, NDP) over time, from NEIGHBOURS frames.

frames  the frames, checked
reach   can a packet reach its next hop?

There are three forms of frame, all with ``mono``, ns of CLOCK_MONOTONIC:

``{"mono", "tables": [table, …]}``: periodically.  A kernel has one ARP and one NDP cache
for all namespaces (net/core/neighbour.c), so thresholds, config, statistics and entries
are those of the kernel.  A table is
``{"family": 4|6, "name", "thresholds": [gc_thresh1, 2, 3], "gc_interval": ms,
"config": {…}, "stats": {…}, "parms": {…}}`` with the kernel's names (struct
ndt_config, struct ndt_stats, NDTPA_* in lower case; times in ms); `parms` are the
defaults for new devices.

``{"mono", "netns": inode, …}``: a namespace, when something in it has changed; absent
keys have not changed.  A frame with ``"neighbours"`` has all keys: it comes first, and
again within a minute of a change, for readers that join later.

- ``"name"``: of ip-netns(8), or empty
- ``"devices"``: all, or ``"devices_changed"``: some:
  ``{"index", "name", "flags", "type", "mtu", "lladdr", "parms": {"4": {…}, "6": {…}}}``
- ``"neighbours"``: all, or ``"neighbours_changed"``: some: ``{"family", "dst",
  "dev": index, "state": NUD_*, "flags": NTF_* | NTF_EXT_* << 8, "lladdr": text or
  null, "probes", "protocol", "confirmed", "used", "updated": ms ago, "refs"}``; the
  last four are absent for a proxy.  Ages grow by themselves: an entry of which only
  an age changed is sent again if the reader's would be wrong by 5 s.
- ``"neighbours_gone"``: ``[[family, dst, dev, proxy], …]``
- ``"routes"``: those in use of the tables local, main and default:
  ``{"family", "dst": "10.0.0.0/8", "type": RTN_*, "table", "metric",
  "hops": [[dev, gateway or null], …]}``
- ``"totals"``: ``{"neighbours", "routes", "devices", "rules"}``: numbers
  in the kernel, of which a frame has the first 4,096; `rules`: of policy routing

``{"mono", "gone": [inode, …]}``: these namespaces no longer exist.

Must not do I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from ipttrace.trace.neighbours import frames as frame
from ipttrace.trace.neighbours.frames import Device, Key, Neighbour, Route, Table
from ipttrace.trace.neighbours.reach import UNKNOWN, UNRESOLVED, Reach, Resolver, can_resolve

__all__ = ["Device", "Namespace", "Neighbour", "Neighbours", "Reach", "Route", "Table", "TableView"]

SAMPLES: Final = 120
RECENT: Final = 10  # samples for which a table counts as full once it was
_MOST_TABLES: Final = 16
_MOST_NAMESPACES: Final = 1024
# What Python needs for an item, and for each of its numbers or next hops, in bytes.
_ITEM: Final = 700
_PART: Final = 130


@dataclass(frozen=True, slots=True)
class _Sample:
    mono: int
    entries: int
    stats: dict[str, int]


class TableView:
    """A table: the newest, and its samples over time."""

    def __init__(self, table: Table, mono: int) -> None:
        self.table = table
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES + 1)
        self.add(table, mono)

    def add(self, table: Table, mono: int) -> None:
        """Adds a sample; an earlier time than the last begins anew."""
        if self._samples and mono <= self._samples[-1].mono:
            self._samples.clear()
        self.table = table
        self._samples.append(_Sample(mono, table.config.get("entries", 0), table.stats))

    @property
    def entries(self) -> int:
        """Entries of all namespaces, with permanent ones, which thresholds do not count."""
        return self._samples[-1].entries

    @property
    def share(self) -> float | None:
        """Entries divided by gc_thresh3; None if that is 0."""
        most = self.table.thresholds[2]
        return self.entries / most if most else None

    @property
    def level(self) -> str:
        """Returns ``full``, ``warn`` or ``ok``.

        ``full``: new neighbours are rejected, now or in the last samples; ``warn``: old
        ones are evicted for new ones, now or soon.
        """
        _, second, third = self.table.thresholds
        refused = any(self.history("table_fulls")[-RECENT:])
        if refused or self.entries >= third:
            return "full"
        return "warn" if self.entries >= min(second, 0.8 * third) else "ok"

    def rate(self, counter: str) -> float | None:
        """Returns the current rate of a counter of `stats`, per second; None before two samples."""
        return self._rate(len(self._samples) - 1, counter)

    def history(self, counter: str) -> list[float | None]:
        """Returns rates per second, oldest first, at most SAMPLES; None: the counter was reset."""
        return [self._rate(at, counter) for at in range(1, len(self._samples))]

    def entries_history(self) -> list[int]:
        """Returns the entries of each sample, oldest first."""
        return [sample.entries for sample in self._samples]

    def hit_ratio(self) -> float | None:
        """Returns hits per lookup in the last interval; None if there was no lookup."""
        lookups, hits = self._growth("lookups"), self._growth("hits")
        return min(1.0, hits / lookups) if lookups and hits is not None else None

    def hit_ratio_ever(self) -> float | None:
        """Returns hits per lookup since boot; None if there was no lookup."""
        lookups = self.table.stats.get("lookups", 0)
        return min(1.0, self.table.stats.get("hits", 0) / lookups) if lookups else None

    def _growth(self, counter: str) -> int | None:
        if len(self._samples) < 2:
            return None
        return _difference(self._samples[-2], self._samples[-1], counter)

    def _rate(self, at: int, counter: str) -> float | None:
        if at < 1:
            return None
        before, now = self._samples[at - 1], self._samples[at]
        growth = _difference(before, now, counter)
        return None if growth is None else growth * 1e9 / (now.mono - before.mono)


def _difference(before: _Sample, now: _Sample, counter: str) -> int | None:
    """Returns a counter's growth; None if it is absent or was reset (it decreased)."""
    old, new = before.stats.get(counter), now.stats.get(counter)
    return None if old is None or new is None or new < old else new - old


@dataclass(slots=True)
class Namespace:
    """What is known about a namespace.  Callers must not modify it."""

    netns: int
    name: str = ""
    mono: int = 0  # of the last frame, ns
    devices: dict[int, Device] = field(default_factory=dict)
    neighbours: dict[Key, Neighbour] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    totals: dict[str, int] = field(default_factory=dict)
    size: int = 0  # bytes, estimated
    unresolved: bool = False  # a neighbour does not answer
    _resolver: Resolver | None = None
    _reachable: dict[Key, bool | None] = field(default_factory=dict)  # see `_judged`

    def device(self, index: int) -> str:
        """Returns the name of a device, or its index if it is unknown."""
        found = self.devices.get(index)
        return str(index) if found is None else found.name

    @property
    def resolver(self) -> Resolver:
        """The resolver for the current state."""
        if self._resolver is None:
            self._resolver = Resolver(self.devices, self.neighbours, self.routes, self.totals)
        return self._resolver

    def feed(self, news: dict[str, Any], mono: int) -> bool:
        """Applies a frame; returns whether another next hop may be usable than before.

        Raises StreamError, and then is unchanged.
        """
        devices = _merged(
            self.devices,
            news,
            "devices",
            {one.index: one for one in map(frame.device, _some(news, "devices"))},
        )
        changed = {
            one.key: one
            for one in (frame.neighbour(each, mono) for each in _some(news, "neighbours"))
        }
        neighbours = _merged(self.neighbours, news, "neighbours", changed)
        gone = news.get("neighbours_gone", [])
        if not isinstance(gone, list) or len(gone) > frame.MOST:
            frame.bad("neighbours that are gone")
        keys = [frame.key(one) for one in gone]
        routes = self.routes
        if "routes" in news:
            routes = tuple(map(frame.route, frame.dicts(news["routes"], "routes")))
        totals = frame.totals(news["totals"]) if "totals" in news else self.totals
        self.name = frame.name(news["name"]) if "name" in news else self.name
        for key in keys:
            neighbours.pop(key, None)
        reachable = {key: can_resolve(one.state) for key, one in neighbours.items()}
        changed_reach = (
            reachable != self._reachable
            or (routes is not self.routes and routes != self.routes)
            or totals != self.totals
            or _named(devices) != _named(self.devices)
        )
        self.mono, self.devices, self.neighbours = mono, devices, neighbours
        self.routes, self.totals, self._resolver = routes, totals, None
        self._reachable = reachable
        self.unresolved = any(one.state in UNRESOLVED for one in neighbours.values())
        parts = sum(len(some) for one in devices.values() for some in one.parms.values())
        parts += sum(len(one.hops) for one in routes)
        self.size = _ITEM * (1 + len(devices) + len(neighbours) + len(routes)) + _PART * parts
        return changed_reach


def _named(devices: dict[int, Device]) -> dict[int, tuple[str, int]]:
    return {index: (one.name, one.flags) for index, one in devices.items()}


def _some(news: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return frame.dicts(news.get(what, news.get(f"{what}_changed", [])), what)


def _merged(held: dict[Any, Any], news: dict[str, Any], what: str, some: dict[Any, Any]) -> Any:
    """Returns the new items if the frame has all, otherwise the held ones updated."""
    merged = some if what in news else {**held, **some}
    if len(merged) > 2 * frame.MOST:
        frame.bad(f"too many {what}")
    return merged


class Neighbours:
    """The newest state of the kernel's tables and of each namespace."""

    def __init__(self) -> None:
        self.version = 0  # increases with each frame
        self.reach_version = 0  # increases when `usable` may return something else than before
        self.mono = 0  # of the newest frame, ns
        self.size = 0  # bytes of the namespaces, estimated
        self._tables: dict[tuple[int, str], TableView] = {}
        self._namespaces: dict[int, Namespace] = {}

    def feed(self, tables: dict[str, Any]) -> None:
        """Applies a NEIGHBOURS frame.  Raises StreamError, one line, if it is malformed."""
        mono = frame.natural(tables.get("mono"), "the time")
        if mono >= 1 << 63:
            frame.bad("the time")
        for one in frame.dicts(tables.get("tables", []), "tables"):
            self._add(frame.table(one), mono)
        if "netns" in tables:
            netns = frame.natural(tables["netns"], "the namespace")
            known = self._namespaces.get(netns) or Namespace(netns)
            before = known.size
            self.reach_version += known.feed(tables, mono)
            if netns not in self._namespaces and len(self._namespaces) >= _MOST_NAMESPACES:
                frame.bad("too many namespaces")
            self._namespaces[netns] = known
            self.size += known.size - before
        gone = tables.get("gone", [])
        if not isinstance(gone, list):
            frame.bad("namespaces that are gone")
        for netns in gone:
            old = self._namespaces.pop(frame.natural(netns, "a namespace that is gone"), None)
            self.size -= 0 if old is None else old.size
            self.reach_version += old is not None
        self.mono = mono
        self.version += 1

    def _add(self, table: Table, mono: int) -> None:
        key = table.family, table.name
        if (view := self._tables.get(key)) is not None:
            view.add(table, mono)
        elif len(self._tables) < _MOST_TABLES:
            self._tables[key] = TableView(table, mono)

    def tables(self) -> list[TableView]:
        """Returns the kernel's tables, IPv4 first."""
        return [self._tables[key] for key in sorted(self._tables)]

    def namespaces(self) -> list[Namespace]:
        """Returns the namespaces by name; those without a name first."""
        return sorted(self._namespaces.values(), key=lambda one: (one.name, one.netns))

    def namespace(self, netns: int) -> Namespace | None:
        """Returns the namespace with this inode; None if it is unknown."""
        return self._namespaces.get(netns)

    def unresolved(self) -> list[int]:
        """Returns the namespaces in which a neighbour does not answer, by inode."""
        # A copy: queries run in other threads, too.
        return [netns for netns, one in list(self._namespaces.items()) if one.unresolved]

    def usable(self, netns: int, dst: str, out_dev: str | None = None) -> Reach:
        """Returns the next hop of a packet for `dst` that leaves by `out_dev`.

        As of now, not of when a packet was traced; `dst` is the destination after NAT.
        Unknown without data or a route, for local, broadcast and multicast addresses,
        for devices without neighbours, and if policy routing or several hops leave it
        open.
        """
        known = self._namespaces.get(netns)
        return UNKNOWN if known is None else known.resolver.usable(dst, out_dev)
