# SPDX-License-Identifier: GPL-2.0-only
"""Rows as JSON lines: one object a line, its keys FIELDS in that order.

Of several hosts the last key is `host`.

What is not known is null.  `skb` and `mark` are hex text ("0x1"), as in CSV,
`time` is RFC 3339, `path` is a list of {chain, rulenum, match}.  The lines are
pure ASCII (JSON escapes the rest), so they are valid UTF-8 in any locale and
show nothing to a terminal that it would obey.  Must not do I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from ipttrace.trace.row import Row
from ipttrace.view.cells import rfc3339
from ipttrace.view.places import Named, places

# JSON can spell half a surrogate pair; strict readers then refuse the line.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_encode: Final = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode


class JsonlView:
    """A `View`; keeps no state between calls."""

    def __init__(self, names: Named = None) -> None:
        self._places = places(names)
        self._fields = self._places.fields

    def header(self) -> str:
        return ""

    def lines(self, rows: Iterable[Row]) -> str:
        lines = [self._line(row) for row in rows]
        lines.append("")
        return "\n".join(lines)

    def _line(self, row: Row) -> str:
        values = _values(row)
        if self._places.several:
            values = (*values, self._places.host(row.host))
        fields = dict(zip(self._fields, values, strict=True))
        line = _encode(fields)
        if "\\ud" in line:
            # Rare enough to encode twice: half a surrogate pair, or a character
            # beyond the first plane, which is spelt as a whole one.
            line = _encode(_whole(fields))
        return line


def _whole(value: Any) -> Any:
    """`value` with each lone surrogate in its text as a visible escape."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return value


def _values(row: Row) -> tuple[object, ...]:
    """In the order of FIELDS."""
    return (
        rfc3339(row.time),
        row.engine,
        None if row.skb is None else f"{row.skb:#x}",
        row.netns,
        row.cpu,
        row.pid,
        row.comm,
        row.in_,
        row.out,
        row.family,
        row.hook or None,
        row.table,
        row.chain,
        row.rulenum,
        row.match,
        [
            {"chain": step.chain, "rulenum": step.rulenum or None, "match": step.match}
            for step in row.path
        ],
        row.rule,
        row.verdict,
        row.cost_ns,
        row.len,
        row.proto or None,
        row.src or None,
        row.sport,
        row.dst or None,
        row.dport,
        row.flags,
        row.icmp,
        row.frag,
        f"{row.mark:#x}",
        row.mac_src,
        row.mac_dst,
        row.ct_state,
        row.ct_orig_src,
        row.ct_orig_sport,
        row.ct_orig_dst,
        row.ct_orig_dport,
    )
