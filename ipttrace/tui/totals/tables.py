# SPDX-License-Identifier: GPL-2.0-only
"""The counters of the totals view: of each table at each hook, and of each protocol.

Must not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Final, TypeVar

from ipttrace.netfilter import HOOKS
from ipttrace.trace.rules import table_name
from ipttrace.trace.store import Names
from ipttrace.trace.tally.totals import HookTotals, Protocol, TotalsTally
from ipttrace.tui.cells import Cells, cell_len, column, title
from ipttrace.tui.widgets import figures

T = TypeVar("T")

# From left to right: width, and whether it is text.
_PLACES: Final = {
    "hook": (13, True),
    "table": (12, True),
    "rows": (7, False),
    "drops": (6, False),
    "p50": (6, False),
    "p99": (6, False),
}
_PROTOCOLS: Final = {
    "protocol": (13, True),
    "rows": (7, False),
    "drops": (7, False),
    "packets": (7, False),
    "bytes": (7, False),
}
TEXTS: Final = ("hook", "table", "protocol")
"""Orders that begin with the smallest value."""
ORDERS: Final = frozenset((*_PLACES, *_PROTOCOLS))
_FAMILIES: Final = {4: "", 6: "6 ", 3: "ARP ", 7: "bridge "}


@dataclass(frozen=True, slots=True)
class Order:
    """The order of the lines: a column of either table; a table without it keeps its own.

    `mark` is beside the title of the column.
    """

    name: str
    reversed: bool = False
    mark: str = ""

    def sort(self, lines: list[T], values: Mapping[str, Callable[[T], Any]], own: str) -> list[T]:
        """Sorts by the value of that name; equal ones, and a table without it, by `own`.

        Values that are unknown (NaN) come last.
        """
        lines = sorted(lines, key=values[own])
        if (value := values.get(self.name)) is None:
            return lines
        falling = (self.name not in TEXTS) != self.reversed
        known = [one for one in lines if not _is_nan(value(one))]
        rest = [one for one in lines if _is_nan(value(one))]
        return [*sorted(known, key=value, reverse=falling), *rest]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and isnan(value)


def _titles(columns: Mapping[str, tuple[int, bool]], order: Order) -> Cells:
    return [
        title(name, width, order.mark if name == order.name else "", not is_text)
        for name, (width, is_text) in columns.items()
    ]


def _hook(one: HookTotals) -> tuple[int, int]:
    return one.family, HOOKS.index(one.hook) if one.hook in HOOKS else len(HOOKS)


_PLACE_VALUES: Final[Mapping[str, Callable[[HookTotals], Any]]] = {
    "hook": _hook,
    # What a place has at first: places with equal counts by name, since counting leaves no order.
    "own": lambda one: (*_hook(one), -one.rows, one.table, one.tables),
    "table": lambda one: table_name(one.tables, one.table),
    "rows": lambda one: one.rows,
    "drops": lambda one: one.drops,
    "p50": lambda one: one.p50_ns,
    "p99": lambda one: one.p99_ns,
}
_PROTOCOL_VALUES: Final[Mapping[str, Callable[[Protocol], Any]]] = {
    "protocol": lambda one: one.proto,
    "own": lambda one: (-one.rows, one.proto),
    "rows": lambda one: one.rows,
    "drops": lambda one: one.drops,
    "packets": lambda one: one.packets,
    "bytes": lambda one: one.bytes,
}


def places(tally: TotalsTally, names: Names, order: Order) -> list[Cells]:
    """Titles, and a line for each table at each hook."""
    lines = [_titles(_PLACES, order)]
    for place in order.sort(tally.hooks(names), _PLACE_VALUES, "own"):
        family = _FAMILIES.get(place.family, f"{place.family} ")
        texts = (
            (family + (place.hook or "?"), "text"),
            (table_name(place.tables, place.table), "text"),
            (figures.count(place.rows), "value"),
            (figures.count(place.drops) if place.drops else "", "drop"),
            (figures.cost(place.p50_ns), "dim"),
            (figures.cost(place.p99_ns), "dim"),
        )
        lines.append(_line(_PLACES, texts))
    return lines


def protocols(tally: TotalsTally, order: Order) -> list[Cells]:
    """Titles, and a line for each protocol."""
    lines = [_titles(_PROTOCOLS, order)]
    for one in order.sort(tally.protocols(), _PROTOCOL_VALUES, "own"):
        texts = (
            (one.proto or "(unreadable)", "text"),
            (figures.count(one.rows), "value"),
            (figures.count(one.drops) if one.drops else "", "drop"),
            (figures.count(one.packets), "value"),
            (figures.count(one.bytes), "value"),
        )
        lines.append(_line(_PROTOCOLS, texts))
    return lines


def _line(columns: Mapping[str, tuple[int, bool]], texts: Sequence[tuple[str, str]]) -> Cells:
    return [
        column(text, width, role, right=not is_text)
        for (width, is_text), (text, role) in zip(columns.values(), texts, strict=True)
    ]


def clicked(line: Cells, x: int) -> str:
    """The order that a click on cell `x` of a line asks for; "": it is on no title."""
    for text, role in line:
        width = cell_len(text)
        if x < width:
            name = text.strip(" ▾▴")
            return name if role in ("titles", "table") and name in ORDERS else ""
        x -= width
    return ""
