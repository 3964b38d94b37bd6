# SPDX-License-Identifier: GPL-2.0-only
"""Rows that were picked from the store: by columns, and as rows where needed.

Most rows of a trace resemble others in most of their fields.  Keys tell which do, so that
views need to unfold and format only one of them.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.calls import Aliases
from ipttrace.trace.row import Row
from ipttrace.trace.rules import Rulesets
from ipttrace.trace.store.asides import Asides
from ipttrace.trace.store.names import Names
from ipttrace.trace.store.schema import SCHEMA, Columns
from ipttrace.trace.store.unfold import DIRECT, STEP_DTYPE, unfold

PATH: Final = "path"

# Bits of columns that values depend on.
_BITS: Final = {
    "flags": record.F_CONNTRACK | record.F_NO_MARK,
    "ct_flags": record.CT_INVALID | record.CT_STATE | record.CT_NO_MARK,
    "exit_flags": record.EXIT_F_NO_VERDICT,
    "verdict": 0xFF,
}


@lru_cache
def _layout(columns: tuple[str, ...]) -> np.dtype[Any]:
    return np.dtype([(name, *SCHEMA[name]) for name in columns])


class Picked:
    """n rows of one chunk of the store, in any order."""

    def __init__(
        self,
        seqs: Array,
        first: int,
        columns: Columns,
        ends: Array,
        steps: Columns,
        names: Names,
        rulesets: Mapping[int, Rulesets],
        aliases: Aliases,
        asides: Asides,
    ) -> None:
        """`seqs`: int64 (n,), all in the chunk whose first row is `first`; at least one.

        `ends`: the end of each of the chunk's paths in `steps`.
        """
        at = seqs - first
        self._seqs = seqs
        self._rows = at
        self._columns = columns
        self._ends = ends[at].astype(np.int64)
        self._begins = np.where(at > 0, ends[np.maximum(at - 1, 0)], 0).astype(np.int64)
        # Consecutive rows need no copy.
        begin, end = int(at[0]), int(at[-1]) + 1
        together = end - begin == len(at) and bool((at[1:] > at[:-1]).all())
        self._at: slice | Array = slice(begin, end) if together else at
        self._steps = steps
        self.names = names
        self._rulesets = rulesets
        self._aliases = aliases
        self._asides = asides

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def rules_version(self) -> int:
        """Differs whenever the text of a rule may have changed."""
        return sum(rules.version for rules in tuple(self._rulesets.values()))

    def column(self, name: str) -> Array:
        """Returns a column of SCHEMA, shape (n, …)."""
        column: Array = self._columns[name][self._at]
        return column

    def values(self, field: str) -> list[Any]:
        """Returns the n values of a field of DIRECT."""
        return DIRECT[field](self.column)

    def keys(self, columns: tuple[str, ...]) -> Sequence[Hashable]:
        """Returns a key per row: equal keys mean equal values in these columns."""
        plain = tuple(name for name in columns if name != PATH)
        packed = np.empty(len(self), _layout(plain))
        for name in plain:
            column = self.column(name)
            packed[name] = column & _BITS[name] if name in _BITS else column
        # A fixed size: no two keys differ only in the zero bytes that are cut off.
        keys: list[bytes] = packed.view(f"S{packed.itemsize}").tolist()
        return list(zip(keys, self._path_keys(), strict=True)) if PATH in columns else keys

    def _values(self, name: str, at: slice | Array) -> Array:
        column: Array = self._columns[name][at]
        if name == "flow":
            return self._aliases.roots(column, self._columns["time"][at])
        return column

    def _path_keys(self, which: slice | Array = slice(None)) -> list[bytes]:
        """Returns the steps of these rows as bytes, of STEP_DTYPE."""
        last = self._ends[which]
        counts = last - self._begins[which]
        ends = np.cumsum(counts)
        steps = np.repeat(last - ends, counts) + np.arange(int(ends[-1]))
        packed = np.empty(len(steps), STEP_DTYPE)
        for name, column in self._steps.items():
            packed[name] = column[steps]
        data, size = packed.tobytes(), STEP_DTYPE.itemsize
        edges = (ends * size).tolist()
        return [data[a:b] for a, b in zip([0, *edges], edges, strict=False)]

    def rows(self, which: list[int] | None = None) -> list[Row]:
        """Returns all rows, or those at the indices `which`."""
        index = slice(None) if which is None else np.array(which, np.intp)
        at = self._at if which is None else self._rows[index]
        return unfold(
            self._seqs[index].tolist(),
            lambda name: self._values(name, at),
            self._path_keys(index),
            self.names,
            self._rulesets,
            self._asides,
        )
