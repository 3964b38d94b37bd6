# SPDX-License-Identifier: GPL-2.0-only
"""Cells: text that fills a given number of terminal columns, and the role that colours it.

Holds what every list of the screen draws with: measuring, cutting and padding,
verdicts, endpoints and durations.  Must not import Textual, or anything else
from `ipttrace.tui`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Final

# Textual places what it draws by Rich's widths, so the screen measures with these
# and not with `ipttrace.text.width`.
from rich.cells import cell_len as cell_len
from rich.cells import set_cell_size

from ipttrace.trace.story import endpoint

Cell = tuple[str, str]
"""A text and its role; widgets map roles to colours."""

Cells = list[Cell]
"""A line, from left to right."""

# Marks distinguish verdicts on terminals without colours.
VERDICT_MARKS: Final[Mapping[str, str]] = {
    "ACCEPT": "✓",
    "DROP": "✗",
    "STOLEN": "»",
    "QUEUE": "…",
    "REPEAT": "↻",
    "STOP": "■",
}
VERDICT_ROLES: Final[Mapping[str, str]] = {"ACCEPT": "accept", "DROP": "drop"}


def verdict_cell(verdict: str) -> Cell:
    """A verdict with its mark, in the role of its colour."""
    return f"{VERDICT_MARKS.get(verdict, '?')} {verdict}", VERDICT_ROLES.get(verdict, "other")


# Text in a given width.


def fit(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` cells, aligned left or `right`; a cut ends in "…"."""
    if text.isascii():
        length = len(text)
        if length > width:
            return text[: width - 1] + "…" if width > 0 else ""
        return text.rjust(width) if right else text.ljust(width)
    # Combining marks have no width, so limit the number of characters too.
    text = text[: 4 * width]
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    pad = " " * (width - length)
    return pad + text if right else text + pad


def fit_tail(text: str, width: int) -> str:
    """`text` in at most `width` cells, cut at its start: the end of an address identifies it."""
    if len(text) <= width or width <= 0:
        return text[: max(width, 0)] if text.isascii() else fit(text, width).rstrip()
    if not text.isascii():
        return fit(text, width)
    return "…" + text[len(text) - width + 1 :]


def spread(left: str, right: str, width: int) -> str:
    """`left` and `right` at the two ends of `width` cells; `left` is cut if both do not fit."""
    return fit(left, max(1, width - cell_len(right))) + right


def fold(text: str, width: int, most: int) -> list[str]:
    """`text` on up to `most` lines of at most `width` cells, broken at spaces where possible."""
    made: list[str] = []
    text = text[: 4 * width * most]  # combining marks have no width
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


# Lines of cells.


def column(text: str, width: int, role: str = "value", right: bool = True) -> Cell:
    """A cell of exactly `width`, and the gap to the next column.

    An empty cell has no role of its own: where a drop stands out by its background, an
    empty number of drops would look like one.
    """
    return fit(text, width, right) + " ", role if text else "value"


def title(text: str, width: int, mark: str = "", right: bool = True) -> Cell:
    """The title of a column of `width`; `mark`, one cell, is behind the text, in the gap."""
    role = "table" if mark else "titles"
    if right:
        return fit(text, width, right) + (mark or " "), role
    return fit(fit(text, width).rstrip() + mark, width + 1), role


def length(cells: Iterable[Cell]) -> int:
    """The width of a line."""
    return sum(cell_len(text) for text, _ in cells)


def cut(cells: Iterable[Cell], width: int) -> Cells:
    """A line in at most `width` cells; a cut ends in "…"."""
    kept: Cells = []
    for text, role in cells:
        size = cell_len(text)
        if size > width:
            if width > 0:
                kept.append((fit(text, width), role))
            break
        kept.append((text, role))
        width -= size
    return kept


def beside(left: Sequence[Cells], right: Sequence[Cells], width: int, gap: str) -> list[Cells]:
    """Lines next to each other: those of `left` in exactly `width` cells, then `gap`."""
    lines: list[Cells] = []
    for first, second in zip_longest(left, right):
        line = cut(first or [], width)
        lines.append([*line, (" " * (width - length(line)) + gap, "text"), *(second or [])])
    return lines


# Values.


def endpoints(src: str, sport: int | None, dst: str, dport: int | None, width: int) -> str:
    """Source and destination in at most `width` cells.

    Where both do not fit, the higher port is left out, which is the client's and
    identifies least; then the addresses are cut at their start.
    """
    first, second = endpoint(src, sport), endpoint(dst, dport)
    if len(first) + len(second) + 3 <= width:
        return f"{first} → {second}"
    room = width - 1
    if len(first) + len(second) > room and sport is not None and dport is not None:
        if sport > dport:
            first = src
        else:
            second = dst
    if len(first) + len(second) > room:
        # Each gets half, or what the other does not need.
        first = fit_tail(first, max(room // 2, room - len(second)))
        second = fit_tail(second, room - len(first))
    return f"{first}→{second}"


def counted(number: int, one: str) -> str:
    """How many of a thing there are: "1 row", "2,000 rows"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def duration(ns: int | None) -> str:
    """`ns` in at most six cells: 812ns, 1.23µs, 45.6ms, 12.0s; "-" for None."""
    if ns is None:
        return "-"
    if ns < 1000:
        return f"{ns}ns"
    value = float(ns)
    for unit in ("µs", "ms"):
        value /= 1000
        if value < 999.5:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    value /= 1000
    return f"{value:.1f}s" if value < 9999.5 else ">2h"
