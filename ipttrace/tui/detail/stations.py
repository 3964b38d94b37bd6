# SPDX-License-Identifier: GPL-2.0-only
"""Stations in the detail: what happened between the tables, why a packet died, and where.

Pure: must not import Textual or know colours.
"""

from __future__ import annotations

from ipttrace.trace.drops import explain, neighbour, route
from ipttrace.trace.row import Row
from ipttrace.tui.cells import Cells, cut
from ipttrace.tui.detail.wrap import Line, wrap

_INDENT = 2


def told(row: Row, netns: str | None) -> str:
    """A station in one line of the journey.  `netns`: the name of its namespace."""
    return f"dropped: {_name(row)}" if row.drop else explain(row, netns)


def cause(row: Row, width: int, netns: str | None) -> list[Line]:
    """Why a packet whose last row this is was dropped outside the tables; nothing if it was not."""
    if row.station is None or not row.drop:
        return []
    items: list[Cells] = [
        [("Dropped", "section")],
        [("reason ", "name"), (row.reason or "unknown", "bad")],
        [("place ", "name"), (row.place or "unknown", "value")],
    ]
    for name, text in (("route", route(row.aside)), ("neighbour", neighbour(row.aside))):
        if text:
            items.append([(f"{name} ", "name"), (text, "value")])
    made = wrap(items, width, _INDENT)
    return made + wrap([[("  ", "value"), (explain(row, netns), "changed")]], width, _INDENT)


def end(last: Row | None, width: int) -> list[Line]:
    """What became of the packet, below its last line; nothing if that is not known."""
    if last is None:
        return []
    if last.drop and last.station is None:
        by = "the policy" if last.match == "policy" else "this rule"
        where = f" ({_name(last)})" if last.reason or last.place else ""
        text, role = f"  dropped here by {by}{where}", "bad"
    elif last.station == "delivered":
        owner = last.aside and last.aside.owner
        by = f" at {owner}" if owner else ""
        text, role = f"  the packet has arrived{by}", "accept"
    elif last.station == "sent":
        text, role = "  the packet has left", "accept"
    else:
        return []
    return [Line(cut([(text, role)], width), belongs=True)]


def stack(row: Row, width: int) -> list[Line]:
    """The kernel stack of a drop, from the innermost place on; nothing without one."""
    if row.aside is None or not row.aside.stack:
        return []
    made = [Line([("Kernel stack", "section")])]
    made += [Line(cut([(f"  {place}", "text")], width)) for place in row.aside.stack]
    return made


def _name(row: Row) -> str:
    reason = row.reason or ("" if row.place else "no reason known")
    at = f"at {row.place}" if row.place else ""
    return " ".join(word for word in (reason, at) if word)
