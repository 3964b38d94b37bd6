# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour tables, and what it takes to know a packet's next hop: a watch.

Once a second, of every namespace that is traced: tables, devices, neighbours,
routes.  What goes into the stream is told in ipttrace/trace/neighbours/__init__.py.

There is one arp_cache and one ndisc_cache in a kernel, whatever the namespaces
(net/core/neighbour.c, `neigh_tables`): thresholds, config, statistics and
default parameters are the whole kernel's, as are the entries counted there.
A device's parameters and the neighbours themselves belong to a namespace.

Reading costs: so many neighbours that a look would take more than a 20th of
one processor are looked at less often.  Must not stay in another namespace,
nor keep one alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any, Final

from pyroute2.netlink import rtnl

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.neighbours import messages as ndtmsg
from ipttrace.capture.neighbours.dump import Doors, Vanished, dump
from ipttrace.capture.neighbours.messages import Value
from ipttrace.capture.watch import Seen
from ipttrace.stream.frames import Kind

MOST: Final = 4096  # neighbours, routes and devices of a namespace that are told of

_EVERY: Final = 1.0
_SHARE: Final = 20
# A reader who comes in the middle need not keep changes for longer than that, ns.
_WHOLE: Final = 60_000_000_000
# Ages alone are worth a line in the stream when a reader's would be so wrong, ms.
_DRIFT: Final = 5000
_NTF_PROXY: Final = 0x08
_TABLES: Final = bytes(4)  # struct ndtmsg
_NEIGHBOURS: Final = bytes(12)  # struct ndmsg
_PROXIES: Final = struct.pack("=B3xiHBB", 0, 0, 0, _NTF_PROXY, 0)
_ROUTES: Final = bytes(12)  # struct rtmsg
_RULES: Final = bytes(12)  # struct fib_rule_hdr
# struct ifinfomsg, and IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS
_LINKS: Final = bytes(16) + struct.pack("=HHI", 8, 29, 1 << 3)

_Key = tuple[int, str, int, bool]  # family, address, device, proxy


class _Reader:
    """Messages that have not changed since the last look are not read again."""

    def __init__(self, read: Callable[[bytes], Any]) -> None:
        self._read = read
        self._known: dict[bytes, Any] = {}

    def all(self, messages: Iterable[bytes], most: int = MOST) -> tuple[list[Any], int]:
        """What the first `most` of the messages say, and how many there are."""
        fresh: dict[bytes, Any] = {}
        found, total = [], 0
        for raw in messages:
            if total >= most:
                total += 1  # of the right kind or not: reading it would tell
                continue
            key = raw[16:]
            value = fresh[key] = self._known[key] if key in self._known else self._read(raw)
            if value is not None:
                found.append(value)
                total += 1
        self._known = fresh
        return found, total


@dataclass(slots=True)
class _Namespace:
    """What the stream has been told of one."""

    name: str = ""
    tables: _Reader = field(default_factory=lambda: _Reader(ndtmsg.table))
    links: _Reader = field(default_factory=lambda: _Reader(ndtmsg.link))
    routes: _Reader = field(default_factory=lambda: _Reader(ndtmsg.route))
    rules: _Reader = field(default_factory=lambda: _Reader(ndtmsg.is_policy))
    entries: dict[bytes, Value] = field(default_factory=dict)
    told: dict[_Key, tuple[Value, tuple[int, ...]]] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    whole: int = 0  # when all was told, ns
    changed: bool = False  # since then

    def look(self, sock: socket) -> tuple[list[Value], Value]:
        """The kernel's tables, and what is new in this namespace, `mono` at least."""
        news: Value = {"mono": time.monotonic_ns()}
        if self.changed and news["mono"] - self.whole >= _WHOLE:
            self.said.clear()
        if not self.said:
            self.whole, self.changed = news["mono"], False
            self.told.clear()
        tables, parms = self._tables(sock)
        links, n_links = self.links.all(dump(sock, rtnl.RTM_GETLINK, _LINKS))
        links.append({"index": 0, "name": "*", "flags": 0, "type": 0, "mtu": 0, "lladdr": None})
        devices = [
            {**link, "parms": parms.get(link["index"], {})}
            for link in links
            if link["index"] or 0 in parms
        ]
        n_neighbours = self._neighbours(sock, news)
        routes, n_routes = self.routes.all(dump(sock, rtnl.RTM_GETROUTE, _ROUTES))
        rules, _ = self.rules.all(dump(sock, rtnl.RTM_GETRULE, _RULES))
        totals = {
            "neighbours": n_neighbours,
            "routes": n_routes,
            "devices": n_links,
            "rules": sum(rules),
        }
        self._devices(devices, news)
        for key, value in (("name", self.name), ("routes", routes), ("totals", totals)):
            if self.said.get(key) != value:
                news[key] = self.said[key] = value
        self.changed = self.changed or (len(news) > 1 and news["mono"] != self.whole)
        return tables, news

    def _devices(self, devices: list[Value], news: Value) -> None:
        before = self.said.get("devices")
        now = self.said["devices"] = {device["index"]: device for device in devices}
        if before is None or before.keys() != now.keys():
            news["devices"] = devices
        elif changed := [device for device in devices if before[device["index"]] != device]:
            # Neighbours that come and go count in a device's parameters.
            news["devices_changed"] = changed

    def _tables(self, sock: socket) -> tuple[list[Value], dict[int, dict[str, Value]]]:
        tables: dict[str, Value] = {}
        parms: dict[int, dict[str, Value]] = {}
        # A long dump gives the table itself again in each portion.
        for name, index, value in self.tables.all(
            dump(sock, rtnl.RTM_GETNEIGHTBL, _TABLES), 4 * MOST
        )[0]:
            if index < 0:
                tables[name] = value
            else:
                parms.setdefault(index, {})[str(value["family"])] = value["parms"]
        return list(tables.values()), parms

    def _neighbours(self, sock: socket, news: Value) -> int:
        now = news["mono"] // 1_000_000
        seen: dict[_Key, tuple[Value, tuple[int, ...]]] = {}
        entries: dict[bytes, Value] = {}
        changed: list[Value] = []
        total = 0
        for raw in _both(sock):
            still, times = ndtmsg.split_times(raw)
            if len(seen) >= MOST:
                total += 1
                continue
            value = self.entries.get(still) or ndtmsg.neighbour(raw)
            if value is None:
                continue
            total += 1
            entries[still] = value
            key = (value["family"], value["dst"], value["dev"], bool(value["flags"] & _NTF_PROXY))
            since = () if times is None else tuple(now - ms for ms in times[:3])
            before = self.told.get(key)
            if before is not None and before[0] == value and not _moved(before[1], since):
                seen[key] = before
                continue
            seen[key] = (value, since)
            ages = {} if times is None else dict(zip(_AGES, times, strict=True))
            changed.append({**value, **ages})
        gone = [list(key) for key in self.told if key not in seen]
        if "neighbours" not in self.said:
            self.said["neighbours"] = True
            news["neighbours"] = changed
        else:
            news.update({"neighbours_changed": changed} if changed else {})
            news.update({"neighbours_gone": gone} if gone else {})
        self.told, self.entries = seen, entries
        return total


_AGES: Final = ("confirmed", "used", "updated", "refs")


def _both(sock: socket) -> Iterator[bytes]:
    yield from dump(sock, rtnl.RTM_GETNEIGH, _NEIGHBOURS)
    yield from dump(sock, rtnl.RTM_GETNEIGH, _PROXIES)


def _moved(before: tuple[int, ...], since: tuple[int, ...]) -> bool:
    return len(before) != len(since) or any(
        abs(a - b) > _DRIFT for a, b in zip(before, since, strict=True)
    )


class NeighbourWatch:
    """A Watch: see ipttrace/capture/watch.py."""

    def __init__(self, netns: str | None = None) -> None:
        """`netns`: the only namespace to look at, as `namespaces.inode` takes it."""
        self.interval = _EVERY
        self._doors = Doors()
        self._only = netns
        self._known: dict[int, _Namespace] = {}

    def look(self) -> Iterator[Seen]:
        """What is new.  Raises CaptureError after what could be had."""
        began = time.thread_time()
        tables: list[Value] = []
        failed = ""
        before, self._known = self._known, {}
        for inode, (name, path) in self._places().items():
            known = before.get(inode) or _Namespace()
            known.name = name
            try:
                with self._doors.socket_in(path, inode) as sock:
                    found, news = known.look(sock)
            except Vanished:
                continue
            except OSError as error:
                # A name may be left where there is no namespace any more.
                if error.errno != errno.EINVAL:
                    reason = error.strerror or str(error)
                    failed = failed or f"the namespace {name or inode} cannot be read: {reason}"
                continue
            self._known[inode] = known
            if found and not tables:
                tables = found
                yield Kind.NEIGHBOURS, {"mono": news["mono"], "tables": tables}
            if len(news) > 1:
                yield Kind.NEIGHBOURS, {"netns": inode, **news}
        # One that answers again is told in full.
        if gone := [inode for inode in before if inode not in self._known]:
            yield Kind.NEIGHBOURS, {"mono": time.monotonic_ns(), "gone": gone}
        self.interval = max(_EVERY, (time.thread_time() - began) * _SHARE)
        if failed:
            raise CaptureError(failed)

    def close(self) -> None:
        self._doors.close()

    def _places(self) -> dict[int, tuple[str, str]]:
        """Inode to name and path, of all namespaces that are traced."""
        names = namespaces.names()
        home = self._doors.home
        if self._only is None:
            names = {home: names.get(home, ""), **names}
            return {inode: (name, _path(name, inode)) for inode, name in names.items()}
        try:
            inode = namespaces.inode(self._only)
        except CaptureError:
            return {}  # it is gone: there is nothing to see
        own = "" if self._only.startswith("/proc/self/") else self._only
        return {inode: (names.get(inode, own), _path(self._only, inode))}


def _path(name: str, inode: int) -> str:
    """The file that stands for a namespace, or one that surely does not."""
    candidates = [namespaces.NAMED / name, Path("/proc/1/ns/net")]
    candidates += [Path("/proc") / name / "ns" / "net"] if name.isdigit() else []
    candidates += [Path(name)] if "/" in name else []
    for path in candidates:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                return str(path)
    return str(candidates[0])
