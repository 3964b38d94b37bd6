# SPDX-License-Identifier: GPL-2.0-only
"""What the decoders of single headers share: bytes that end somewhere, and layers.

Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final


class Short(Exception):
    """The bytes that were captured end before what is asked for."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The captured bytes of one header and what follows; big-endian.

    `whole`: how many there were before the capture cut them, as the header
    around says.  Reading past the end raises Short.
    """

    data: bytes
    whole: int

    def raw(self, at: int, size: int) -> bytes:
        if at < 0 or size < 0 or at + size > len(self.data):
            raise Short
        return self.data[at : at + size]

    def u8(self, at: int) -> int:
        return self.raw(at, 1)[0]

    def u16(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 2), "big")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 4), "big")

    def u64(self, at: int) -> int:
        return int.from_bytes(self.raw(at, 8), "big")


# Takes a field's name and its value.
Put = Callable[[str, object], None]

NETWORK: Final = "network"  # IPv4 or IPv6, as the first bits say
PROTO: Final = "proto"  # an IP protocol
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class Next:
    """What follows a header: from `at` to `end`, counted from the header's start."""

    kind: str
    at: int
    end: int | None = None  # None: to the end of the header's own bytes
    number: int = 0  # the IP protocol
    ports: tuple[int, int] | None = None  # of what carries data
    inside: bool = False  # a packet inside of this one: a tunnel's, or quoted


Decode = Callable[[Reader, Put], Next | None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One header, field by field; all text is safe for a terminal."""

    name: str
    fields: tuple[tuple[str, str], ...]
    note: str = ""  # what is wrong with it
    depth: int = 0  # packets around the one that it belongs to


def named(names: Mapping[int, str], number: int) -> str:
    """``Echo request (8)``; the number alone where it has no name."""
    name = names.get(number)
    return f"{name} ({number})" if name else str(number)


def bits(names: tuple[tuple[int, str], ...], value: int) -> str:
    """The names of the bits that are set; "-" for none."""
    return ",".join(name for bit, name in names if value & bit) or "-"
