# SPDX-License-Identifier: GPL-2.0-only
"""Lines of the detail: items of several cells, wrapped to a width.

Pure: must not import Textual or know colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipttrace.tui.cells import Cells, cut, fold, length

MOST_LINES: Final = 8  # per text, so that a hostile comment cannot fill the pane


@dataclass(frozen=True, slots=True)
class Line:
    """One line, not longer than the width it was made for."""

    cells: Cells
    shown: bool = False  # the traversal that is the row itself
    belongs: bool = False  # to the traversal above


def section(title: str, *rest: str) -> Cells:
    """The heading of a section, and remarks after it."""
    return [(title, "section"), *((f"  {text}", "dim") for text in rest)]


def named(name: str, value: str) -> Cells:
    """A value after its name."""
    return [(f"{name} ", "name"), (value, "value")]


def wrap(items: Iterable[Cells], width: int, indent: int, gap: str = "  ") -> list[Line]:
    """Items one after another.

    An item that does not fit begins a new line; one that is longer than a line is
    broken.  Continuation lines begin with `indent` spaces.
    """
    made: list[Line] = []
    line: Cells = []
    used = 0
    for item in items:
        size = length(item)
        if line and used + len(gap) + size > width:
            made.append(Line(line))
            line, used = [(" " * indent, "value")], indent
        elif line:
            line.append((gap, "value"))
            used += len(gap)
        if used + size > width:
            *begun, item = _broken(item, width, used, indent + 2)
            for part in begun:
                made.append(Line([*line, *part]))
                line, used = [], 0
        line += item
        used += length(item)
    if line:
        made.append(Line(line))
    return made


def _broken(item: Cells, width: int, used: int, indent: int) -> list[Cells]:
    """An item longer than a line, as several lines: its last text is folded."""
    *head, (text, role) = cut(item[:-1], width - used - 8) + item[-1:]
    used += length(head)
    texts = fold(text, max(width - max(used, indent), 8), MOST_LINES) or [""]
    made = [cut([*head, (texts[0], role)], width)]
    return made + [cut([(" " * indent, role), (text, role)], width) for text in texts[1:]]
