# SPDX-License-Identifier: GPL-2.0-only
"""One value as text: safe, measured, cut, and a time as people read it.

What the line views share.  Rows promise clean text; this module does not
believe them, because a terminal that obeys a chain's name is the price of one
forgotten call elsewhere.  Must not import textual or do I/O.
"""

from __future__ import annotations

import time
import unicodedata
from functools import lru_cache
from typing import Final

from ipttrace.trace.row import Step

ELLIPSIS: Final = "…"
SECOND: Final = 1_000_000_000


def safe(text: str) -> str:
    """`text` without anything that a terminal, a line or a parser would obey.

    Controls, format characters (bidi, zero width), surrogates, private use,
    unassigned code points and every separator but the plain space become
    visible escapes: \\x1b, \\u202e, \\U000e0001.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Terminal columns that `text` takes: wide characters count 2, combining ones 0."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """`text` in at most `room` columns; an ellipsis says that some is missing."""
    if len(text) <= room * 4 and width(text) <= room:
        return text
    if room < 1:
        return ""
    taken: list[str] = []
    used = 1
    for char in text:
        used += _char_width(char)
        # Many combining marks on one letter take no room and endless bytes.
        if used > room or len(taken) > room * 4:
            break
        taken.append(char)
    return "".join(taken) + ELLIPSIS


@lru_cache(maxsize=256)
def _utc_second(second: int) -> str | None:
    try:
        at = time.gmtime(second)
    except (OverflowError, ValueError, OSError):
        return None
    if not 0 <= at.tm_year <= 9999:
        return None
    return f"{at.tm_year:04d}" + time.strftime("-%m-%dT%H:%M:%S", at)


def rfc3339(nanoseconds: int) -> str | None:
    """Wall clock ns since the epoch as `2026-11-21T01:02:03.123456789Z` (RFC 3339).

    None where the year does not fit four digits: no such time can be written.
    """
    second, rest = divmod(nanoseconds, SECOND)
    text = _utc_second(second)
    return None if text is None else f"{text}.{rest:09d}Z"


@lru_cache(maxsize=256)
def _clock_second(second: int, utc: bool) -> str:
    try:
        at = time.gmtime(second) if utc else time.localtime(second)
    except (OverflowError, ValueError, OSError):
        return "??:??:??"
    return time.strftime("%H:%M:%S", at)


def clock(nanoseconds: int, utc: bool = False) -> str:
    """Wall clock ns since the epoch as `HH:MM:SS.µµµµµµ`, in local time unless `utc`."""
    second, rest = divmod(nanoseconds, SECOND)
    return f"{_clock_second(second, utc)}.{rest // 1000:06d}"


def duration(nanoseconds: int | None) -> str:
    """A cost in three figures and its unit: `850 ns`, `12.3 µs`, `4.56 ms`; `-` for None."""
    if nanoseconds is None:
        return "-"
    if nanoseconds < 1_000:
        return f"{nanoseconds} ns"
    for unit, size in (("µs", 1_000), ("ms", 1_000_000)):
        # 999.5 would be rounded up to a fourth figure: it belongs to the next unit.
        if nanoseconds < size * 999.5:
            value = nanoseconds / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{nanoseconds / SECOND:.3g} s"


def joined_path(path: tuple[Step, ...]) -> str:
    """`chain:rulenum` joined by `>`: the path column of CSV; no number where none is known."""
    return ">".join([f"{step.chain}:{step.rulenum or ''}" for step in path])


def path_text(path: tuple[Step, ...], partial: bool) -> str:
    """`FORWARD:2 → DOCKER:1 return`; what is no rule says so, and so does what is incomplete."""
    steps = [
        f"{step.chain}:{step.rulenum or '?'}" + ("" if step.match == "rule" else f" {step.match}")
        for step in path
    ]
    return " → ".join(steps) + (" (records lost)" if partial else "")
