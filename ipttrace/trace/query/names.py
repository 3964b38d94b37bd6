# SPDX-License-Identifier: GPL-2.0-only
"""Tests of names: asked once of each name that ever came, never of each row.

Must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import EQUAL, SEARCH, Hit, Kind
from ipttrace.trace.query.patterns import Predicate, compile_pattern
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.store import Part


class NameTable:
    """For each id of Names whether the name is meant; grows as names come."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        # Replaced whole: a thread that filters again may share it with the screen.
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

    def hit(self, ids: Array, context: Context) -> Array:
        """bool, of the shape of `ids`."""
        table = self.of(context)
        few = np.flatnonzero(table) if len(table) < 4096 else None
        if few is not None and len(few) <= 2:
            found = np.zeros(len(ids), bool)
            for one in few:
                found |= ids == ids.dtype.type(one)
            return found
        taken: Array = table[ids]
        return taken


def predicate_of(op: str, wanted: Sequence[Value], source: str) -> Predicate:
    """For a text: is it one of `wanted`, or does the pattern find something in it?"""
    if op == "~":
        return compile_pattern(wanted[0], source)
    texts = frozenset(value.text for value in wanted)
    return lambda text: text in texts


class Name(Kind):
    """A name that came from the kernel."""

    title = "a name"
    operators = EQUAL + SEARCH

    def __init__(self, column: str, known: Callable[[Part], Array] | None = None) -> None:
        """`known`: where a name can be, when not everywhere."""
        self._column = column
        self._known = known

    def known(self, part: Part, context: Context) -> Array | None:
        known: Array = part.columns[self._column] != 0
        return known if self._known is None else known & self._known(part)

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        table = NameTable(predicate_of(op, wanted, source))
        return lambda part, context: table.hit(part.columns[self._column], context)
