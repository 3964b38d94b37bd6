# SPDX-License-Identifier: GPL-2.0-only
"""One value of a row as text: times, numbers, costs and paths.  Must not do I/O."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

from ipttrace.trace.row import Step

SECOND: Final = 1_000_000_000  # ns


@lru_cache(maxsize=256)
def utc_second(second: int) -> str | None:
    """Returns s since the epoch as in `rfc3339`, without fractions and zone."""
    try:
        at = time.gmtime(second)
    except (OverflowError, ValueError, OSError):
        return None
    if not 0 <= at.tm_year <= 9999:
        return None
    return f"{at.tm_year:04d}" + time.strftime("-%m-%dT%H:%M:%S", at)


def rfc3339(nanoseconds: int) -> str | None:
    """Returns ns since the epoch as `2026-11-21T01:02:03.123456789Z` (RFC 3339).

    None if the year does not have four digits: RFC 3339 cannot express it.
    """
    second, rest = divmod(nanoseconds, SECOND)
    text = utc_second(second)
    return None if text is None else f"{text}.{rest:09d}Z"


def number(value: int | None) -> str:
    """Returns a number; "" for None."""
    return "" if value is None else str(value)


def yes(value: bool | None) -> str:
    """Returns yes or no, as queries have it; "" for None."""
    return "" if value is None else ("no", "yes")[value]


def hexadecimal(value: int | None) -> str:
    """Returns a number as `0x1f`; "" for None."""
    return "" if value is None else f"{value:#x}"


def trace_id(value: int | None) -> str:
    """Returns a packet's number as `nft monitor trace` shows it, `0000001f`; "" for None."""
    return "" if value is None else f"{value:08x}"


@lru_cache(maxsize=256)
def clock_second(second: int, utc: bool) -> str:
    """Returns s since the epoch as in `clock`, without fractions."""
    try:
        at = time.gmtime(second) if utc else time.localtime(second)
    except (OverflowError, ValueError, OSError):
        return "??:??:??"
    return time.strftime("%H:%M:%S", at)


def clock(nanoseconds: int, utc: bool = False) -> str:
    """Returns ns since the epoch as `HH:MM:SS.µµµµµµ`, in local time unless `utc`."""
    second, rest = divmod(nanoseconds, SECOND)
    return f"{clock_second(second, utc)}.{rest // 1000:06d}"


def duration(nanoseconds: int | None) -> str:
    """Returns a cost with three digits and a unit: `850 ns`, `12.3 µs`; `-` for None."""
    if nanoseconds is None:
        return "-"
    if nanoseconds < 1_000:
        return f"{nanoseconds} ns"
    for unit, size in (("µs", 1_000), ("ms", 1_000_000)):
        # 999.5 would round to a fourth digit: it gets the next unit.
        if nanoseconds < size * 999.5:
            value = nanoseconds / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{nanoseconds / SECOND:.3g} s"


def joined_path(path: tuple[Step, ...]) -> str:
    """Returns CSV's path, `FORWARD:2>DOCKER:3/return`: `/match` follows unless it is `rule`.

    An unknown number is empty.
    """
    return ">".join(
        [
            f"{step.chain}:{step.rulenum or ''}"
            + ("" if step.match == "rule" else f"/{step.match}")
            for step in path
        ]
    )


def path_text(path: tuple[Step, ...], partial: bool) -> str:
    """Returns `FORWARD:2 → DOCKER:1 return`: each hit, its match unless that is `rule`.

    `partial`: rule records were lost, which is appended.
    """
    steps = [
        f"{step.chain}:{step.rulenum or '?'}" + ("" if step.match == "rule" else f" {step.match}")
        for step in path
    ]
    return " → ".join(steps) + (" (records lost)" if partial else "")
