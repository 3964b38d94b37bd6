# SPDX-License-Identifier: GPL-2.0-only
"""Which columns fit a width, and how wide each is; a row and the titles in them.

Pure: no Textual, no colours.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.trace.store import traces_nftables
from ipttrace.tui.cells import Cell, fit
from ipttrace.tui.rows.columns import COLUMNS, Column
from ipttrace.tui.rows.row_cells import Context

GAP: Final = 1  # cells between two columns

Wanted = Sequence[tuple[str, int | None]]
"""Columns by key, from left to right, each with its width (None: what there is room for)."""


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
_NETNS: Final = 6  # the least width of the namespace, if there are several
_DEVICES: Final = 9  # the least width of the devices
_TABLE: Final = 24  # the most that a table's name is given
_CHAIN: Final = 28  # and a chain's
_ENDPOINTS: Final = 45  # two IPv4 addresses with ports; IPv6 needs more
_NARROWEST: Final = 15  # source and destination are useless in fewer cells
# What further room is spent on, in this order: a column's new width.  Ends at the first
# step that does not fit.
_STEPS: Final = (
    ("cost", 6),
    ("host", 9),
    ("time", 12),
    ("devices", _DEVICES),
    ("endpoints", 37),
    ("netns", 7),
    ("proto", 11),
    ("endpoints", 45),
    ("table", _TABLE),
    ("process", 15),
    ("rule", 24),
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
# The least widths of columns that the user has chosen, and which of them go first.
_SMALLEST: Final = {
    **_LEAST,
    "host": _HOST,
    "netns": _NETNS,
    "process": 8,
    "devices": _DEVICES,
    "cost": 6,
    "rule": 12,
}
# The addresses shrink before the time does.
_LEAVING: Final = (
    *("process", "devices", "cost", "proto", "rule", "host", "endpoints"),
    *("time", "table", "netns", "rail", "chain", "rulenum"),
)


def choose(
    width: int,
    hosts: bool = False,
    engine: str = "kernel",
    netns: bool = False,
    needs: Mapping[str, int] | None = None,
    wanted: Wanted = (),
) -> tuple[Placed, ...]:
    """Returns the columns for a list of `width` cells, from left to right.

    `hosts`, `netns`: whether there are several; `engine`: kernel, netlink or
    kernel+netlink; `needs`: cells of the longest text so far in the columns table,
    chain, devices and endpoints, which get no more than that (None: unknown).  Below the least
    width the addresses shrink, then protocol, time, table and namespace are left out;
    if that is still too wide, the caller cuts it off at the right edge.

    `wanted`: the user's columns in their order.  They get their least widths first, and
    those that fit less well are left out, see `_LEAVING`.
    """
    vain = {"host"} - {"host" if hosts else ""}
    if engine == "netlink":
        vain.update(_NOT_NETLINK)
    if users := [one for one in wanted if one[0] not in vain]:
        return _of_the_user(width, users, needs)
    sizes = dict(_LEAST)
    if hosts:
        sizes["host"] = _HOST
    if netns:
        sizes["netns"] = _NETNS
    steps = (_FAMILY_STEP, *_STEPS) if traces_nftables(engine) else _STEPS
    sizes = _widened(sizes, width, [step for step in steps if step[0] not in vain], needs)
    for key in ("proto", "time", "table", "netns"):
        if key in sizes and _total(sizes) - sizes["endpoints"] + _NARROWEST > width:
            del sizes[key]
    sizes = _filled(sizes, width, needs)
    return tuple(Placed(column, sizes[column.key]) for column in COLUMNS if column.key in sizes)


def _of_the_user(width: int, wanted: Wanted, needs: Mapping[str, int] | None) -> tuple[Placed, ...]:
    sizes = {key: _SMALLEST[key] if cells is None else cells for key, cells in wanted}
    free = {key for key, cells in wanted if cells is None}
    for key in _LEAVING:
        if key not in sizes or _total(sizes) <= width:
            continue
        if key == "endpoints" and key in free:
            sizes[key] = _NARROWEST
        elif len(sizes) > 1:
            del sizes[key]
    steps = [step for step in _STEPS if step[0] in sizes and step[0] in free]
    sizes = _filled(_widened(sizes, width, steps, needs), width, needs, free)
    by_key = {column.key: column for column in COLUMNS}
    return tuple(Placed(by_key[key], sizes[key]) for key, _ in wanted if key in sizes)


def _total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values()) + GAP * (len(sizes) - 1)


def _widened(
    sizes: dict[str, int],
    width: int,
    steps: Sequence[tuple[str, int]],
    needs: Mapping[str, int] | None,
) -> dict[str, int]:
    """The sizes after as many of the steps as fit."""
    most = {"endpoints": 97}
    if needs is not None:
        most["endpoints"] = needs.get("endpoints", _ENDPOINTS)
        if "devices" in needs:
            most["devices"] = max(_DEVICES, needs["devices"])
    most["table"] = 9 if needs is None else needs.get("table", 0)
    for key, size in steps:
        wider = {**sizes, key: max(min(size, most.get(key, size)), sizes.get(key, 0))}
        if _total(wider) > width:
            break
        sizes = wider
    return sizes


def _filled(
    sizes: dict[str, int],
    width: int,
    needs: Mapping[str, int] | None,
    free: Container[str] = frozenset(_SMALLEST),
) -> dict[str, int]:
    """The sizes with what is left over, of columns whose width is `free`."""
    sizes = dict(sizes)
    # What is left over: names whole, then the rule's text, else the addresses.
    for key, limit in (("table", _TABLE), ("chain", _CHAIN)):
        if key in sizes and key in free and needs is not None:
            lacking = min(limit, needs.get(key, 0)) - sizes[key]
            sizes[key] += max(0, min(lacking, width - _total(sizes)))
    spare = width - _total(sizes)
    if "rule" in sizes and "rule" in free and spare > 0:
        sizes["rule"] += spare
    elif "endpoints" in sizes and "endpoints" in free:
        sizes["endpoints"] = min(97, max(9, sizes["endpoints"] + spare))
    return sizes


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
assert set(_SMALLEST) == _KEYS
