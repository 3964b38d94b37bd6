# SPDX-License-Identifier: GPL-2.0-only
"""What a station means, in one sentence, with the packet's own facts.

Sentences name what to look at next.  What is not known is said to be unknown.  All text is
safe for a terminal, because rows are.  Must not do I/O.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.trace.drops.functions import BY_BOTH, BY_FUNCTION, WITHOUT_REASONS
from ipttrace.trace.drops.reasons import REASONS
from ipttrace.trace.drops.where import UNSPECIFIED, function
from ipttrace.trace.row import Aside, Row

# Names of namespaces that may stand in a command.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_INIT: Final = "init"
_DEVICE: Final = "the device"

# RTN_* (linux/rtnetlink.h), as `ip route` calls them.
ROUTE_TYPES: Final = (
    *("unspec", "unicast", "local", "broadcast", "anycast", "multicast"),
    *("blackhole", "unreachable", "prohibit", "throw", "nat"),
)
_LOCAL, _UNICAST = 2, 1
_ROUTE_TABLES: Final = {253: "default", 254: "main", 255: "local"}
# NUD_* (linux/neighbour.h) by bit.
NEIGHBOUR_STATES: Final = (
    *("INCOMPLETE", "REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "NOARP", "PERMANENT"),
)
_NONE: Final = "NONE"
_FREEING: Final = ("kfree_skb", "__kfree_skb", "sk_skb_reason_drop", "skb_release_")


def explain(row: Row, netns: str | None = None) -> str:
    """Returns the sentence of a station or of a rule's drop; "" for other rows.

    `netns`: the name of its namespace, if it has one.
    """
    if row.station is not None and row.station != "dropped":
        return _station(row)
    if row.station is None:
        return ""
    return _filled(_drop(row.reason or "", dropping(row)), row, netns)


def dropping(row: Row) -> str:
    """Returns the function that dropped the packet, not the one that freed it; "" if unknown."""
    where = function(row.place or "")
    if not where.startswith(_FREEING) or row.aside is None:
        return where
    callers = (function(place) for place in row.aside.stack)
    return next((one for one in callers if not one.startswith(_FREEING)), where)


def _drop(reason: str, where: str) -> str:
    if (sentence := BY_BOTH.get((reason, where))) is not None:
        return sentence
    if reason not in UNSPECIFIED:
        return REASONS.get(reason, "the kernel names this reason, of which no more is known here")
    if not reason and where in WITHOUT_REASONS:
        return WITHOUT_REASONS[where]
    known = max((name for name in BY_FUNCTION if _begins(where, name)), key=len, default="")
    if known:
        return BY_FUNCTION[known]
    if not where:
        return "neither reason nor place is known"
    return "the kernel gives no reason; the place and the stack are all that is known"


def _begins(where: str, name: str) -> bool:
    return where.startswith(name) if name.endswith("_") else where == name


def _filled(sentence: str, row: Row, netns: str | None) -> str:
    named = bool(netns and netns != _INIT and _PLAIN.fullmatch(netns))
    within = f" -n {netns}" if named else ""
    family = 6 if ":" in row.dst else 4
    facts = {
        "dev": row.in_ or row.out or _DEVICE,
        "out": row.out or "the route",
        "src": row.src or "its source",
        "dst": row.dst or "its destination",
        "dst_end": _end(row),
        "mac": row.mac_dst or "unknown",
        "proto": row.proto or "its protocol",
        "proto_low": row.proto.lower() or "…",
        "len": "its" if row.len is None else str(row.len),
        "mark": "unknown" if row.mark is None else f"{row.mark:#x}",
        "with_mark": f" mark {row.mark:#x}" if row.mark else "",
        "flags": row.flags or "NONE",
        "hop": _hop(row),
        "table": "ndisc_cache" if family == 6 else "arp_cache",
        "resolution": "ND" if family == 6 else "ARP",
        "ip": f"ip{within}",
        "tc": f"tc{within}",
        "exec": f"ip netns exec {netns} " if named else "",
        "sockets": {"TCP": "t", "UDP": "u"}.get(row.proto, ""),
    }
    if row.out and sentence in _OF_OUTPUT:
        facts["dev"] = row.out
    if family == 6:
        sentence = sentence.replace("net.ipv4.conf", "net.ipv6.conf")
        sentence = sentence.replace("net.ipv4.neigh", "net.ipv6.neigh")
        sentence = sentence.replace("{ip} route", "{ip} -6 route").replace(
            "{ip} rule", "{ip} -6 rule"
        )
    return sentence.format_map(facts)


# What happens on the way out: the device is the outgoing one.
_OF_OUTPUT: Final = frozenset(
    sentence
    for name, sentence in REASONS.items()
    if name.startswith(
        ("NEIGH_", "QDISC_", "FQ_", "CAKE_", "TC_EGRESS", "DEV_", "FULL_RING", "TUNNEL_")
    )
) | frozenset(
    sentence
    for name, sentence in BY_FUNCTION.items()
    if name.startswith(("tun_", "tap_", "veth_", "dev_", "validate_", "qdisc_", "wg_", "vxlan_"))
)


def _end(row: Row) -> str:
    address = row.dst or "its destination"
    if row.dport is None:
        return address
    return f"[{address}]:{row.dport}" if ":" in address else f"{address}:{row.dport}"


def _hop(row: Row) -> str:
    return gateway(row.aside) or row.dst or "the next hop"


def gateway(aside: Aside | None) -> str:
    """Returns the next hop's address; "" if it is unknown, or the destination itself."""
    if aside is None or not aside.has_route or not aside.gateway_family:
        return ""
    if aside.gateway_family == NFPROTO_IPV6:
        return str(IPv6Address(aside.gateway))
    return str(IPv4Address(aside.gateway[:4]))


def neighbour(aside: Aside | None) -> str:
    """Returns the state of the neighbour as `ip neigh` has it; "" if it is unknown."""
    if aside is None or not aside.has_neighbour:
        return ""
    bits = [name for bit, name in enumerate(NEIGHBOUR_STATES) if aside.neighbour_state & 1 << bit]
    return ",".join(bits) or _NONE


def route(aside: Aside | None) -> str:
    """Returns the route in a few words: "unicast via 10.0.0.1, table main"; "" if unknown."""
    if aside is None or not aside.has_route:
        return ""
    kind = aside.route_type
    words = ROUTE_TYPES[kind] if kind < len(ROUTE_TYPES) else f"type {kind}"
    if via := gateway(aside):
        words += f" via {via}"
    if aside.route_table:
        words += f", table {_ROUTE_TABLES.get(aside.route_table, aside.route_table)}"
    return words


def _station(row: Row) -> str:
    into, out = row.in_ or _DEVICE, row.out or _DEVICE
    match row.station:
        case "received":
            return f"received on {into}"
        case "routed":
            return _routed(row)
        case "forwarded":
            return f"forwarded from {into} to {out}"
        case "queued":
            state = neighbour(row.aside)
            on = f" ({state})" if state else ""
            return f"waits for the link-layer address of {_hop(row)} on {out}{on}"
        case "sent":
            return f"handed to {out}"
        case "delivered":
            owner = row.aside and row.aside.owner
            return f"delivered to {owner or 'a socket'} on {_end(row)}"
    return f"unknown station {row.station}"


def _routed(row: Row) -> str:
    aside = row.aside
    if aside is None or not aside.has_route:
        return "routed"
    if aside.route_type == _LOCAL:
        return "routed to this host"
    if aside.route_type == _UNICAST:
        via = gateway(aside)
        to = f"via {via}" if via else f"to {row.dst or 'its destination'} directly"
        on = f" on {row.out}" if row.out else ""
        table = _ROUTE_TABLES.get(aside.route_table, aside.route_table)
        return f"routed {to}{on}" + (f", table {table}" if aside.route_table else "")
    return f"routed: {route(aside)}"
