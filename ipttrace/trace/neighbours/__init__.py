# SPDX-License-Identifier: GPL-2.0-only
"""Neighbour tables over time: what NEIGHBOURS frames said.

Three forms of frame, all with ``mono``, the time in ns of CLOCK_MONOTONIC:

``{"mono", "tables": [table, …]}``: at each look.  There is one ARP and one NDP
cache in a kernel, whatever the namespaces (net/core/neighbour.c): thresholds,
config, statistics and entries are the whole kernel's.  A table is
``{"family": 4|6, "name", "thresholds": [gc_thresh1, 2, 3], "gc_interval": ms,
"config": {…}, "stats": {…}, "parms": {…}}`` with the kernel's names (struct
ndt_config, struct ndt_stats, NDTPA_* in small letters; times in ms); `parms` is
what a new device starts with.

``{"mono", "netns": inode, …}``: a namespace, when something in it has changed;
a key that is not there has not.  One with ``"neighbours"`` has all keys and tells
all; it comes first, and again within a minute of a change: whoever comes in the
middle needs it and what followed.

- ``"name"``: of ip-netns(8), or empty
- ``"devices"``: all, or ``"devices_changed"``: some:
  ``{"index", "name", "flags", "type", "mtu", "lladdr", "parms": {"4": {…}, "6": {…}}}``
- ``"neighbours"``: all, or ``"neighbours_changed"``: some: ``{"family", "dst",
  "dev": index, "state": NUD_*, "flags": NTF_* | NTF_EXT_* << 8, "lladdr": text or
  null, "probes", "protocol", "confirmed", "used", "updated": ms ago, "refs"}``; the
  last four are not there for a proxy.  Ages go on by themselves: one that has
  nothing but a fresher age comes again when ours would be wrong by 5 s.
- ``"neighbours_gone"``: ``[[family, dst, dev, proxy], …]``
- ``"routes"``: those of the tables local, main and default that are in use:
  ``{"family", "dst": "10.0.0.0/8", "type": RTN_*, "table", "metric",
  "hops": [[dev, gateway or null], …]}``
- ``"totals"``: ``{"neighbours", "routes", "devices", "rules"}``: how many there
  are, also where only the first 4,096 were told; `rules`: of policy routing

``{"mono", "gone": [inode, …]}``: these namespaces are there no more.

Must not do I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from ipttrace.trace.neighbours import frames as frame
from ipttrace.trace.neighbours.frames import Device, Key, Neighbour, Route, Table
from ipttrace.trace.neighbours.reach import UNKNOWN, Reach, Resolver

__all__ = ["Device", "Namespace", "Neighbour", "Neighbours", "Reach", "Route", "Table", "TableView"]

SAMPLES: Final = 120
RECENT: Final = 10  # samples for which a table that was full counts as full
_MOST_TABLES: Final = 16
_MOST_NAMESPACES: Final = 1024


@dataclass(frozen=True, slots=True)
class _Sample:
    mono: int
    entries: int
    stats: dict[str, int]


class TableView:
    """A table: the newest, and how it came there."""

    def __init__(self, table: Table, mono: int) -> None:
        self.table = table
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES + 1)
        self.take(table, mono)

    def take(self, table: Table, mono: int) -> None:
        """The table at a later moment; at an earlier one all begins anew."""
        if self._samples and mono <= self._samples[-1].mono:
            self._samples.clear()
        self.table = table
        self._samples.append(_Sample(mono, table.config.get("entries", 0), table.stats))

    @property
    def entries(self) -> int:
        """Those of all namespaces; permanent ones too, which no threshold counts."""
        return self._samples[-1].entries

    @property
    def share(self) -> float | None:
        """Entries against gc_thresh3; None where that is 0."""
        most = self.table.thresholds[2]
        return self.entries / most if most else None

    @property
    def level(self) -> str:
        """``full``: new neighbours are refused, now or in the last samples.  ``warn``:
        old ones are thrown out for new ones, or soon.  Else ``ok``."""
        _, second, third = self.table.thresholds
        refused = any(self.history("table_fulls")[-RECENT:])
        if refused or self.entries >= third:
            return "full"
        return "warn" if self.entries >= min(second, 0.8 * third) else "ok"

    def rate(self, counter: str) -> float | None:
        """Of a counter in `stats`, per second, now; None before the second sample."""
        return self._rate(len(self._samples) - 1, counter)

    def history(self, counter: str) -> list[float | None]:
        """Rates per second, oldest first, at most SAMPLES; None: reset in between."""
        return [self._rate(at, counter) for at in range(1, len(self._samples))]

    def entries_history(self) -> list[int]:
        """Entries, oldest first."""
        return [sample.entries for sample in self._samples]

    def hit_ratio(self) -> float | None:
        """Hits per lookup over the last interval; None without a lookup."""
        looked, hit = self._grown("lookups"), self._grown("hits")
        return min(1.0, hit / looked) if looked and hit is not None else None

    def hit_ratio_ever(self) -> float | None:
        """Hits per lookup since the kernel started."""
        looked = self.table.stats.get("lookups", 0)
        return min(1.0, self.table.stats.get("hits", 0) / looked) if looked else None

    def _grown(self, counter: str) -> int | None:
        if len(self._samples) < 2:
            return None
        return _difference(self._samples[-2], self._samples[-1], counter)

    def _rate(self, at: int, counter: str) -> float | None:
        if at < 1:
            return None
        before, now = self._samples[at - 1], self._samples[at]
        grown = _difference(before, now, counter)
        return None if grown is None else grown * 1e9 / (now.mono - before.mono)


def _difference(before: _Sample, now: _Sample, counter: str) -> int | None:
    """None where a counter was not there or began anew: the kernel's never get less."""
    old, new = before.stats.get(counter), now.stats.get(counter)
    return None if old is None or new is None or new < old else new - old


@dataclass(slots=True)
class Namespace:
    """What is known of a namespace.  To be read only."""

    netns: int
    name: str = ""
    mono: int = 0  # ns: of the last frame
    devices: dict[int, Device] = field(default_factory=dict)
    neighbours: dict[Key, Neighbour] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    totals: dict[str, int] = field(default_factory=dict)
    _resolver: Resolver | None = None

    def device(self, index: int) -> str:
        """A device's name, or its number where it has none."""
        found = self.devices.get(index)
        return str(index) if found is None else found.name

    @property
    def resolver(self) -> Resolver:
        """For what is known now."""
        if self._resolver is None:
            self._resolver = Resolver(self.devices, self.neighbours, self.routes, self.totals)
        return self._resolver

    def take(self, news: dict[str, Any], mono: int) -> None:
        """Take a frame.  Raises StreamError, and then is as it was."""
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
        self.mono, self.devices, self.neighbours = mono, devices, neighbours
        self.routes, self.totals, self._resolver = routes, totals, None


def _some(news: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return frame.dicts(news.get(what, news.get(f"{what}_changed", [])), what)


def _merged(held: dict[Any, Any], news: dict[str, Any], what: str, some: dict[Any, Any]) -> Any:
    """All, where all were told; else those held and the changed ones."""
    merged = some if what in news else {**held, **some}
    if len(merged) > 2 * frame.MOST:
        frame.bad(f"too many {what}")
    return merged


class Neighbours:
    """The newest of the kernel's tables and of each namespace."""

    def __init__(self) -> None:
        self.version = 0  # grows with each frame: whoever draws sees what is new
        self.mono = 0  # ns: of the newest frame
        self._tables: dict[tuple[int, str], TableView] = {}
        self._namespaces: dict[int, Namespace] = {}

    def feed(self, tables: dict[str, Any]) -> None:
        """Take a NEIGHBOURS frame.  Raises StreamError, one clear line."""
        mono = frame.whole(tables.get("mono"), "the time")
        if mono >= 1 << 63:
            frame.bad("the time")
        for one in frame.dicts(tables.get("tables", []), "tables"):
            self._take(frame.table(one), mono)
        if "netns" in tables:
            netns = frame.whole(tables["netns"], "the namespace")
            known = self._namespaces.get(netns) or Namespace(netns)
            known.take(tables, mono)
            if netns not in self._namespaces and len(self._namespaces) >= _MOST_NAMESPACES:
                frame.bad("too many namespaces")
            self._namespaces[netns] = known
        gone = tables.get("gone", [])
        if not isinstance(gone, list):
            frame.bad("namespaces that are gone")
        for netns in gone:
            self._namespaces.pop(frame.whole(netns, "a namespace that is gone"), None)
        self.mono = mono
        self.version += 1

    def _take(self, table: Table, mono: int) -> None:
        key = table.family, table.name
        if (view := self._tables.get(key)) is not None:
            view.take(table, mono)
        elif len(self._tables) < _MOST_TABLES:
            self._tables[key] = TableView(table, mono)

    def tables(self) -> list[TableView]:
        """The kernel's tables, IPv4's first."""
        return [self._tables[key] for key in sorted(self._tables)]

    def namespaces(self) -> list[Namespace]:
        """All that are there, by name; one without a name comes first."""
        return sorted(self._namespaces.values(), key=lambda one: (one.name, one.netns))

    def namespace(self, netns: int) -> Namespace | None:
        """The one of this inode."""
        return self._namespaces.get(netns)

    def usable(self, netns: int, dst: str, out_dev: str | None = None) -> Reach:
        """How the next hop of a packet for `dst` that leaves by `out_dev` is known.

        As of now, not as of when a packet was traced; `dst` is the destination
        when it leaves, after any NAT.  Unknown where there is no data or no
        route, for what is local, broadcast or multicast, for devices that resolve
        nothing, where policy routing or several ways leave it open.
        """
        known = self._namespaces.get(netns)
        return UNKNOWN if known is None else known.resolver.usable(dst, out_dev)
