# SPDX-License-Identifier: GPL-2.0-only
"""The values that a rule's conditions take: addresses, ports, users, names.

Each is read to ranges of whole numbers, both ends included.  Must not read files but the list of
users.
"""

from __future__ import annotations

import ipaddress
import pwd
import re
from typing import Final

from ipttrace.guard.layout import COMM

Ranges = tuple[tuple[int, int], ...]

_MAPPED: Final = 0xFFFF << 32  # ::ffff:0:0/96, where addresses of IPv4 are
_PORT: Final = (1 << 16) - 1
_UID: Final = (1 << 32) - 2  # the last number is "no user"
_CONTAINER: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.:@-]{3,127}")


def address(text: str) -> Ranges:
    """One address, a network (192.0.2.0/24), a range (192.0.2.1-192.0.2.9), or `any`.

    As numbers of 128 bits, IPv4 mapped into IPv6.  Raises ValueError.
    """
    if text == "any":
        return ((0, (1 << 128) - 1),)
    first, dash, last = text.partition("-")
    try:
        if dash:
            begin, end = (ipaddress.ip_address(one) for one in (first, last))
            if begin.version != end.version or int(begin) > int(end):
                raise ValueError
            offset = _offset(begin.version)
            return ((int(begin) + offset, int(end) + offset),)
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is no address: write 192.0.2.7, 192.0.2.0/24 or 2001:db8::1") from None
    offset = _offset(network.version)
    return ((int(network[0]) + offset, int(network[-1]) + offset),)


def _offset(version: int) -> int:
    return _MAPPED if version == 4 else 0


def number_of(text: str) -> int:
    """An address as a number of 128 bits.  Raises ValueError."""
    found = ipaddress.ip_address(text)
    return int(found) + _offset(found.version)


def text_of(number: int) -> str:
    """The address of that number, as people write it."""
    if number >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return str(ipaddress.IPv6Address(number))


def port(text: str) -> Ranges:
    """A port, or a range (8000-8080).  Raises ValueError."""
    return _numbers(text, 0, _PORT, "is no port: write a number up to 65535, or 8000-8080")


def user(text: str) -> Ranges:
    """A user by number or name, or a range of numbers.  Raises ValueError."""
    if not text[:1].isdigit():
        try:
            uid = pwd.getpwnam(text).pw_uid
        except KeyError:
            raise ValueError("is no user of this host") from None
        return ((uid, uid),)
    return _numbers(text, 0, _UID, "is no user: write a name, a number, or 1000-1999")


def _numbers(text: str, least: int, most: int, wrong: str) -> Ranges:
    match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text, re.ASCII)
    if not match:
        raise ValueError(wrong)
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if not least <= first <= last <= most:
        raise ValueError(wrong)
    return ((first, last),)


def comm(text: str) -> Ranges:
    """A process's name, as the kernel has it: 15 bytes.  Raises ValueError."""
    name = text.encode()
    if not 0 < len(name) < COMM or b"\0" in name:
        raise ValueError(f"is no name of a process: the kernel keeps at most {COMM - 1} bytes")
    number = int.from_bytes(name.ljust(COMM, b"\0"), "big")
    return ((number, number),)


def container(text: str) -> str:
    """How a container's id, a pod's uid or a unit's name begins.  Raises ValueError."""
    if not _CONTAINER.fullmatch(text):
        raise ValueError("is no container: write four characters or more of its id")
    return text
