# SPDX-License-Identifier: GPL-2.0-only
"""What values in a query stand for: numbers with units, times, addresses.

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

Interval = tuple[int, int]  # both ends belong to it


def number(value: Value, units: dict[str, int], text: str | None = None, at: int = 0) -> int:
    """A whole number, or one with one of `units`.  Raises QueryError."""
    text = value.text if text is None else text
    found = _NUMBER.fullmatch(text)
    if not found:
        like = f", as 250{next(iter(units))}" if units else ", as 80 or 0x50"
        raise value.wrong(f"not a number{like}", *_place(value, at, len(text)))
    digits, unit = found.groups()
    if unit and unit.lower() not in units:
        known = f"units here: {' '.join(units)}" if units else "no unit is known here"
        raise value.wrong(f"the unit is unknown; {known}", *_place(value, at + len(digits), 0))
    scale = units[unit.lower()] if unit else 1
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16) * scale
    exact = Fraction(digits) * scale
    if exact.denominator != 1 and not units:
        raise value.wrong("not a whole number", *_place(value, at, len(digits)))
    return round(exact)


def _place(value: Value, at: int, length: int) -> tuple[int, int | None]:
    # Escapes in quoted texts move what follows: then the whole value is meant.
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
        raise value.wrong(f"the range goes backwards: write {found[2]}-{found[1]}")
    return low, high


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses of one family whose bits under `mask` are those of `want` (4 or 16 bytes)."""

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
        raise value.wrong("not an address or network, as 10.0.0.0/8 or 2001:db8::1") from None
    return Network(net.version, net.network_address.packed, net.netmask.packed)


def mac(value: Value) -> bytes:
    """One to six bytes of a hardware address, from its beginning.  Raises QueryError."""
    parts = re.split("[:-]", value.text)
    if len(parts) > 6 or not all(re.fullmatch("[0-9a-fA-F]{2}", part) for part in parts):
        raise value.wrong("not a hardware address, as 52:54:00:00:00:01, or its beginning")
    return bytes(int(part, 16) for part in parts)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time as written: `span` ns long from where it begins.

    `base`: what `ns` is counted from: epoch, newest (the newest row), day (the
    day of the newest row, in the zone that times are shown in).
    """

    base: str
    ns: int
    span: int

    def begin(self, newest: int, utc: bool) -> int:
        """ns since the epoch."""
        if self.base == "epoch":
            return self.ns
        if self.base == "newest":
            return newest + self.ns
        begin = _midnight(newest, utc, 0) + self.ns
        # Just after midnight, an evening hour is that of yesterday.
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
        # A clock that lies about the year: any day will do.
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
    """A time: of day, with a date, or relative to the newest row.  Raises QueryError.

    Dates without a zone are local, or UTC with `utc`.
    """
    if found := _AGO.fullmatch(value.text):
        scale = _AGO_UNITS[found[2] or "s"]
        return Moment("newest", -round(Fraction(found[1]) * scale), 1)
    found = _TIME.fullmatch(value.text)
    if not found:
        raise value.wrong("not a time, as 12:30:05, 2026-11-21T12:30 or -30s")
    year, month, day = found.group(1, 2, 3)
    dated = found.group(4, 5, 6, 7) if year else found.group(8, 9, 10, 11)
    hour, minute, second, fraction = dated
    span = 86400 * SECOND if hour is None else 60 * SECOND if second is None else SECOND
    ns = int((fraction or "0").ljust(9, "0"))
    if fraction:
        span = 10 ** (9 - len(fraction))
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        raise value.wrong("no such time of day")
    if not year:
        if found[12]:
            raise value.wrong("a zone needs a date too, as 2026-11-21T12:30Z")
        of_day = (int(hour) * 60 + int(minute)) * 60 + int(second or 0)
        return Moment("day", of_day * SECOND + ns, span)
    zone = found[12] or ("Z" if utc else "")
    iso = f"{year}-{month}-{day}T{int(hour or 0):02d}:{minute or '00'}:{second or '00'}"
    try:
        at = datetime.fromisoformat(iso + zone.upper())
        return Moment("epoch", int(at.timestamp()) * SECOND + ns, span)
    except (ValueError, OverflowError, OSError):
        raise value.wrong("no such date") from None
