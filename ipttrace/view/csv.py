# SPDX-License-Identifier: GPL-2.0-only
"""Rows as CSV (RFC 4180): the columns are FIELDS in order, then `host` if there are several.

Safe to open in a spreadsheet: text that a spreadsheet would evaluate as a formula
is prefixed with an apostrophe, also after a semicolon, which some locales use as
the separator.  `skb` and `mark` are hexadecimal text ("0x1"), `time` is RFC 3339,
`path` is `chain:rulenum` joined by `>`, and unknown values are empty.  Must not do
I/O.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from ipttrace.text import escape
from ipttrace.trace.row import Row
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.values import joined_path, rfc3339

# = + - @ and their full-width forms.  Tab, CR and LF are escaped by now, but a
# spreadsheet might undo escapes.
FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
# If the decimal separator is a comma, spreadsheets split cells at semicolons, quoted or not.
_NEXT_CELL: Final = re.compile(r""";(?=[\s"]*[=+\-@＝＋－＠])""")


@lru_cache(maxsize=65536)
def cell(text: str | None) -> str | None:
    """Returns `text` as a cell that is safe on a terminal and in a spreadsheet."""
    if not text:
        return text
    guarded = _NEXT_CELL.sub(";'", escape(text))
    if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA):
        return "'" + guarded
    return guarded


class CsvView:
    """A `View` without state."""

    def __init__(self, names: LabelSource = None) -> None:
        self._labels = labels_of(names)

    def header(self) -> str:
        return ",".join(self._labels.fields) + "\r\n"

    def lines(self, rows: Iterable[Row]) -> str:
        out = io.StringIO(newline="")
        csv.writer(out).writerows(map(self._values, rows))
        return out.getvalue()

    def _values(self, row: Row) -> tuple[object, ...]:
        values = _values(row)
        return (*values, cell(self._labels.host(row.host))) if self._labels.several else values


def _values(row: Row) -> tuple[object, ...]:
    """In the order of FIELDS; numbers stay numbers."""
    return (
        rfc3339(row.time),
        cell(row.engine),
        None if row.skb is None else f"{row.skb:#x}",
        row.netns,
        row.cpu,
        row.pid,
        cell(row.comm),
        cell(row.in_),
        cell(row.out),
        row.family,
        cell(row.hook),
        cell(row.table),
        cell(row.chain),
        row.rulenum,
        cell(row.match),
        cell(joined_path(row.path)),
        cell(row.rule),
        cell(row.verdict),
        row.cost_ns,
        row.len,
        cell(row.proto),
        cell(row.src),
        row.sport,
        cell(row.dst),
        row.dport,
        cell(row.flags),
        cell(row.icmp),
        cell(row.frag),
        None if row.mark is None else f"{row.mark:#x}",
        cell(row.mac_src),
        cell(row.mac_dst),
        cell(row.ct_state),
        cell(row.ct_orig_src),
        row.ct_orig_sport,
        cell(row.ct_orig_dst),
        row.ct_orig_dport,
    )
