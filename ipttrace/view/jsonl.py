# SPDX-License-Identifier: GPL-2.0-only
"""Rows as JSON lines: one object per line, its keys FIELDS in order, then `host` if several.

Unknown values are null.  `skb` and `mark` are hexadecimal text ("0x1") as in CSV,
`time` is RFC 3339, `path` is a list of {chain, rulenum, match}.  The lines are
ASCII (JSON escapes the rest): valid in any locale and safe on a terminal.  Must not
do I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from ipttrace.trace.row import Row
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.values import rfc3339

# JSON can express half of a surrogate pair, but strict readers reject the line.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_encode: Final = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode


class JsonlView:
    """A `View` without state."""

    def __init__(self, names: LabelSource = None) -> None:
        self._labels = labels_of(names)
        self._fields = self._labels.fields

    def header(self) -> str:
        return ""

    def lines(self, rows: Iterable[Row]) -> str:
        lines = [self._line(row) for row in rows]
        lines.append("")
        return "\n".join(lines)

    def _line(self, row: Row) -> str:
        values = _values(row)
        if self._labels.several:
            values = (*values, self._labels.host(row.host))
        fields = dict(zip(self._fields, values, strict=True))
        line = _encode(fields)
        if "\\ud" in line:
            # Half of a surrogate pair, or a character beyond the first plane, which JSON
            # writes as a pair: both are rare enough to encode twice.
            line = _encode(_paired(fields))
        return line


def _paired(value: Any) -> Any:
    """Returns `value` with each lone surrogate in its text as an escape."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {key: _paired(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_paired(inner) for inner in value]
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
        None if row.mark is None else f"{row.mark:#x}",
        row.mac_src,
        row.mac_dst,
        row.ct_state,
        row.ct_orig_src,
        row.ct_orig_sport,
        row.ct_orig_dst,
        row.ct_orig_dport,
    )
