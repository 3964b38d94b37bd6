# SPDX-License-Identifier: GPL-2.0-only
"""Pieces of text put into lines of a width.

Pure: measures cells, no Textual, no colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from ipttrace.tui.cells import fit

Piece = tuple[str, str]  # text and role

MOST_LINES: Final = 8  # of one text: a hostile comment must not be all there is


@dataclass(frozen=True, slots=True)
class Line:
    """One line, not longer than the width it was made for."""

    pieces: tuple[Piece, ...]
    shown: bool = False  # it is the row's own traversal
    belongs: bool = False  # to the traversal above


def wrap(
    items: Iterable[tuple[Piece, ...]], width: int, indent: int, gap: str = "  "
) -> list[Line]:
    """Items one after another; one that does not fit begins a line, or is cut if it never could."""
    made: list[Line] = []
    line: list[Piece] = []
    used = 0
    for item in items:
        size = sum(cell_len(text) for text, _ in item)
        if line and used + len(gap) + size > width:
            made.append(Line(tuple(line)))
            line, used = [(" " * indent, "value")], indent
        elif line:
            line.append((gap, "value"))
            used += len(gap)
        if used + size > width:
            *begun, item = _long(item, width, used, indent + 2)
            for piece in begun:
                made.append(Line((*line, *piece)))
                line, used = [], 0
        line += item
        used += sum(cell_len(text) for text, _ in item)
    if line:
        made.append(Line(tuple(line)))
    return made


def _long(item: tuple[Piece, ...], width: int, used: int, indent: int) -> list[tuple[Piece, ...]]:
    """An item that no line has room for: its last text goes on in more lines."""
    *head, (text, role) = cut(item[:-1], width - used - 8) + item[-1:]
    used += sum(cell_len(piece) for piece, _ in head)
    texts = fold(text, max(width - max(used, indent), 8), MOST_LINES) or [""]
    made = [cut((*head, (texts[0], role)), width)]
    return made + [cut(((" " * indent, role), (text, role)), width) for text in texts[1:]]


def cut(pieces: Iterable[Piece], room: int) -> tuple[Piece, ...]:
    """The pieces in at most `room` cells; … where some is missing."""
    kept: list[Piece] = []
    for text, role in pieces:
        size = cell_len(text)
        if size > room:
            if room > 0:
                kept.append((fit(text, room), role))
            break
        kept.append((text, role))
        room -= size
    return tuple(kept)


def fold(text: str, width: int, most: int) -> list[str]:
    """`text` in up to `most` lines of `width` cells, broken at spaces where it has some."""
    made: list[str] = []
    text = text[: 4 * width * most]  # combining marks take no cell
    while text and len(made) < most - 1 and cell_len(text) > width:
        some = set_cell_size(text, width).rstrip(" ") if not text.isascii() else text[:width]
        space = some.rfind(" ") if text[len(some) : len(some) + 1] != " " else len(some)
        at = space if space > width // 3 else len(some)
        if at <= 0:
            break
        made.append(text[:at])
        text = text[at:].lstrip(" ")
    if text:
        made.append(fit(text, width).rstrip(" "))
    return made
