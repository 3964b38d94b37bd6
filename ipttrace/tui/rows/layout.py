# SPDX-License-Identifier: GPL-2.0-only
"""Which columns fit a width, and how wide each is; a row and the titles in them.

Pure: no Textual, no colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.tui.cells import Cell, fit
from ipttrace.tui.rows.columns import COLUMNS, Column
from ipttrace.tui.rows.row_cells import Context

GAP: Final = 1  # cells between two columns


@dataclass(frozen=True, slots=True)
class Placed:
    """A column and its width in cells."""

    column: Column
    width: int

    @property
    def title(self) -> str:
        """The title for this width."""
        return self.column.titles.get(self.width, self.column.title)


# The columns that are always shown (together 79 cells) with their least widths.
_LEAST: Final = {
    "rail": 1,
    "time": 9,
    "proto": 5,
    "endpoints": 28,
    "table": 6,
    "chain": 11,
    "rulenum": 4,
    "verdict": 8,
}
_HOST: Final = 6  # the least width of the host, if there are several
_NARROWEST: Final = 15  # source and destination are useless in fewer cells
# What further room is spent on, in this order: a column's new width.  Ends at the first
# step that does not fit.
_STEPS: Final = (
    ("cost", 6),
    ("host", 9),
    ("time", 12),
    ("devices", 9),
    ("endpoints", 37),
    ("netns", 7),
    ("proto", 11),
    ("endpoints", 45),
    ("process", 15),
    ("netns", 10),
    ("rulenum", 6),
    ("devices", 13),
    ("table", 8),
    ("time", 15),
    ("rule", 30),
    ("chain", 18),
    ("netns", 12),
    ("devices", 19),
    ("host", 16),
    ("process", 22),
    ("endpoints", 61),
    ("rule", 60),
    ("chain", 28),
    ("endpoints", 97),
)
# nftables' tables need their family to differ from legacy ones: the very first step.
_FAMILY_STEP: Final = ("table", 9)
_NOT_NETLINK: Final = ("process", "cost")  # columns that rows from netlink leave empty


def choose(width: int, hosts: bool = False, engine: str = "kernel") -> tuple[Placed, ...]:
    """Returns the columns for a list of `width` cells, from left to right.

    `hosts`: whether there are several; `engine`: kernel, netlink or kernel+netlink.
    Below the least width the addresses shrink, then protocol, time and table are
    left out; if that is still too wide, the caller cuts it off at the right edge.
    """

    def total(sizes: Mapping[str, int]) -> int:
        return sum(sizes.values()) + GAP * (len(sizes) - 1)

    sizes = {**_LEAST, "host": _HOST} if hosts else dict(_LEAST)
    for key, size in (_FAMILY_STEP, *_STEPS) if "netlink" in engine else _STEPS:
        if (key == "host" and not hosts) or (key in _NOT_NETLINK and engine == "netlink"):
            continue
        wider = {**sizes, key: max(size, sizes.get(key, 0))}
        if total(wider) > width:
            break
        sizes = wider
    for key in ("proto", "time", "table"):
        if total(sizes) - sizes["endpoints"] + _NARROWEST > width:
            del sizes[key]
    spare = width - total(sizes)
    sizes["endpoints"] = min(97, max(9, sizes["endpoints"] + spare))
    return tuple(Placed(column, sizes[column.key]) for column in COLUMNS if column.key in sizes)


def cells(row: Row, columns: tuple[Placed, ...], context: Context) -> list[Cell]:
    """Returns a cell per column; the texts, each with its gap, fill `width_of(columns)`."""
    drawn: list[Cell] = []
    last = columns[-1]
    for placed in columns:
        text, role = placed.column.draw(row, placed.width, context)
        gap = "" if placed is last else " " * GAP
        drawn.append((fit(text, placed.width, placed.column.right) + gap, role))
    return drawn


def width_of(columns: tuple[Placed, ...]) -> int:
    """The cells that a row fills."""
    return sum(placed.width + GAP for placed in columns) - GAP


def titles(columns: tuple[Placed, ...]) -> str:
    """Returns the line of titles above `columns`."""
    return "".join(
        fit(placed.title, placed.width, placed.column.right) + " " * GAP for placed in columns
    )


_KEYS: Final = {column.key for column in COLUMNS}
assert set(_LEAST) <= _KEYS
assert {key for key, _ in _STEPS} <= _KEYS
