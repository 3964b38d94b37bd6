# SPDX-License-Identifier: GPL-2.0-only
"""Decodes rtnetlink messages about neighbours, devices and routes into plain values.

From linux/neighbour.h, if_link.h, rtnetlink.h and fib_rules.h.  A wrong length ends the
list of attributes; one of the wrong size counts as absent.  pyroute2's declarations
are not used: they take 14 to 20 times as long, lack the newest fields of `ndtmsg`, and
their `rtmsg` never returns from a zero length.  Must not open sockets.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypedDict

from ipttrace.capture.netlink.nft.wire import attributes
from ipttrace.netfilter import IP_VERSIONS
from ipttrace.stream.messages import Neighbour, NeighbourTable, Route

_HEADER: Final = 16  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_NDTMSG: Final = 4  # sizeof(struct ndtmsg)
_NDMSG: Final = struct.Struct("=B3xiHBB")
_CACHEINFO: Final = struct.Struct("=4I")  # struct nda_cacheinfo
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_RTMSG: Final = struct.Struct("=8BI")
_RTNEXTHOP: Final = struct.Struct("=HBBi")
_FIB_RULE_HDR: Final = 12  # sizeof
_CONFIG: Final = struct.Struct("=2H7I")  # struct ndt_config
_CONFIG_FIELDS: Final = (
    "key_len",
    "entry_size",
    "entries",
    "last_flush",
    "last_rand",
    "hash_rnd",
    "hash_mask",
    "hash_chain_gc",
    "proxy_qlen",
)
# struct ndt_stats, u64 each; older kernels end before the last.
_STATS_FIELDS: Final = (
    "allocs",
    "destroys",
    "hash_grows",
    "res_failed",
    "lookups",
    "hits",
    "rcv_probes_mcast",
    "rcv_probes_ucast",
    "periodic_gc_runs",
    "forced_gc_runs",
    "table_fulls",
)
# NDTPA_* after NDTPA_IFINDEX, u32 or u64.
_PARMS: Final = {
    2: "refcnt",
    3: "reachable_time",
    4: "base_reachable_time",
    5: "retrans_time",
    6: "gc_staletime",
    7: "delay_probe_time",
    8: "queue_len",
    9: "app_probes",
    10: "ucast_probes",
    11: "mcast_probes",
    12: "anycast_delay",
    13: "proxy_delay",
    14: "proxy_qlen",
    15: "locktime",
    16: "queue_lenbytes",
    17: "mcast_reprobes",
    19: "interval_probe_time_ms",
}
# The kernel's own routing rules: priorities of those for the tables local, main and default.
_OWN_RULES: Final = (0, 32766, 32767)
_CLONED: Final = 0x200  # RTM_F_CLONED
_DEAD: Final = 1  # RTNH_F_DEAD
_TABLES: Final = (255, 254, 253)  # RT_TABLE_LOCAL, _MAIN, _DEFAULT
_AF: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ADDRESS_SIZES: Final = {4: 4, 6: 16}
_NDA_CACHEINFO: Final = 3
_TICK: Final = 10  # ms of a clock_t: USER_HZ is 100


class Link(TypedDict):
    """A device without its parameters, see stream.messages.Device."""

    index: int
    name: str
    flags: int
    type: int
    mtu: int
    lladdr: str | None


@dataclass(frozen=True, slots=True)
class DeviceParameters:
    """A device's parameters in one table: NDTPA_* in small letters, times in ms."""

    index: int
    family: int  # 4, 6
    parms: dict[str, int]


def _number(value: bytes | None) -> int:
    """Returns an unsigned integer of any size in host order; 0 if it is absent."""
    return 0 if value is None else int.from_bytes(value, sys.byteorder)


def _address(version: int, value: bytes | None) -> str | None:
    """Returns an IP address; None if it is absent or has the wrong size."""
    if value is None or len(value) != _ADDRESS_SIZES[version]:
        return None
    return socket.inet_ntop(_AF[version], value)


def _lladdr(value: bytes | None) -> str | None:
    """Returns a link-layer address; a tunnel's is an IP address."""
    if not value:
        return None
    version = {4: 4, 16: 6}.get(len(value))
    return value.hex(":") if version is None else _address(version, value)


def table(raw: bytes) -> NeighbourTable | DeviceParameters | None:
    """Returns a table, or a device's parameters in it; None for other bytes.

    struct ndtmsg and NDTA_*; times in ms.
    """
    if len(raw) < _HEADER + _NDTMSG:
        return None
    family = IP_VERSIONS.get(raw[_HEADER])
    found = attributes(raw[_HEADER + _NDTMSG :])
    name = found.get(1)
    if family is None or name is None:
        return None
    nest = attributes(found.get(6, b""))
    parms = {_PARMS[kind]: _number(value) for kind, value in nest.items() if kind in _PARMS}
    config = found.get(5)
    if config is None or len(config) < _CONFIG.size:
        return DeviceParameters(_number(nest.get(1)), family, parms)
    stats = found.get(7, b"")
    count = min(len(stats) // 8, len(_STATS_FIELDS))
    return {
        "family": family,
        "name": name.split(b"\0", 1)[0].decode("utf-8", "replace"),
        "thresholds": [_number(found.get(kind)) for kind in (2, 3, 4)],
        "gc_interval": _number(found.get(8)),
        "config": dict(zip(_CONFIG_FIELDS, _CONFIG.unpack_from(config), strict=True)),
        "stats": dict(zip(_STATS_FIELDS, struct.unpack_from(f"={count}Q", stats), strict=False)),
        "parms": parms,
    }


def link(raw: bytes) -> Link | None:
    """Returns a device; None for other bytes.  struct ifinfomsg and IFLA_*."""
    if len(raw) < _HEADER + _IFINFOMSG.size:
        return None
    _, hardware, index, flags, _ = _IFINFOMSG.unpack_from(raw, _HEADER)
    found = attributes(raw[_HEADER + _IFINFOMSG.size :])
    return {
        "index": index,
        # It may hold any byte except a slash and white space: all survive until the reader.
        "name": found.get(3, b"").split(b"\0", 1)[0].decode("utf-8", "surrogateescape"),
        "flags": flags,
        "type": hardware,
        "mtu": _number(found.get(4)),
        "lladdr": _lladdr(found.get(1)),
    }


def split_times(raw: bytes) -> tuple[bytes, tuple[int, int, int, int] | None]:
    """Splits a neighbour's message into what is constant and what time changes.

    The second is NDA_CACHEINFO: ms since it was confirmed, used and updated, and the
    number of references.  The first is a key to what was decoded at an earlier look.
    """
    at = _HEADER + _NDMSG.size
    while at + _ATTRIBUTE.size <= len(raw):
        size, kind = _ATTRIBUTE.unpack_from(raw, at)
        if size < _ATTRIBUTE.size:
            break
        if kind == _NDA_CACHEINFO and size == 20 and at + size <= len(raw):
            confirmed, used, updated, refs = _CACHEINFO.unpack_from(raw, at + 4)
            times = (confirmed * _TICK, used * _TICK, updated * _TICK, refs)
            return raw[_HEADER:at] + raw[at + size :], times
        at += (size + 3) & ~3
    return raw[_HEADER:], None


def neighbour(raw: bytes) -> Neighbour | None:
    """Returns a neighbour without its times; None for other bytes.  struct ndmsg and NDA_*."""
    if len(raw) < _HEADER + _NDMSG.size:
        return None
    number, dev, state, flags, _ = _NDMSG.unpack_from(raw, _HEADER)
    family = IP_VERSIONS.get(number)
    if family is None:
        return None
    found = attributes(raw[_HEADER + _NDMSG.size :])
    dst = _address(family, found.get(1))
    if dst is None:
        return None
    return {
        "family": family,
        "dst": dst,
        "dev": dev,
        "state": state,
        "flags": flags | _number(found.get(15)) << 8,
        "lladdr": _lladdr(found.get(2)),
        "probes": _number(found.get(4)),
        "protocol": _number(found.get(12)),
    }


def route(raw: bytes) -> Route | None:
    """Returns a route of the tables local, main and default; None for other routes and bytes.

    struct rtmsg and RTA_*.
    """
    if len(raw) < _HEADER + _RTMSG.size:
        return None
    number, dst_len, _, _, low_table, _, _, kind, flags = _RTMSG.unpack_from(raw, _HEADER)
    family = IP_VERSIONS.get(number)
    found = attributes(raw[_HEADER + _RTMSG.size :])
    where = _number(found.get(15)) or low_table
    if family is None or where not in _TABLES or flags & _CLONED:
        return None
    if multipath := found.get(9):
        hops = list(_multipath(family, multipath))
    else:
        hops = [(_number(found.get(4)), _gateway(family, found))]
    dst = _address(family, found.get(1)) or ("0.0.0.0" if family == 4 else "::")
    return {
        "family": family,
        "dst": f"{dst}/{dst_len}",
        "type": kind,
        "table": where,
        "metric": _number(found.get(6)),
        "hops": hops,
    }


def _multipath(family: int, raw: bytes) -> Iterator[tuple[int, str | None]]:
    """Yields device and gateway of each next hop that is not dead.  struct rtnexthop."""
    at = 0
    head = _RTNEXTHOP.size
    while at + head <= len(raw):
        size, flags, _, device = _RTNEXTHOP.unpack_from(raw, at)
        if size < head or at + size > len(raw):
            return
        if not flags & _DEAD:
            yield device, _gateway(family, attributes(raw[at + head : at + size]))
        at += (size + 3) & ~3


def _gateway(family: int, found: dict[int, bytes]) -> str | None:
    if 5 in found:
        return _address(family, found[5])
    # RTA_VIA, a gateway of the other family, RFC 5549.
    via = found.get(18, b"")
    other = IP_VERSIONS.get(_number(via[:2]))
    return None if other is None else _address(other, via[2:])


def is_policy(raw: bytes) -> bool:
    """Returns whether a routing rule is none of the kernel's own.  FRA_PRIORITY."""
    return _number(attributes(raw[_HEADER + _FIB_RULE_HDR :]).get(6)) not in _OWN_RULES
