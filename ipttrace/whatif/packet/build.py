# SPDX-License-Identifier: GPL-2.0-only
"""A spec to the bytes of an IP packet, with correct checksums.  Must not do I/O."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace
from typing import Final

from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.repair import finish_checksums
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, SCTP, TCP, UDP, Packet

_SPORT: Final = 40000  # if none is given
_ECHO: Final = {4: (8, 0), 6: (128, 129)}
_ERRORS: Final = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}
_FRAGMENT: Final = 44
SEQUENCE: Final = 0x1BADB002  # of TCP: an answer has another one


def build(packet: Packet) -> bytes:
    """Returns the packet as it leaves the IP layer.  Raises WhatIfError.

    Its source must be known; a source port is chosen.
    """
    if packet.raw:
        return packet.raw
    if packet.src is None:
        raise WhatIfError("the packet's source address is not known")
    upper = _upper(packet)
    head = 20 if packet.family == 4 else 40 + (8 if packet.fragment else 0)
    if packet.length is not None:
        if packet.length < head + len(upper):
            raise WhatIfError(
                f"len {packet.length} is too short: headers and payload take {head + len(upper)}"
            )
        upper += bytes(packet.length - head - len(upper))
    if head + len(upper) > 65535:
        raise WhatIfError("the packet is longer than 65535 bytes")
    later = packet.fragment is not None and packet.fragment[0] > 0
    if later:
        # Not the first: it has no header of the protocol.
        return _with_header(packet, upper[len(_upper(replace(packet, payload=b""))) :] or bytes(8))
    return finish_checksums(_with_header(packet, upper))


def first_of_connection(packet: Packet) -> Packet:
    """Returns the packet that begins the connection `packet` belongs to, in its direction."""
    kind = _ECHO[packet.family][0]
    return replace(
        packet,
        flags=2,
        state="new",
        is_reply=False,
        original=None,
        icmp=(kind, 0),
        fragment=None,
        length=None,
        raw=b"",
        connection=None,
    )


def _upper(packet: Packet) -> bytes:
    sport = _SPORT if packet.sport is None else packet.sport
    dport = packet.dport or 0
    data = packet.payload
    if packet.proto == TCP:
        options = b"\x02\x04\x05\xb4" if packet.flags & 2 else b""
        acknowledged = 1 if packet.flags & 16 else 0
        size = (20 + len(options)) // 4 << 4
        fields = (sport, dport, SEQUENCE, acknowledged, size, packet.flags, 64240, 0, 0)
        return struct.pack("!HHIIBBHHH", *fields) + options + data
    if packet.proto in (UDP, 136):
        room = 0 if packet.length is None else packet.length - (20 if packet.family == 4 else 40)
        size = max(8 + len(data), room)
        return struct.pack("!HHHH", sport, dport, size, 0) + data
    if packet.proto == SCTP:
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 10, 10, 1)
        return struct.pack("!HHII", sport, dport, 0, 0) + chunk + data
    if packet.proto in (ICMP, ICMPV6):
        return _icmp(packet) + data
    if packet.proto == 47:
        return struct.pack("!HH", 0, 0x0800) + data
    if packet.proto == 50:
        return struct.pack("!II", 0x1000, 1) + (data or bytes(16))
    if packet.proto == 51:
        return struct.pack("!BBHII", 59, 4, 0, 0x1000, 1) + bytes(12) + data
    if packet.proto in PORTS:
        return struct.pack("!HHIII", sport, dport, 0, 0, 0) + data
    return data


def _icmp(packet: Packet) -> bytes:
    kind, code = packet.icmp
    if kind in _ERRORS[packet.family]:
        return struct.pack("!BBHI", kind, code, 0, 0) + _quoted(packet)
    if packet.family == 6 and kind in (135, 136):
        target = ipaddress.ip_address(packet.dst if kind == 135 else packet.src or "::").packed
        return struct.pack("!BBHI", kind, code, 0, 0) + target
    if packet.family == 6 and kind == 134:
        return struct.pack("!BBHBBHII", kind, code, 0, 64, 0, 1800, 0, 0)
    return struct.pack("!BBHHH", kind, code, 0, 0x1234, 1)


def _quoted(packet: Packet) -> bytes:
    """The packet that an ICMP error is about: that of `original`, else UDP back to the source."""
    src, sport, dst, dport = packet.original or (packet.dst, 40000, packet.src or "", 33434)
    about = Packet(
        family=packet.family,
        proto=UDP,
        src=src,
        sport=sport or 40000,
        dst=dst,
        dport=dport or 33434,
    )
    return finish_checksums(_with_header(about, _upper(about)))


def _with_header(packet: Packet, upper: bytes) -> bytes:
    src = ipaddress.ip_address(packet.src or "").packed
    dst = ipaddress.ip_address(packet.dst).packed
    offset, more = packet.fragment or (0, False)
    if packet.family == 4:
        flags = (0x4000 if packet.no_fragment else 0) | (0x2000 if more else 0) | offset // 8
        size = 20 + len(upper)
        fields = (0x45, packet.tos, size, packet.ident, flags, packet.ttl, packet.proto, 0)
        return struct.pack("!BBHHHBBH", *fields) + src + dst + upper
    following = packet.proto
    if packet.fragment is not None:
        upper = struct.pack("!BBHI", packet.proto, 0, offset | int(more), packet.ident) + upper
        following = _FRAGMENT
    first = 6 << 28 | packet.tos << 20
    return struct.pack("!IHBB", first, len(upper), following, packet.ttl) + src + dst + upper
