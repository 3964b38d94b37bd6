# SPDX-License-Identifier: GPL-2.0-only
"""Rows as CSV (RFC 4180): the columns are FIELDS in order, then `host` if there are several.

Safe to open in a spreadsheet: text that a spreadsheet would evaluate as a formula
is prefixed with an apostrophe, also after a semicolon, which some locales use as
the separator.  `skb`, `mark`, `journey` and `ct_mark` are hexadecimal text ("0x1"),
`trace_id` has nft's 8 hexadecimal digits, `time` is RFC 3339, `path` is
`chain:rulenum` joined by `>`, with `/return` or `/policy` where that is what was hit,
and unknown values are empty.  Must not do I/O.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from ipttrace.text import escape
from ipttrace.trace.row import Kind, Row
from ipttrace.trace.rules import tables_name
from ipttrace.trace.store import Picked
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.segments import Forms, Segments
from ipttrace.view.values import hexadecimal, joined_path, number, rfc3339, trace_id, yes

# = + - @ and their full-width forms.  Tab, CR and LF are escaped by now, but a
# spreadsheet might undo escapes.
FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
# If the decimal separator is a comma, spreadsheets split cells at semicolons, quoted or not.
_NEXT_CELL: Final = re.compile(r""";(?=[\s"]*[=+\-@＝＋－＠])""")


@lru_cache(maxsize=65536)
def cell(text: str | None) -> str:
    """Returns `text` as a cell that is safe on a terminal and in a spreadsheet."""
    if not text:
        return ""
    guarded = _NEXT_CELL.sub(";'", escape(text))
    if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA):
        return "'" + guarded
    return guarded


_CELLS: Final[Mapping[Kind, Callable[[Any], str]]] = {
    Kind.TIME: lambda value: rfc3339(value) or "",
    Kind.NUMBER: number,
    Kind.HEX: hexadecimal,
    Kind.TRACE_ID: trace_id,
    Kind.TABLES: tables_name,
    Kind.YES: yes,
    Kind.TEXT: cell,
    Kind.BLANK: cell,
    Kind.PATH: lambda path: cell(joined_path(path)),
}


_FORMS: Final[Forms] = {
    Kind.TIME: "%s.%09dZ",
    Kind.NUMBER: "%d",
    Kind.HEX: "%#x",
    Kind.TRACE_ID: "%08x",
}


def _quoted(cells: list[str]) -> str:
    """Returns the cells of a part of a line, quoted where necessary."""
    joined = ",".join(cells)
    if joined.count(",") == len(cells) - 1 and '"' not in joined and joined.isprintable():
        return joined
    out = io.StringIO(newline="")
    # One more cell: a line that consists of an empty one would be quoted.
    csv.writer(out).writerow([*cells, ""])
    return out.getvalue().removesuffix(",\r\n")


class CsvView:
    """A `View` without state."""

    def __init__(self, names: LabelSource = None) -> None:
        self._labels = labels_of(names)
        self._segments = Segments(self._labels, _CELLS, _FORMS, _quoted)

    def header(self) -> str:
        return ",".join(self._labels.fields) + "\r\n"

    def lines(self, rows: Iterable[Row]) -> str:
        return _joined(map(",".join, self._segments.of_rows(rows)))

    def picked(self, rows: Picked) -> str:
        return _joined(self._segments.of_picked(rows, ","))


def _joined(lines: Iterable[str]) -> str:
    return "\r\n".join([*lines, ""])
