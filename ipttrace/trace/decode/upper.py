# SPDX-License-Identifier: GPL-2.0-only
"""Protocols above IP, field by field.

TCP (RFC 9293) with its options, UDP, UDP-Lite, DCCP (RFC 4340), SCTP (RFC 9260), GRE
(RFC 2784, 2890, 2637), ESP, AH, IGMP, VRRP.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.decode.layer import (
    DATA,
    NETWORK,
    PROTO,
    Decode,
    Next,
    Put,
    Reader,
    bits,
    named,
    options,
)

_MOST_CHUNKS: Final = 8
_MOST_SACKS: Final = 4


def _ports(reader: Reader, put: Put) -> tuple[int, int]:
    sport, dport = reader.u16(0), reader.u16(2)
    put("sport", sport)
    put("dport", dport)
    return sport, dport


def _hex16(value: int) -> str:
    return f"0x{value:04x}"


# TCP.


def _tcp(reader: Reader, put: Put) -> Next | None:
    ports = _ports(reader, put)
    put("flags", ip.tcp_flag_names(reader.u16(12) & 0x1FF))
    put("seq", reader.u32(4))
    put("ack", reader.u32(8))
    put("window", reader.u16(14))
    header = (reader.u8(12) >> 4) * 4
    put("header", header)
    put("checksum", _hex16(reader.u16(16)))
    if urgent := reader.u16(18):
        put("urgent", urgent)
    if header < 20:
        raise ValueError(f"header length is {header} bytes; the minimum is 20")
    for kind, at, size in options(reader, 20, header):
        put(*_tcp_option(reader, kind, at, size))
    return Next(DATA, header, ports=ports)


def _tcp_option(reader: Reader, kind: int, at: int, size: int) -> tuple[str, str]:
    match kind, size:
        case 2, 2:
            return "mss", str(reader.u16(at))
        case 3, 1:
            return "wscale", str(reader.u8(at))
        case 4, 0:
            return "sack", "permitted"
        case 5, _ if size % 8 == 0:
            blocks = [
                f"{reader.u32(block)}-{reader.u32(block + 4)}"
                for block in range(at, at + min(size, 8 * _MOST_SACKS), 8)
            ]
            return "sack", " ".join(blocks)
        case 8, 8:
            return "timestamps", f"{reader.u32(at)} echo {reader.u32(at + 4)}"
        case 34, _:
            return "fast open", reader.raw(at, size).hex(" ") or "requested"
        case 19, _:
            return "md5", reader.raw(at, size).hex(" ")
        case 30, _:
            return "mptcp", reader.raw(at, size).hex(" ")
    return "option", f"{kind} {reader.raw(at, size).hex(' ')}".rstrip()


# Datagrams.


def _udp(reader: Reader, put: Put) -> Next | None:
    ports = _ports(reader, put)
    length = reader.u16(4)
    put("length", length)
    checksum = reader.u16(6)
    put("checksum", _hex16(checksum) if checksum else "0x0000 none")
    if 0 < length < 8:
        raise ValueError(f"length is {length} bytes, less than the header")
    return Next(DATA, 8, length or None, ports=ports)


def _udplite(reader: Reader, put: Put) -> Next | None:
    ports = _ports(reader, put)
    put("coverage", reader.u16(4) or "all")
    put("checksum", _hex16(reader.u16(6)))
    return Next(DATA, 8, ports=ports)


_DCCP_TYPES: Final = {
    0: "Request",
    1: "Response",
    2: "Data",
    3: "Ack",
    4: "DataAck",
    5: "CloseReq",
    6: "Close",
    7: "Reset",
    8: "Sync",
    9: "SyncAck",
}


def _dccp(reader: Reader, put: Put) -> Next | None:
    _ports(reader, put)
    put("type", named(_DCCP_TYPES, reader.u8(8) >> 1 & 0x0F))
    put("offset", reader.u8(4) * 4)
    put("checksum", _hex16(reader.u16(6)))
    if reader.u8(8) & 1:
        put("seq", int.from_bytes(reader.raw(10, 6), "big"))
    else:
        put("seq", reader.u32(8) & 0xFFFFFF)
    return None


_CHUNKS: Final = {
    0: "DATA",
    1: "INIT",
    2: "INIT ACK",
    3: "SACK",
    4: "HEARTBEAT",
    5: "HEARTBEAT ACK",
    6: "ABORT",
    7: "SHUTDOWN",
    8: "SHUTDOWN ACK",
    9: "ERROR",
    10: "COOKIE ECHO",
    11: "COOKIE ACK",
    14: "SHUTDOWN COMPLETE",
    192: "FORWARD TSN",
}


def _sctp(reader: Reader, put: Put) -> Next | None:
    _ports(reader, put)
    put("tag", f"0x{reader.u32(4):08x}")
    put("checksum", f"0x{reader.u32(8):08x}")
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at >= reader.length:
            return None
        kind, length = reader.u8(at), reader.u16(at + 2)
        put("chunk", f"{named(_CHUNKS, kind)} flags 0x{reader.u8(at + 1):02x} length {length}")
        if length < 4:
            raise ValueError(f"chunk length is {length} bytes; the minimum is 4")
        if kind == 0:
            put("tsn", reader.u32(at + 4))
            put("stream", reader.u16(at + 8))
        elif kind in (1, 2):
            put("initiate tag", f"0x{reader.u32(at + 4):08x}")
            put("window", reader.u32(at + 8))
        elif kind == 3:
            put("tsn", reader.u32(at + 4))
        at += (length + 3) // 4 * 4
    return None


# Tunnels.

_GRE_FLAGS: Final = (
    (0x8000, "checksum"),
    (0x4000, "routing"),
    (0x2000, "key"),
    (0x1000, "sequence"),
    (0x0080, "ack"),
)
_GRE_INSIDE: Final = {
    0x0800: "IPv4",
    0x86DD: "IPv6",
    0x6558: "Ethernet",
    0x880B: "PPP",
    0x88BE: "ERSPAN",
    0x8847: "MPLS",
}


def _gre(reader: Reader, put: Put) -> Next | None:
    word, inside = reader.u16(0), reader.u16(2)
    version = word & 7
    put("inside", f"{_GRE_INSIDE.get(inside, 'protocol')} (0x{inside:04x})")
    put("version", version)
    put("flags", bits(_GRE_FLAGS, word))
    at = 4
    if word & 0xC000:
        put("checksum", _hex16(reader.u16(at)))
        at += 4
    if word & 0x2000:
        if version == 1:
            put("length", reader.u16(at))
            put("call", reader.u16(at + 2))
        else:
            put("key", f"0x{reader.u32(at):08x}")
        at += 4
    if word & 0x1000:
        put("seq", reader.u32(at))
        at += 4
    if version == 1 and word & 0x0080:
        put("ack", reader.u32(at))
        at += 4
    if word & 0x4000:
        return None  # routing entries (RFC 1701) have variable length
    if version == 0 and inside in (0x0800, 0x86DD):
        return Next(NETWORK, at, inside=True)
    return Next(DATA, at)


def _esp(reader: Reader, put: Put) -> Next | None:
    put("spi", f"0x{reader.u32(0):08x}")
    put("seq", reader.u32(4))
    put("encrypted", f"{max(reader.length - 8, 0)} bytes")
    return None


def _ah(reader: Reader, put: Put) -> Next | None:
    upper, size = reader.u8(0), (reader.u8(1) + 2) * 4
    put("next", named(ip.NAMES, upper))
    put("header", size)
    put("spi", f"0x{reader.u32(4):08x}")
    put("seq", reader.u32(8))
    if size < 12:
        raise ValueError(f"header length is {size} bytes; the minimum is 12")
    put("icv", reader.raw(12, size - 12).hex())
    return Next(PROTO, size, number=upper)


# Other protocols.

_IGMP: Final = {
    0x11: "Query",
    0x12: "Report v1",
    0x16: "Report v2",
    0x17: "Leave",
    0x22: "Report v3",
}


def _igmp(reader: Reader, put: Put) -> Next | None:
    put("type", named(_IGMP, reader.u8(0)))
    put("checksum", _hex16(reader.u16(2)))
    if reader.u8(0) == 0x22:
        put("groups", reader.u16(6))
    else:
        put("group", ".".join(map(str, reader.raw(4, 4))))
    return None


def _vrrp(reader: Reader, put: Put) -> Next | None:
    put("version", reader.u8(0) >> 4)
    put("router", reader.u8(1))
    put("priority", reader.u8(2))
    put("addresses", reader.u8(3))
    return None


def _no_next(reader: Reader, put: Put) -> Next | None:
    put("length", f"{reader.length} bytes")
    return None


UPPER: Final[dict[int, tuple[str, Decode]]] = {
    ip.TCP: ("TCP", _tcp),
    ip.UDP: ("UDP", _udp),
    ip.UDPLITE: ("UDPLITE", _udplite),
    ip.DCCP: ("DCCP", _dccp),
    ip.SCTP: ("SCTP", _sctp),
    ip.GRE: ("GRE", _gre),
    ip.ESP: ("ESP", _esp),
    ip.AH: ("AH", _ah),
    ip.NO_NEXT: ("No next header", _no_next),
    2: ("IGMP", _igmp),
    112: ("VRRP", _vrrp),
}
