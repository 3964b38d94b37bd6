# SPDX-License-Identifier: GPL-2.0-only
"""Parses the values in a query: numbers with units, times, addresses.

Must not know fields or columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from ipaddress import ip_address, ip_network
from typing import Final

from ipttrace.trace.query.tree import Value

SECOND: Final = 1_000_000_000
DURATIONS: Final = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": SECOND}
SIZES: Final = {"k": 1000, "m": 1000_000}

_NUMBER: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32}(?:\.[0-9]{1,18})?)([^\d.]*)")
_RANGE: Final = re.compile(r"([^-]+)-([^-]+)")

Interval = tuple[int, int]  # inclusive


def number(value: Value, units: dict[str, int], text: str | None = None, at: int = 0) -> int:
    """An integer, or a number with one of `units`; `text`: the part of `value` at `at`.

    Raises QueryError.
    """
    text = value.text if text is None else text
    found = _NUMBER.fullmatch(text)
    if not found:
        example = f"250{next(iter(units))}" if units else "80 or 0x50"
        raise value.error(f"not a number, such as {example}", *_position(value, at, len(text)))
    digits, unit = found.groups()
    if unit and unit.lower() not in units:
        known = f"use one of {' '.join(units)}" if units else "this field has no units"
        raise value.error(f"unknown unit; {known}", *_position(value, at + len(digits), 0))
    scale = units[unit.lower()] if unit else 1
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16) * scale
    exact = Fraction(digits) * scale
    if exact.denominator != 1 and not units:
        raise value.error("not an integer", *_position(value, at, len(digits)))
    return round(exact)


def _position(value: Value, at: int, length: int) -> tuple[int, int | None]:
    # In a quoted string, escapes shift positions: point at the complete value.
    return (0, None) if value.quoted else (at, length or None)


def interval(value: Value, units: dict[str, int]) -> Interval:
    """A number, or a range ``8000-8100``.  Raises QueryError."""
    found = _RANGE.fullmatch(value.text)
    if not found:
        one = number(value, units)
        return one, one
    low = number(value, units, found[1])
    high = number(value, units, found[2], found.start(2))
    if low > high:
        raise value.error(f"range is backwards; use {found[2]}-{found[1]}")
    return low, high


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses whose bits under `mask` equal `want` (4 or 16 bytes each)."""

    version: int
    want: bytes
    mask: bytes


def network(value: Value) -> Network:
    """An address or a network, IPv4 or IPv6.  Raises QueryError."""
    text = value.text
    try:
        if "%" in text:
            raise ValueError
        if "/" not in text:
            alone = ip_address(text)
            return Network(alone.version, alone.packed, b"\xff" * len(alone.packed))
        net = ip_network(text, strict=False)
    except ValueError:
        raise value.error("not an address or network, such as 10.0.0.0/8 or 2001:db8::1") from None
    return Network(net.version, net.network_address.packed, net.netmask.packed)


def mac(value: Value) -> bytes:
    """The first one to six bytes of a hardware address.  Raises QueryError."""
    parts = re.split("[:-]", value.text)
    if len(parts) > 6 or not all(re.fullmatch("[0-9a-fA-F]{2}", part) for part in parts):
        raise value.error("not a hardware address or a prefix of one, such as 52:54:00:00:00:01")
    return bytes(int(part, 16) for part in parts)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time as written in a query, with its precision."""

    base: str  # "epoch", "newest" (the newest row), or "day" (midnight of the newest row's day)
    ns: int  # since the base
    span: int  # ns that the text covers: a second for 12:30:05

    def begin(self, newest: int, utc: bool) -> int:
        """ns since the epoch."""
        if self.base == "epoch":
            return self.ns
        if self.base == "newest":
            return newest + self.ns
        begin = _midnight(newest, utc, 0) + self.ns
        # Just after midnight, an evening hour belongs to yesterday.
        if begin > newest + 12 * 3600 * SECOND:
            begin = _midnight(newest, utc, 1) + self.ns
        return begin


def _midnight(ns: int, utc: bool, days_before: int) -> int:
    try:
        at = datetime.fromtimestamp(ns // SECOND, UTC)
        at = at if utc else at.astimezone()
        day = at.replace(hour=0, minute=0, second=0, tzinfo=UTC if utc else None)
        return int((day - timedelta(days=days_before)).timestamp()) * SECOND
    except (OverflowError, ValueError, OSError):
        # An absurd clock: midnight UTC will do.
        return (ns // SECOND // 86400 - days_before) * 86400 * SECOND


_AGO: Final = re.compile(r"-([0-9]{1,12}(?:\.[0-9]{1,9})?)(ns|us|µs|μs|ms|s|min|m|h|d)?")
_AGO_UNITS: Final = DURATIONS | {
    "m": 60 * SECOND,
    "min": 60 * SECOND,
    "h": 3600 * SECOND,
    "d": 86400 * SECOND,
}
_CLOCK: Final = r"(\d\d?):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
_TIME: Final = re.compile(
    rf"(?:(\d{{4}})-(\d\d)-(\d\d)(?:[Tt ]{_CLOCK})?|{_CLOCK})(Z|z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)


def moment(value: Value, utc: bool = False) -> Moment:
    """A time of day, a date with or without a time, or a time before the newest row.

    Dates without a zone are local, or UTC with `utc`.  Raises QueryError.
    """
    if found := _AGO.fullmatch(value.text):
        scale = _AGO_UNITS[found[2] or "s"]
        return Moment("newest", -round(Fraction(found[1]) * scale), 1)
    found = _TIME.fullmatch(value.text)
    if not found:
        raise value.error("not a time, such as 12:30:05, 2026-11-21T12:30 or -30s")
    year, month, day = found.group(1, 2, 3)
    dated = found.group(4, 5, 6, 7) if year else found.group(8, 9, 10, 11)
    hour, minute, second, fraction = dated
    span = 86400 * SECOND if hour is None else 60 * SECOND if second is None else SECOND
    ns = int((fraction or "0").ljust(9, "0"))
    if fraction:
        span = 10 ** (9 - len(fraction))
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        raise value.error("no such time of day")
    if not year:
        if found[12]:
            raise value.error("a time zone needs a date, as in 2026-11-21T12:30Z")
        of_day = (int(hour) * 60 + int(minute)) * 60 + int(second or 0)
        return Moment("day", of_day * SECOND + ns, span)
    zone = found[12] or ("Z" if utc else "")
    iso = f"{year}-{month}-{day}T{int(hour or 0):02d}:{minute or '00'}:{second or '00'}"
    try:
        at = datetime.fromisoformat(iso + zone.upper())
        return Moment("epoch", int(at.timestamp()) * SECOND + ns, span)
    except (ValueError, OverflowError, OSError):
        raise value.error("no such date") from None
