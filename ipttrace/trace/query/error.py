# SPDX-License-Identifier: GPL-2.0-only
"""The error of an invalid query, with its position.

Must not import the parser, so that callers can catch the error without loading it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ipttrace.text import clean, width

_SHOWN: Final = 40
# Terminal columns kept free on each side, for …, if the query is longer than the line.
_LEAD: Final = 3


class QueryError(ValueError):
    """An invalid query.  `str()` is one line, safe for a terminal.

    `position` (0-based) and `length` are in characters of `text`.
    """

    def __init__(self, message: str, position: int = 0, length: int = 1, text: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.length = length
        self.text = text

    def caret(self, columns: int = 80) -> str:
        """Two lines: the query, and ^ under the error; no newline at the end.

        Of a query wider than `columns` terminal columns, the part around the error.
        Control characters are escaped.
        """
        cells = [clean(char) for char in self.text]
        widths = [width(cell) for cell in cells]
        at = max(0, min(self.position, len(cells)))
        start, stop = 0, len(cells)
        if sum(widths) >= columns:
            start = _before(widths, at, columns // 2)
            stop = _after(widths, start, columns - 1 - 2 * _LEAD)
        lead = "…" if start else ""
        tail = "…" if stop < len(cells) else ""
        under = sum(widths[at : max(at, min(at + self.length, stop))])
        indent = len(lead) + sum(widths[start:at])
        shown = lead + "".join(cells[start:stop]) + tail
        return f"{shown}\n{' ' * indent}{'^' * max(under, 1)}"


def _before(widths: list[int], end: int, room: int) -> int:
    """First of the characters before `end` that fit into `room` columns."""
    at = end
    while at > 0 and room >= widths[at - 1]:
        at -= 1
        room -= widths[at]
    return at


def _after(widths: list[int], start: int, room: int) -> int:
    """End of the characters from `start` on that fit into `room` columns."""
    at = start
    while at < len(widths) and room >= widths[at]:
        room -= widths[at]
        at += 1
    return at


def for_message(text: str) -> str:
    """A user's text, escaped and shortened for a message."""
    return clean(text, _SHOWN)


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean chain?``, or "" if no word of `right` is similar."""
    from difflib import get_close_matches

    if len(wrong) > _SHOWN:
        return ""
    by_lower: dict[str, str] = {}
    for word in right:
        by_lower.setdefault(word.lower(), word)
    near = get_close_matches(wrong.lower(), by_lower, 1, 0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
