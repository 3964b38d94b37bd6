# SPDX-License-Identifier: GPL-2.0-only
"""A search for text as the list of rows shows it.

A cell is drawn once for each distinct value and not for each row: a column names the
columns of the store that it is drawn from.  Must not touch widgets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from ipttrace.trace import query
from ipttrace.trace.arrays import Array
from ipttrace.trace.arrays.hashing import Hash
from ipttrace.trace.store import Part, Store
from ipttrace.tui.rows.columns import COLUMNS
from ipttrace.tui.rows.row_cells import Context, unresolved

# A column of the list → the columns of the store that its text depends on.
_HEADERS: Final = ("family", "version", "known", "proto")
_DRAWN_FROM: Final[Mapping[str, Sequence[str]]] = {
    "host": ("host",),
    "netns": ("host", "netns"),
    "process": ("comm", "pid", "engine"),
    "devices": ("in", "out"),
    "proto": (
        *_HEADERS,
        "tcp_flags",
        "icmp_type",
        "icmp_code",
        "sub",
        "extra",
        "frag_id",
        "frag_off",
        "l4",
    ),
    "endpoints": (*_HEADERS, "src", "dst", "sport", "dport", "l4"),
    "table": ("tables", "table"),
    "chain": ("chain", "partial"),
    "verdict": ("verdict", "exit_flags", "engine", "partial"),
}
# Almost every row differs in these: drawn only for text that can be in them.
_TIME: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]*)?)?")
_COST: Final = re.compile(r"[0-9.]+ ?(ns|µs|us|ms|s)")
_WIDE: Final = 1000  # cells: nothing is cut
# Also searched as regular expressions, once for each name or text, not for each row.
_NAMES: Final = ("rule", "chain")
_ARROW: Final = re.compile(r"\s*(?:→|->)\s*")


class TextSearch:
    """Rows whose cells, at any width, contain a text; upper and lower case are the same."""

    def __init__(
        self,
        text: str,
        store: Store,
        names: Callable[[], tuple[Mapping[tuple[int, int], str], Sequence[str]]],
        context: Callable[[], query.Context],
    ) -> None:
        """`names`: namespaces by host and inode, and hosts, as of now."""
        self._wanted = _folded(text)
        self._store = store
        self._names = names
        self._context = context
        word = query.quote(re.escape(text))
        tests = [f"{name}~{word}" for name in _NAMES]
        # Shown instead of ACCEPT; what is known of the next hop is not in the columns.
        tests += [
            query.by_unresolved(protocol)
            for protocol in query.UNRESOLVED
            if self._hit(unresolved(protocol))
        ]
        self._query = query.compile(" or ".join(tests))

    def mask(self, part: Part) -> Array:
        """Returns the rows of `part` that contain the text."""
        found = self._query.mask(part, self._context())
        netns, hosts = self._names()
        context = Context(previous=None, netns=netns, hosts=hosts)
        drawn = dict(_DRAWN_FROM)
        if _TIME.search(self._wanted):
            drawn["time"] = ("time",)
        if _COST.fullmatch(self._wanted):
            drawn["cost"] = ("cost", "engine")
        for column in COLUMNS:
            if column.key in drawn:
                first, which = _distinct(part, drawn[column.key])
                rows = self._store.rows(first + part.first)
                if len(rows) == len(first):  # else evicted meanwhile
                    hits = [self._hit(column.draw(row, _WIDE, context)[0]) for row in rows]
                    found |= np.array(hits, bool)[which]
        return found

    def _hit(self, text: str) -> bool:
        return self._wanted in _folded(text)


def _folded(text: str) -> str:
    # The list has blanks around an arrow only where there is room.
    return _ARROW.sub("→", text.replace("µ", "u")).casefold().strip()


def _distinct(part: Part, names: Sequence[str]) -> tuple[Array, Array]:
    """Returns a row for each distinct value of these columns, and the value of each row.

    Shapes (k,) and (n,): rows as places in `part`, values as places in the first array.
    """
    words: list[Array] = []
    for name in names:
        column = part.columns[name]
        if column.ndim > 1:
            words += list(np.ascontiguousarray(column).view(np.uint32).T)
        elif column.dtype.itemsize == 8:
            whole = column.astype(np.uint64)
            words += [whole & np.uint64(0xFFFFFFFF), whole >> np.uint64(32)]
        else:
            words.append(column.astype(np.uint32))
    hashes = Hash(len(words)).full(words)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    return first, which
