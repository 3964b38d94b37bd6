# SPDX-License-Identifier: GPL-2.0-only
"""Watches the neighbour tables, and the devices and routes that lead to a packet's next hop.

Once a second, in every traced namespace.  The frames are described in
ipttrace/trace/neighbours/__init__.py.

A kernel has one arp_cache and one ndisc_cache, shared by all namespaces
(net/core/neighbour.c, `neigh_tables`): thresholds, configuration, statistics, default
parameters and the number of entries are the kernel's.  A device's parameters and the
neighbours themselves belong to a namespace.

If a look takes more than a 20th of one processor, looks become less frequent.  Must
not stay in another namespace, or keep one alive.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from socket import socket
from typing import Final, Generic, TypeVar

from pyroute2.netlink import rtnl

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.neighbours import messages
from ipttrace.capture.neighbours.dump import Vanished, dump, socket_in
from ipttrace.capture.neighbours.messages import DeviceParameters, Link
from ipttrace.capture.watch import Finding
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import Device, Neighbour, Neighbours, NeighbourTable, Route

MOST: Final = 4096  # neighbours, routes and devices of a namespace that frames contain

_EVERY: Final = 1.0  # s
_SHARE: Final = 20
# A reader that joins late needs the last complete frame and all changes since: this
# bounds how old that frame is, ns.
_COMPLETE_EVERY: Final = 60_000_000_000
# A neighbour whose ages alone changed is sent again once a reader's would be so wrong, ms.
_DRIFT: Final = 5000
_NTF_PROXY: Final = 0x08
_TABLES: Final = bytes(4)  # struct ndtmsg
_NEIGHBOURS: Final = bytes(12)  # struct ndmsg
_PROXIES: Final = struct.pack("=B3xiHBB", 0, 0, 0, _NTF_PROXY, 0)
_ROUTES: Final = bytes(12)  # struct rtmsg
_RULES: Final = bytes(12)  # struct fib_rule_hdr
# struct ifinfomsg, and IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS
_LINKS: Final = bytes(16) + struct.pack("=HHI", 8, 29, 1 << 3)
# Parameters for routes that have no device any more.
_NO_DEVICE: Final[Link] = {
    "index": 0, "name": "*", "flags": 0, "type": 0, "mtu": 0, "lladdr": None,
}  # fmt: skip

_Key = tuple[int, str, int, bool]
"""A neighbour: family, address, device, whether it is a proxy entry."""

_Moments = tuple[int, ...]
"""When a neighbour was confirmed, used and updated, ms of CLOCK_MONOTONIC; () for a proxy."""

_T = TypeVar("_T")


class _Cache(Generic[_T]):
    """Decodes the messages of one kind; those unchanged since the last look only once."""

    def __init__(self, decode: Callable[[bytes], _T | None]) -> None:
        self._decode = decode
        self._known: dict[bytes, _T | None] = {}

    def all(self, dumped: Iterable[bytes], most: int = MOST) -> tuple[list[_T], int]:
        """Returns the values of the first `most` messages, and how many messages there are."""
        fresh: dict[bytes, _T | None] = {}
        found: list[_T] = []
        total = 0
        for raw in dumped:
            if total >= most:
                total += 1  # whether this is a value is not checked: decoding is what costs
                continue
            key = raw[16:]
            value = fresh[key] = self._known[key] if key in self._known else self._decode(raw)
            if value is not None:
                found.append(value)
                total += 1
        self._known = fresh
        return found, total


@dataclass(slots=True)
class _Sent:
    """What the stream contains of a namespace since the last complete frame."""

    neighbours: dict[_Key, tuple[Neighbour, _Moments]] | None = None
    devices: dict[int, Device] | None = None
    name: str | None = None
    routes: list[Route] | None = None
    totals: dict[str, int] | None = None


@dataclass(slots=True)
class _Namespace:
    """A namespace: what was decoded at the last look, and what the stream contains."""

    name: str = ""
    tables: _Cache[NeighbourTable | DeviceParameters] = field(
        default_factory=lambda: _Cache(messages.table)
    )
    links: _Cache[Link] = field(default_factory=lambda: _Cache(messages.link))
    routes: _Cache[Route] = field(default_factory=lambda: _Cache(messages.route))
    rules: _Cache[bool] = field(default_factory=lambda: _Cache(messages.is_policy))
    neighbours: dict[bytes, Neighbour] = field(default_factory=dict)  # decoded at the last look
    sent: _Sent = field(default_factory=_Sent)
    complete_at: int = 0  # when the last complete frame was sent, ns; 0: never
    changed: bool = False  # whether a frame of changes followed it

    def look(self, sock: socket) -> tuple[list[NeighbourTable], Neighbours]:
        """Returns the kernel's tables, and a frame of what changed: only `mono` if nothing did.

        Raises OSError.
        """
        mono = time.monotonic_ns()
        news: Neighbours = {"mono": mono}
        if not self.complete_at or (self.changed and mono - self.complete_at >= _COMPLETE_EVERY):
            self.complete_at, self.changed = mono, False
            self.sent = _Sent()
        tables, parms = self._tables(sock)
        links, n_links = self.links.all(dump(sock, rtnl.RTM_GETLINK, _LINKS))
        devices: list[Device] = [
            {**link, "parms": parms.get(link["index"], {})}
            for link in (*links, _NO_DEVICE)
            if link["index"] or 0 in parms
        ]
        n_neighbours = self._neighbours(sock, mono, news)
        routes, n_routes = self.routes.all(dump(sock, rtnl.RTM_GETROUTE, _ROUTES))
        rules, _ = self.rules.all(dump(sock, rtnl.RTM_GETRULE, _RULES))
        totals = {
            "neighbours": n_neighbours,
            "routes": n_routes,
            "devices": n_links,
            "rules": sum(rules),
        }
        self._devices(devices, news)
        if self.sent.name != self.name:
            news["name"] = self.sent.name = self.name
        if self.sent.routes != routes:
            news["routes"] = self.sent.routes = routes
        if self.sent.totals != totals:
            news["totals"] = self.sent.totals = totals
        self.changed = self.changed or (len(news) > 1 and mono != self.complete_at)
        return tables, news

    def _devices(self, devices: list[Device], news: Neighbours) -> None:
        before = self.sent.devices
        now = self.sent.devices = {device["index"]: device for device in devices}
        if before is None or before.keys() != now.keys():
            news["devices"] = devices
        elif changed := [device for device in devices if before[device["index"]] != device]:
            # Frequent: a device's parameters count the neighbours that refer to it.
            news["devices_changed"] = changed

    def _tables(
        self, sock: socket
    ) -> tuple[list[NeighbourTable], dict[int, dict[str, dict[str, int]]]]:
        """Returns the tables, and the parameters of each device by IP version."""
        tables: dict[str, NeighbourTable] = {}
        parms: dict[int, dict[str, dict[str, int]]] = {}
        # A long dump repeats the table itself in each portion.
        found, _ = self.tables.all(dump(sock, rtnl.RTM_GETNEIGHTBL, _TABLES), 4 * MOST)
        for value in found:
            if isinstance(value, DeviceParameters):
                parms.setdefault(value.index, {})[str(value.family)] = value.parms
            else:
                tables[value["name"]] = value
        return list(tables.values()), parms

    def _neighbours(self, sock: socket, mono: int, news: Neighbours) -> int:
        """Adds what changed to `news`; returns how many neighbours there are."""
        now = mono // 1_000_000
        before = self.sent.neighbours
        seen: dict[_Key, tuple[Neighbour, _Moments]] = {}
        decoded: dict[bytes, Neighbour] = {}
        changed: list[Neighbour] = []
        total = 0
        for raw in _both(sock):
            constant, times = messages.split_times(raw)
            if len(seen) >= MOST:
                total += 1
                continue
            value = self.neighbours.get(constant) or messages.neighbour(raw)
            if value is None:
                continue
            total += 1
            decoded[constant] = value
            key = (value["family"], value["dst"], value["dev"], bool(value["flags"] & _NTF_PROXY))
            moments = () if times is None else tuple(now - ms for ms in times[:3])
            known = None if before is None else before.get(key)
            if known is not None and known[0] == value and not _moved(known[1], moments):
                seen[key] = known
                continue
            seen[key] = (value, moments)
            changed.append(value if times is None else _with_ages(value, times))
        if before is None:
            news["neighbours"] = changed
        else:
            if changed:
                news["neighbours_changed"] = changed
            if gone := [key for key in before if key not in seen]:
                news["neighbours_gone"] = gone
        self.sent.neighbours, self.neighbours = seen, decoded
        return total


def _with_ages(value: Neighbour, times: tuple[int, int, int, int]) -> Neighbour:
    confirmed, used, updated, refs = times
    return {**value, "confirmed": confirmed, "used": used, "updated": updated, "refs": refs}


def _both(sock: socket) -> Iterator[bytes]:
    """Yields neighbours, and then proxy entries, of which the kernel makes dumps apart."""
    yield from dump(sock, rtnl.RTM_GETNEIGH, _NEIGHBOURS)
    yield from dump(sock, rtnl.RTM_GETNEIGH, _PROXIES)


def _moved(before: _Moments, now: _Moments) -> bool:
    return len(before) != len(now) or any(
        abs(a - b) > _DRIFT for a, b in zip(before, now, strict=True)
    )


class NeighbourWatch:
    """A Watch, see ipttrace/capture/watch.py."""

    def __init__(self, netns: str | None = None) -> None:
        """`netns`: the only namespace to look at, as `netns.inode` takes it; None for all."""
        self.interval = _EVERY
        self._home = namespaces.current()
        self._only = netns
        self._known: dict[int, _Namespace] = {}

    def look(self) -> Iterator[Finding]:
        """Yields what changed; after that, raises CaptureError if a namespace cannot be read."""
        began = time.thread_time()
        tables: list[NeighbourTable] = []
        failed = ""
        before, self._known = self._known, {}
        for inode, (name, path) in namespaces.traced(self._home, self._only).items():
            known = before.get(inode) or _Namespace()
            known.name = name
            try:
                with socket_in(path, inode) as sock:
                    found, news = known.look(sock)
            except Vanished:
                continue
            except OSError as error:
                # EINVAL: the file of a namespace that was deleted, or not yet mounted.
                if error.errno != errno.EINVAL:
                    reason = error.strerror or str(error)
                    failed = failed or f"network namespace {name or inode} cannot be read: {reason}"
                continue
            self._known[inode] = known
            if found and not tables:
                tables = found
                yield Kind.NEIGHBOURS, {"mono": news["mono"], "tables": tables}
            if len(news) > 1:
                yield Kind.NEIGHBOURS, {"netns": inode, **news}
        # One that can be read again starts with a complete frame.
        if gone := [inode for inode in before if inode not in self._known]:
            yield Kind.NEIGHBOURS, {"mono": time.monotonic_ns(), "gone": gone}
        self.interval = max(_EVERY, (time.thread_time() - began) * _SHARE)
        if failed:
            raise CaptureError(failed)

    def close(self) -> None:
        """Does nothing: nothing is held between looks."""
