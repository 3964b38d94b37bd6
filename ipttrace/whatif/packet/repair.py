# SPDX-License-Identifier: GPL-2.0-only
"""Packets of which only the first bytes are known, made whole again; checksums.

Must not do I/O.
"""

from __future__ import annotations

import struct
from typing import Final

from ipttrace.checksums import checksum
from ipttrace.whatif.errors import WhatIfError

_TCP, _UDP, _ICMP, _ICMPV6, _SCTP = 6, 17, 1, 58, 132
MISSING: Final = "the recording does not have all headers of this packet"
_EXTENSIONS: Final = (0, 43, 60)  # hop-by-hop, routing, destination options
_FRAGMENT: Final = 44
_LEAST: Final = {_TCP: 20, _UDP: 8, _ICMP: 8, _ICMPV6: 8, _SCTP: 12}
_ERRORS: Final = {_ICMP: (3, 4, 5, 11, 12), _ICMPV6: (1, 2, 3, 4)}
_CHECKSUM_AT: Final = {_TCP: 16, _UDP: 6, _ICMP: 2, _ICMPV6: 2}


def whole(data: bytes) -> tuple[bytes, int]:
    """Returns an IP packet in its full length, and how many bytes were not known.

    Those are zero, and then its checksums are made anew.  Raises WhatIfError.
    """
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        head = (data[0] & 15) * 4
        length = struct.unpack_from("!H", data, 2)[0]
    elif version == 6 and len(data) >= 40:
        head = 40
        length = 40 + struct.unpack_from("!H", data, 4)[0]
    else:
        raise WhatIfError("these bytes are not an IP packet")
    if head < 20 or length < head:
        raise WhatIfError("the length in the packet's header is wrong")
    missing = length - len(data)
    if missing <= 0:
        return data[:length], 0
    return finish_checksums(data + bytes(missing)), missing


def check_headers(known: bytes, data: bytes) -> None:
    """Raises WhatIfError if `known`, the first bytes of `data`, ends within its headers."""
    proto, at, complete = upper_layer(data)
    needed = at + (_LEAST.get(proto, 4) if complete else 0)
    error = proto in (_ICMP, _ICMPV6) and len(known) > at and known[at] in _ERRORS[proto]
    if error:
        needed = at + 8 + (28 if proto == _ICMP else 48)  # with those of the packet it is about
    if len(known) < needed or proto == 0 or (data[0] >> 4 == 6 and len(known) < 48):
        raise WhatIfError(MISSING)


def upper_layer(data: bytes) -> tuple[int, int, bool]:
    """Returns protocol and offset of what follows the IP headers, and whether it is complete.

    A later fragment has no header there; the offset may lie behind the end.
    """
    if data[0] >> 4 == 4:
        fragment = struct.unpack_from("!H", data, 6)[0]
        return data[9], (data[0] & 15) * 4, not fragment & 0x3FFF
    proto, at, complete = data[6], 40, True
    while at + 8 <= len(data):
        if proto in _EXTENSIONS:
            proto, at = data[at], at + 8 + 8 * data[at + 1]
        elif proto == _FRAGMENT:
            complete = not struct.unpack_from("!H", data, at + 2)[0] & 0xFFF9
            proto, at = data[at], at + 8
        else:
            break
    return proto, at, complete


def finish_checksums(data: bytes) -> bytes:
    """Returns an IP packet with the checksums of its headers made anew."""
    packet = bytearray(data)
    if packet[0] >> 4 == 4:
        head = (packet[0] & 15) * 4
        packet[10:12] = bytes(2)
        packet[10:12] = struct.pack("!H", checksum(bytes(packet[:head])))
        ends = bytes(packet[12:20])
    else:
        ends = bytes(packet[8:40])
    proto, at, complete = upper_layer(bytes(packet))
    place = _CHECKSUM_AT.get(proto)
    if not complete:
        return bytes(packet)
    if proto == _SCTP and len(packet) >= at + 12:
        packet[at + 8 : at + 12] = bytes(4)
        packet[at + 8 : at + 12] = struct.pack("<I", _crc32c(bytes(packet[at:])))
    if place is None or len(packet) < at + place + 2:
        return bytes(packet)
    packet[at + place : at + place + 2] = bytes(2)
    size = len(packet) - at
    pseudo = b"" if proto == _ICMP else ends + struct.pack("!HH", proto, size)
    value = checksum(pseudo + bytes(packet[at:]))
    # RFC 768: 0 means that there is no checksum.
    packet[at + place : at + place + 2] = struct.pack(
        "!H", value or (0xFFFF if proto == _UDP else 0)
    )
    return bytes(packet)


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
