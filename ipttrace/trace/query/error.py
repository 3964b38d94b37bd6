# SPDX-License-Identifier: GPL-2.0-only
"""What is wrong with a query, and where.

Must not import the parser: who only catches the error need not load it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ipttrace.text import clean, width

_SHOWN: Final = 40
# Terminal columns left of the place, where the query is longer than the line.
_LEAD: Final = 3


class QueryError(ValueError):
    """A query that cannot be understood; `str()` is one line, safe for a terminal.

    `position` (0-based, in characters of `text`) and `length` say where.
    """

    def __init__(self, message: str, position: int = 0, length: int = 1, text: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.length = length
        self.text = text

    def caret(self, columns: int = 80) -> str:
        """The query, and a second line with ^ under the place; neither ends in a newline.

        Where the query takes more than `columns` columns, the part around the
        place is shown.  Characters that a terminal would obey are escaped.
        """
        cells = [clean(char) for char in self.text]
        widths = [width(cell) for cell in cells]
        place = max(0, min(self.position, len(cells)))
        start, stop = 0, len(cells)
        if sum(widths) >= columns:
            start = _before(widths, place, columns // 2)
            stop = _after(widths, start, columns - 1 - 2 * _LEAD)
        lead = "…" if start else ""
        tail = "…" if stop < len(cells) else ""
        under = sum(widths[place : max(place, min(place + self.length, stop))])
        indent = len(lead) + sum(widths[start:place])
        shown = lead + "".join(cells[start:stop]) + tail
        return f"{shown}\n{' ' * indent}{'^' * max(under, 1)}"


def _before(widths: list[int], place: int, room: int) -> int:
    at = place
    while at > 0 and room >= widths[at - 1]:
        at -= 1
        room -= widths[at]
    return at


def _after(widths: list[int], start: int, room: int) -> int:
    at = start
    while at < len(widths) and room >= widths[at]:
        room -= widths[at]
        at += 1
    return at


def shown(text: str) -> str:
    """What somebody wrote, as it may stand in a message."""
    return clean(text, _SHOWN)


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean chain?``, or nothing where no word is near."""
    from difflib import get_close_matches

    if len(wrong) > _SHOWN:
        return ""
    by_lower: dict[str, str] = {}
    for word in right:
        by_lower.setdefault(word.lower(), word)
    near = get_close_matches(wrong.lower(), by_lower, 1, 0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
