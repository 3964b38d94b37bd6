# SPDX-License-Identifier: GPL-2.0-only
"""The section on fragments: those of a packet, or the packet of a fragment.

Pure: takes a story; must not import Textual or know colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ipttrace.trace.fragments import INCOMPLETE, OVERLAP, SHORT, Fragment, Fragments
from ipttrace.trace.row import Row
from ipttrace.trace.story import Story
from ipttrace.tui.cells import Cells, counted, cut, duration
from ipttrace.tui.detail.wrap import Line, wrap

_SHOWN: Final = "▶ "
_INDENT: Final = 4


def fragment_lines(story: Story, width: int) -> list[Line]:
    """The section in lines of at most `width` cells; none if no fragment is known."""
    held, row = story.fragments, story.row
    if held is None:
        return []
    made = [Line(cut(_title(held), width))]
    for one in held.pieces:
        made += _piece(one, held, row, width)
    if held.left_out:
        made.append(Line(cut([(f"  {counted(held.left_out, 'further fragment')}", "dim")], width)))
    if held.is_fragment:
        made.append(Line(cut(_whole(held, row), width)))
    return made


def _title(held: Fragments) -> Cells:
    count = counted(len(held.pieces) + held.left_out, "fragment")
    known = f"{count}, complete" if held.complete else f"{count} with rows"
    return [("Fragments", "section"), (f"  {known}", "dim")]


def _piece(one: Fragment, held: Fragments, row: Row, width: int) -> list[Line]:
    mark = _SHOWN if one.own else "  "
    line: list[Cells] = [
        [(mark, "changed" if one.own else "dim")],
        [("bytes ", "name"), (f"{one.start:,}–{max(one.end - 1, one.start):,}", "value")],
        [("journey ", "name"), (f"0x{one.journey:x}", "value")],
    ]
    if not one.own and (when := _when(one.time, row)):
        line.append([(when, "dim")])
    if not one.more:
        line.append([("last", "dim")])
    made = wrap(line, width, _INDENT, " ")
    for text in _faults(one, held, row):
        made += wrap([[(" " * _INDENT + "! " + text, "bad")]], width, _INDENT + 2)
    return made


def _faults(one: Fragment, held: Fragments, row: Row) -> Iterator[str]:
    if one.faults & SHORT:
        what = "ports" if one.portless or not row.proto else f"{row.proto} header"
        yield f"first fragment too short for the {what}"
    if one.faults & OVERLAP:
        others = [
            f"{other.start:,}–{other.end - 1:,}"
            for other in held.pieces
            if other.journey != one.journey
            and other.faults & OVERLAP
            and one.start < other.end
            and other.start < one.end
        ]
        yield f"overlaps bytes {', '.join(others[:4])}" if others else "overlaps another fragment"
    if one.faults & INCOMPLETE:
        wait = "" if held.waits is None else f" {held.waits} s after"
        yield f"never completed: no row of the packet{wait}; the kernel gave it up"


def _whole(held: Fragments, row: Row) -> Cells:
    if held.whole is None:
        return [("  no row of the packet put together is known", "dim")]
    _, time, journey = held.whole
    return [
        ("  put together: ", "name"),
        ("journey ", "name"),
        (f"0x{journey:x} ", "value"),
        (_when(time, row), "dim"),
    ]


def _when(time: int, row: Row) -> str:
    """When it was, from the row on; "" over netlink, whose times only give the order."""
    if row.engine == "netlink":
        return ""
    apart = time - row.time
    return f"{duration(abs(apart))} {'before' if apart < 0 else 'later'}"
