# SPDX-License-Identifier: GPL-2.0-only
"""rtnetlink messages about neighbours, as plain values.

Declares, in pyroute2's way, the messages that pyroute2 lacks or reads only in
part: its `ndtmsg` ends the statistics before `table_fulls` and knows no
parameters after `queue_lenbytes` (include/uapi/linux/neighbour.h).  Must not
open sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.rtnl import ndtmsg as stock
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ipttrace.netfilter import IP_VERSIONS

Value = dict[str, Any]

# What pyroute2's decoders raise on bytes that are no such message.
_UNREADABLE: Final = (
    NetlinkDecodeError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OSError,
)
# What a kernel makes itself: the rules for the tables local, main and default.
_OWN_RULES: Final = (0, 32766, 32767)
_CLONED: Final = 0x200  # RTM_F_CLONED
_DEAD: Final = 1  # RTNH_F_DEAD
_TABLES: Final = (255, 254, 253)  # RT_TABLE_LOCAL, _MAIN, _DEFAULT
_NDA_CACHEINFO: Final = 3
_NDM: Final = 12  # sizeof(struct ndmsg)
_TICK: Final = 10  # ms of a clock_t: USER_HZ is 100


class NeighbourTable(stock.ndtmsg):  # type: ignore[misc]
    """struct ndtmsg and NDTA_*, to the last of their fields."""

    __slots__ = ()

    class stats(nla):  # type: ignore[misc]
        """struct ndt_stats."""

        __slots__ = ()
        fields = (*stock.ndtmsg.stats.fields, ("table_fulls", "Q"))

    class parms(nla):  # type: ignore[misc]
        """NDTPA_*."""

        __slots__ = ()
        nla_map = (
            *stock.ndtmsg.parms.nla_map[:17],
            ("NDTPA_MCAST_REPROBES", "uint32"),
            ("NDTPA_PAD", "none"),
            ("NDTPA_INTERVAL_PROBE_TIME_MS", "uint64"),
        )


class Link(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg with the few IFLA_* that a neighbour's device needs.

    The name stays bytes: it may hold any but a slash and a space.
    """

    __slots__ = ()
    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (1, "IFLA_ADDRESS", "lladdr"),
        (3, "IFLA_IFNAME", "cdata"),
        (4, "IFLA_MTU", "uint32"),
    )


def _decode(kind: type[nlmsg], raw: bytes) -> Any:
    message = kind(raw)
    message.decode()
    return message


def table(raw: bytes) -> tuple[str, int, Value] | None:
    """The table's name, a device's index or -1 for the table itself, and the values.

    Times are in ms.  None for what is no such message.
    """
    try:
        message = _decode(NeighbourTable, raw)
        family = IP_VERSIONS.get(message["family"])
        name, nest = message.get_attr("NDTA_NAME"), message.get_attr("NDTA_PARMS")
        if family is None or not isinstance(name, str):
            return None
        parms = {
            key[6:].lower(): value
            for key, value in (nest["attrs"] if nest is not None else ())
            if isinstance(value, int) and key.startswith("NDTPA_")
        }
        index = int(parms.pop("ifindex", 0))
        config, stats = message.get_attr("NDTA_CONFIG"), message.get_attr("NDTA_STATS")
        if config is None:
            return name, index, {"family": family, "parms": parms}
        return (
            name,
            -1,
            {
                "family": family,
                "name": name,
                "thresholds": [message.get_attr(f"NDTA_THRESH{n}") or 0 for n in (1, 2, 3)],
                "gc_interval": message.get_attr("NDTA_GC_INTERVAL") or 0,
                "config": {field: config[field] for field, _ in config.fields},
                "stats": {field: stats[field] for field, _ in stats.fields} if stats else {},
                "parms": parms,
            },
        )
    except _UNREADABLE:
        return None


def link(raw: bytes) -> Value | None:
    """A device: index, name, flags, type (ARPHRD_*), mtu, lladdr."""
    try:
        message = _decode(Link, raw)
        name = bytes(message.get_attr("IFLA_IFNAME") or b"").split(b"\0", 1)[0]
        return {
            "index": int(message["index"]),
            # What is no UTF-8 must come out as it was at the other end.
            "name": name.decode("utf-8", "surrogateescape"),
            "flags": message["flags"],
            "type": message["type"],
            "mtu": message.get_attr("IFLA_MTU") or 0,
            "lladdr": message.get_attr("IFLA_ADDRESS") or None,
        }
    except _UNREADABLE:
        return None


def split_times(raw: bytes) -> tuple[bytes, tuple[int, int, int, int] | None]:
    """A neighbour's message in two: all that stays as it is, and what time changes.

    The second is NDA_CACHEINFO: ms since it was confirmed, used and updated,
    and the references held.  The first makes a key: what was read once need not
    be read again.
    """
    at = 16 + _NDM
    while at + 4 <= len(raw):
        size, kind = struct.unpack_from("=HH", raw, at)
        if size < 4:
            break
        if kind == _NDA_CACHEINFO and size == 20 and at + size <= len(raw):
            confirmed, used, updated, refs = struct.unpack_from("=4I", raw, at + 4)
            times = (confirmed * _TICK, used * _TICK, updated * _TICK, refs)
            return raw[16:at] + raw[at + size :], times
        at += (size + 3) & ~3
    return raw[16:], None


def neighbour(raw: bytes) -> Value | None:
    """A neighbour, its times left out.  `flags` has NDA_FLAGS_EXT from bit 8 on."""
    try:
        message = _decode(ndmsg, raw)
        family, dst = IP_VERSIONS.get(message["family"]), message.get_attr("NDA_DST")
        if family is None or not isinstance(dst, str):
            return None
        flags = message["flags"] | (message.get_attr("NDA_FLAGS_EXT") or 0) << 8
        return {
            "family": family,
            "dst": dst,
            "dev": int(message["ifindex"]),
            "state": message["state"],
            "flags": flags,
            "lladdr": message.get_attr("NDA_LLADDR") or None,
            "probes": message.get_attr("NDA_PROBES") or 0,
            "protocol": message.get_attr("NDA_PROTOCOL") or 0,
        }
    except _UNREADABLE:
        return None


def route(raw: bytes) -> Value | None:
    """A route of the tables local, main and default; None for any other."""
    try:
        message = _decode(rtmsg, raw)
        family = IP_VERSIONS.get(message["family"])
        where = message.get_attr("RTA_TABLE") or message["table"]
        if family is None or where not in _TABLES or message["flags"] & _CLONED:
            return None
        several = message.get_attr("RTA_MULTIPATH")
        if several:
            hops = [_hop(hop, hop["oif"]) for hop in several if not hop["flags"] & _DEAD]
        else:
            hops = [_hop(message, message.get_attr("RTA_OIF") or 0)]
        dst = message.get_attr("RTA_DST") or ("0.0.0.0" if family == 4 else "::")
        return {
            "family": family,
            "dst": f"{dst}/{message['dst_len']}",
            "type": message["type"],
            "table": where,
            "metric": message.get_attr("RTA_PRIORITY") or 0,
            "hops": hops,
        }
    except _UNREADABLE:
        return None


def _hop(of: Any, device: int) -> list[Any]:
    """[device index, next hop's address or None]: of a route, or one of its several."""
    via = of.get_attr("RTA_GATEWAY")
    if via is None:
        # A next hop of the other family, RFC 5549.
        other = of.get_attr("RTA_VIA")
        via = other.get("addr") if isinstance(other, Mapping) else None
    return [device, via if isinstance(via, str) else None]


def is_policy(raw: bytes) -> bool:
    """Whether a rule for routing is one that somebody made."""
    try:
        message = _decode(fibmsg, raw)
        return (message.get_attr("FRA_PRIORITY") or 0) not in _OWN_RULES
    except _UNREADABLE:
        return True
