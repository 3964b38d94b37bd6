# SPDX-License-Identifier: GPL-2.0-only
"""What the field-by-field decoders share: a bounded reader, layers and names of numbers.

Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final


class TooShort(Exception):
    """The captured bytes end before the requested ones."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The captured bytes of a header and what follows it, big-endian.

    `length`: the number of bytes before the capture cut them, from the enclosing
    header.  Reading past the captured bytes raises TooShort.
    """

    data: bytes
    length: int

    def raw(self, at: int, size: int) -> bytes:
        if at < 0 or size < 0 or at + size > len(self.data):
            raise TooShort
        return self.data[at : at + size]

    def u8(self, at: int) -> int:
        return self.raw(at, 1)[0]

    def u16(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 2), "big")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 4), "big")

    def u64(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 8), "big")


Put = Callable[[str, object], None]
"""Adds a field: its name and value."""

NETWORK: Final = "network"  # IPv4 or IPv6, by its first four bits
PROTO: Final = "proto"  # an IP protocol
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class Next:
    """What follows a header, from byte `at` to `end` of it."""

    kind: str
    at: int
    end: int | None = None  # None: all remaining bytes
    number: int = 0  # the IP protocol
    ports: tuple[int, int] | None = None  # of the payload's transport protocol
    inside: bool = False  # a packet within this one: tunnelled or quoted


Decode = Callable[[Reader, Put], Next | None]
"""Adds the fields of a header and returns what follows; raises TooShort or ValueError."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One header, field by field; all text is clean."""

    name: str
    fields: tuple[tuple[str, str], ...]
    note: str = ""  # what is wrong with it
    depth: int = 0  # number of packets around its own


def named(names: Mapping[int, str], number: int) -> str:
    """Returns ``Echo request (8)``; the number alone if it has no name."""
    name = names.get(number)
    return f"{name} ({number})" if name else str(number)


def bits(names: tuple[tuple[int, str], ...], value: int) -> str:
    """Returns the names of the bits that are set; "-" if there are none."""
    return ",".join(name for bit, name in names if value & bit) or "-"


def options(reader: Reader, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the options of an IPv4 or TCP header: kind, offset and size of the value.

    Skips padding (kind 1), ends at kind 0.  Raises ValueError if a length is invalid.
    """
    while at < end:
        kind = reader.u8(at)
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        size = reader.u8(at + 1)
        if size < 2 or at + size > end:
            raise ValueError(f"invalid length of option {kind}: {size} bytes")
        yield kind, at + 2, size - 2
        at += size
