# SPDX-License-Identifier: GPL-2.0-only
"""Rows as CSV (RFC 4180): FIELDS as columns, in that order; of several hosts, `host` behind them.

Safe to open in a spreadsheet: a cell of text that a spreadsheet would take
for a formula gets an apostrophe in front, also where it takes semicolons for
the ends of cells.  `skb` and `mark` are hex text
("0x1"), `time` is RFC 3339, `path` is `chain:rulenum` joined by `>`, and what
is not known is empty.  Must not do I/O.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.view.cells import joined_path, rfc3339, safe
from ipttrace.view.places import Named, places

# = + - @ and their full-width forms; tab, CR and LF never come this far as
# themselves, but a spreadsheet's own unescaping is not ours to rely on.
FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
# Where a comma is the decimal point a spreadsheet begins a cell after a semicolon,
# quotes or not.
_NEXT_CELL: Final = re.compile(r""";(?=[\s"]*[=+\-@＝＋－＠])""")


@lru_cache(maxsize=65536)
def cell(text: str | None) -> str | None:
    """`text` as a cell that no terminal obeys and no spreadsheet computes."""
    if not text:
        return text
    guarded = _NEXT_CELL.sub(";'", safe(text))
    if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA):
        return "'" + guarded
    return guarded


class CsvView:
    """A `View`; keeps no state between calls."""

    def __init__(self, names: Named = None) -> None:
        self._places = places(names)

    def header(self) -> str:
        return ",".join(self._places.fields) + "\r\n"

    def lines(self, rows: Iterable[Row]) -> str:
        out = io.StringIO(newline="")
        csv.writer(out).writerows(map(self._values, rows))
        return out.getvalue()

    def _values(self, row: Row) -> tuple[object, ...]:
        values = _values(row)
        return (*values, cell(self._places.host(row.host))) if self._places.several else values


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
        f"{row.mark:#x}",
        cell(row.mac_src),
        cell(row.mac_dst),
        cell(row.ct_state),
        cell(row.ct_orig_src),
        row.ct_orig_sport,
        cell(row.ct_orig_dst),
        row.ct_orig_dport,
    )
