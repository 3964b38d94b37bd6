# SPDX-License-Identifier: GPL-2.0-only
"""Fragments as bytes, for the wires of tests/lab/wire.py.

Must not make a namespace nor check rows.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_UDP: Final = 17
_FRAGMENT: Final = 44
_MORE: Final = 0x2000


def datagram(size: int, port: int = 9) -> bytes:
    """A UDP datagram of `size` bytes, header included; over IPv6 the kernel wants a checksum."""
    return struct.pack("!HHHH", 4000, port, size, 0) + bytes(size - 8)


def piece4(
    number: int,
    payload: bytes,
    start: int,
    end: int,
    *,
    destination: str = "10.9.0.9",
    source: str = "10.5.0.5",
    protocol: int = _UDP,
) -> bytes:
    """The fragment with bytes `start` to `end` of an IPv4 packet's payload."""
    data = payload[start:end]
    word = start // 8 | (_MORE if end < len(payload) else 0)
    fields = (0x45, 0, 20 + len(data), number, word, 64, protocol)
    head = struct.pack("!BBHHHBB", *fields)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!9H", head + ends))
    total = (total & 0xFFFF) + (total >> 16)
    return head + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + ends + data


def piece6(
    number: int,
    payload: bytes,
    start: int,
    end: int,
    *,
    destination: str = "fd09::9",
    source: str = "fd05::5",
    protocol: int = _UDP,
) -> bytes:
    """The same of an IPv6 packet."""
    data = payload[start:end]
    ends = b"".join(socket.inet_pton(socket.AF_INET6, one) for one in (source, destination))
    head = struct.pack("!IHBB", 6 << 28, 8 + len(data), _FRAGMENT, 64)
    return (
        head + ends + struct.pack("!BBHI", protocol, 0, start | (end < len(payload)), number) + data
    )
