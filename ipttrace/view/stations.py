# SPDX-License-Identifier: GPL-2.0-only
"""Stations as text for a terminal: what happened to a packet outside the tables.

Must not do I/O.
"""

from __future__ import annotations

from typing import Final

from ipttrace.stream import record
from ipttrace.text import escape
from ipttrace.trace.drops import explain
from ipttrace.trace.row import Row

RED: Final = "\x1b[31m"
OF_TABLES: Final = frozenset({"TABLE", "CHAIN", "RULE", "MATCH", "VERDICT", "COST"})
"""Titles of the columns in which stations have nothing."""
_RESET: Final = "\x1b[0m"
STATIONS: Final = frozenset(station.upper() for station in record.STATIONS if station)
"""What stands in the place of a verdict."""
DROPPED: Final = record.STATIONS[record.DROPPED].upper()


def outcome(row: Row) -> str | None:
    """Returns the verdict, or what a station was: DROPPED."""
    return row.verdict if row.station is None else row.station.upper()


def reason_and_place(row: Row) -> str:
    """Returns `IP_RPFILTER at ip_rcv_finish_core+0x1d2`, as far as it is known."""
    words = [escape(row.reason)] if row.reason else []
    if row.drop and row.place:
        words.append(f"at {escape(row.place)}")
    return " ".join(words)


def station_text(row: Row, netns: str | None, *, colour: bool) -> str:
    """Returns reason and place, and the sentence: the end of a station's line.

    `netns`: the name of its namespace.
    """
    sentence = escape(explain(row, netns))
    text = reason_and_place(row)
    if not text:
        return sentence
    return f"{RED}{text}{_RESET}  {sentence}" if colour else f"{text}  {sentence}"
