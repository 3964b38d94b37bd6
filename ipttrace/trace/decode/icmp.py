# SPDX-License-Identifier: GPL-2.0-only
"""ICMP (RFC 792, 1191) and ICMPv6 (RFC 4443, 4861), field by field.

The packet quoted in an error is decoded as additional layers.  Must not do I/O.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.decode.layer import DATA, NETWORK, Next, Put, Reader, bits, named

_TYPES: Final = {
    0: "Echo reply",
    3: "Destination unreachable",
    4: "Source quench",
    5: "Redirect",
    8: "Echo request",
    9: "Router advertisement",
    10: "Router solicitation",
    11: "Time exceeded",
    12: "Parameter problem",
    13: "Timestamp request",
    14: "Timestamp reply",
    17: "Address mask request",
    18: "Address mask reply",
    42: "Extended echo request",
    43: "Extended echo reply",
}
_CODES: Final = {
    3: {
        0: "network unreachable",
        1: "host unreachable",
        2: "protocol unreachable",
        3: "port unreachable",
        4: "fragmentation needed",
        5: "source route failed",
        6: "network unknown",
        7: "host unknown",
        9: "network prohibited",
        10: "host prohibited",
        11: "network unreachable for TOS",
        12: "host unreachable for TOS",
        13: "administratively prohibited",
        14: "host precedence violation",
        15: "precedence cutoff",
    },
    5: {0: "for the network", 1: "for the host", 2: "for TOS and network", 3: "for TOS and host"},
    11: {0: "TTL exceeded in transit", 1: "reassembly time exceeded"},
    12: {0: "see pointer", 1: "option missing", 2: "bad length"},
}
_TYPES6: Final = {
    1: "Destination unreachable",
    2: "Packet too big",
    3: "Time exceeded",
    4: "Parameter problem",
    128: "Echo request",
    129: "Echo reply",
    130: "Listener query",
    131: "Listener report",
    132: "Listener done",
    133: "Router solicitation",
    134: "Router advertisement",
    135: "Neighbour solicitation",
    136: "Neighbour advertisement",
    137: "Redirect",
    143: "Listener report v2",
}
_CODES6: Final = {
    1: {
        0: "no route",
        1: "administratively prohibited",
        2: "beyond scope of source",
        3: "address unreachable",
        4: "port unreachable",
        5: "source failed policy",
        6: "reject route",
    },
    3: {0: "hop limit exceeded in transit", 1: "reassembly time exceeded"},
    4: {0: "bad header field", 1: "unknown next header", 2: "unknown option"},
}
_ADVERTISED: Final = ((0x80, "router"), (0x40, "solicited"), (0x20, "override"))
_MOST_OPTIONS: Final = 8


def _head(
    reader: Reader, put: Put, types: dict[int, str], codes: dict[int, dict[int, str]]
) -> tuple[int, int]:
    kind, code = reader.u8(0), reader.u8(1)
    put("type", named(types, kind))
    put("code", named(codes.get(kind, {}), code))
    put("checksum", f"0x{reader.u16(2):04x}")
    return kind, code


def icmp(reader: Reader, put: Put) -> Next | None:
    """Decodes ICMP (IPv4)."""
    kind, code = _head(reader, put, _TYPES, _CODES)
    if ip.ICMP_QUERY[kind]:
        put("id", reader.u16(4))
        put("seq", reader.u16(6))
        return Next(DATA, 8)
    if not ip.ICMP_ERROR[kind]:
        return Next(DATA, 8)
    if kind == 3 and code == 4:
        put("next-hop mtu", reader.u16(6))
    elif kind == 5:
        put("gateway", IPv4Address(reader.raw(4, 4)))
    elif kind == 12 and code == 0:
        put("pointer", reader.u8(4))
    return Next(NETWORK, 8, inside=True)


def icmpv6(reader: Reader, put: Put) -> Next | None:
    """Decodes ICMPv6, including neighbour discovery."""
    kind, _ = _head(reader, put, _TYPES6, _CODES6)
    if ip.ICMPV6_QUERY[kind]:
        put("id", reader.u16(4))
        put("seq", reader.u16(6))
        return Next(DATA, 8)
    if ip.ICMPV6_ERROR[kind]:
        if kind == 2:
            put("mtu", reader.u32(4))
        elif kind == 4:
            put("pointer", reader.u32(4))
        return Next(NETWORK, 8, inside=True)
    if kind == 133:
        _options(reader, put, 8)
    elif kind == 134:
        put("hop limit", reader.u8(4))
        put("router lifetime", f"{reader.u16(6)} s")
        _options(reader, put, 16)
    elif kind in (135, 136, 137):
        put("target", IPv6Address(reader.raw(8, 16)))
        if kind == 136:
            put("flags", bits(_ADVERTISED, reader.u8(4)))
        if kind == 137:
            put("destination", IPv6Address(reader.raw(24, 16)))
        _options(reader, put, 40 if kind == 137 else 24)
    elif kind in (130, 131, 132):
        put("group", IPv6Address(reader.raw(8, 16)))
    elif kind == 143:
        put("groups", reader.u16(6))
    return None


def _options(reader: Reader, put: Put, at: int) -> None:
    """Adds the options of neighbour discovery (RFC 4861, section 4.6)."""
    for _ in range(_MOST_OPTIONS):
        if at >= reader.length:
            return
        kind, size = reader.u8(at), reader.u8(at + 1) * 8
        if not size:
            raise ValueError(f"option {kind} has length 0")
        if kind in (1, 2) and size == 8:
            put(("source", "target")[kind - 1] + " mac", reader.raw(at + 2, 6).hex(":"))
        elif kind == 3 and size == 32:
            prefix = IPv6Address(reader.raw(at + 16, 16))
            put("prefix", f"{prefix}/{reader.u8(at + 2)}")
        elif kind == 5 and size == 8:
            put("mtu", reader.u32(at + 4))
        else:
            put("option", f"{kind}, {size} bytes")
        at += size
