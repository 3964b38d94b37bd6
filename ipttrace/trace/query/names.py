# SPDX-License-Identifier: GPL-2.0-only
"""Tests of names, evaluated once for each distinct name, never for each row.

Must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import EQUAL, SEARCH, Kind, Matcher
from ipttrace.trace.query.patterns import Predicate, compile_pattern
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.store import Part


class NameTable:
    """For each id of Names, whether the name matches; grows with Names."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        # Replaced, never changed: threads may share it.
        self._held: tuple[object, Array] = (None, np.zeros(0, bool))

    def of(self, context: Context) -> Array:
        """bool, shape (names,)."""
        names = context.names
        held, table = self._held
        if held is not names:
            table = np.zeros(0, bool)
        count = len(names)
        if count > len(table):
            fresh = [self._predicate(names.text(at)) for at in range(len(table), count)]
            table = np.concatenate([table, np.array(fresh, bool)])
            self._held = (names, table)
        return table

    def mask(self, ids: Array, context: Context) -> Array:
        """The ids whose names match: bool, of the shape of `ids`."""
        table = self.of(context)
        # For one or two ids, comparing is faster than looking up.
        few = np.flatnonzero(table) if len(table) < 4096 else None
        if few is not None and len(few) <= 2:
            found = np.zeros(len(ids), bool)
            for one in few:
                found |= ids == ids.dtype.type(one)
            return found
        looked_up: Array = table[ids]
        return looked_up


def predicate_of(op: str, wanted: Sequence[Value], source: str) -> Predicate:
    """A test of a text: for ``~`` the regular expression, else equality with one of `wanted`."""
    if op == "~":
        return compile_pattern(wanted[0], source)
    texts = frozenset(value.text for value in wanted)
    return lambda text: text in texts


class Name(Kind):
    """A name recorded by the kernel side."""

    title = "a name"
    operators = EQUAL + SEARCH

    def __init__(self, column: str, known: Callable[[Part], Array] | None = None) -> None:
        """`known`: the rows that can have a name; None: all."""
        self._column = column
        self._has_value = known

    def has_value(self, part: Part, context: Context) -> Array | None:
        known: Array = part.columns[self._column] != 0
        return known if self._has_value is None else known & self._has_value(part)

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        table = NameTable(predicate_of(op, wanted, source))
        return lambda part, context: table.mask(part.columns[self._column], context)
