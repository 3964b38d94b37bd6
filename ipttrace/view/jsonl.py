# SPDX-License-Identifier: GPL-2.0-only
"""Rows as JSON lines: one object per line, its keys FIELDS in order, then `host` if several.

Unknown values are null.  `skb`, `mark`, `journey`, `ct_mark` and `trace_id` are
hexadecimal text as in CSV, `time` is RFC 3339, `path` is a list of {chain, rulenum,
match}.  The lines are ASCII (JSON escapes the rest): valid in any locale and safe on
a terminal.  Must not do I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ipttrace.trace.row import Kind, Row, Step
from ipttrace.trace.rules import tables_name
from ipttrace.trace.store import Picked
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.segments import Forms, Segments
from ipttrace.view.values import hexadecimal, number, rfc3339, trace_id

# JSON can express half of a surrogate pair, but strict readers reject the line.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_encode: Final = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode
_NULL: Final = "null"
_BETWEEN: Final = ", "


def _json(value: Any) -> str:
    text = _encode(value)
    if "\\ud" in text:
        # Half of a surrogate pair, or a character beyond the first plane, which JSON
        # writes as a pair: both are rare enough to encode twice.
        text = _encode(_paired(value))
    return text


def _paired(value: Any) -> Any:
    """Returns `value` with each lone surrogate in its text as an escape."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {key: _paired(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_paired(inner) for inner in value]
    return value


def _quoted(text: str | None) -> str:
    """Returns text that needs no escapes."""
    return f'"{text}"' if text else _NULL


def _steps(path: tuple[Step, ...]) -> str:
    return _json(
        [
            {"chain": step.chain, "rulenum": step.rulenum or None, "match": step.match}
            for step in path
        ]
    )


_VALUES: Final[Mapping[Kind, Callable[[Any], str]]] = {
    Kind.TIME: lambda value: _quoted(rfc3339(value)),
    Kind.NUMBER: lambda value: number(value) or _NULL,
    Kind.HEX: lambda value: _quoted(hexadecimal(value)),
    Kind.TRACE_ID: lambda value: _quoted(trace_id(value)),
    Kind.TABLES: lambda value: _quoted(tables_name(value)),
    Kind.YES: _json,
    Kind.TEXT: _json,
    Kind.BLANK: lambda value: _json(value or None),
    Kind.PATH: _steps,
}


_FORMS: Final[Forms] = {
    Kind.TIME: '"%s.%09dZ"',
    Kind.NUMBER: "%d",
    Kind.HEX: '"%#x"',
    Kind.TRACE_ID: '"%08x"',
}


class JsonlView:
    """A `View` without state."""

    def __init__(self, names: LabelSource = None) -> None:
        labels = labels_of(names)
        self._segments = Segments(
            labels, _VALUES, _FORMS, _BETWEEN.join, lambda name: f'"{name}": '
        )

    def header(self) -> str:
        return ""

    def lines(self, rows: Iterable[Row]) -> str:
        return _joined(map(_BETWEEN.join, self._segments.of_rows(rows)))

    def picked(self, rows: Picked) -> str:
        return _joined(self._segments.of_picked(rows, _BETWEEN))


def _joined(lines: Iterable[str]) -> str:
    objects = "}\n{".join(lines)
    return "{" + objects + "}\n" if objects else ""
