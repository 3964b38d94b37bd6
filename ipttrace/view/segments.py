# SPDX-License-Identifier: GPL-2.0-only
"""Lines of rows from the fields' texts: each text is made once for all rows that share it.

A line is cut into segments.  A field whose values hardly ever repeat (a time, a cost), or
may change (the name of a namespace), is a segment of its own, made from columns; the others
are made from a row, and remembered by the columns that they depend on.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import attrgetter, methodcaller
from typing import Any, Final, Generic, TypeVar

from ipttrace.trace.row import NETNS_NAME, TABLE, Kind, Row, attribute
from ipttrace.trace.store import DIRECT, Names, Picked
from ipttrace.view.labels import HOST, Labels

# Distinct texts of a segment that are remembered: a port scan has endless addresses.
REMEMBERED: Final = 1 << 14

T = TypeVar("T")


class Memo(Generic[T]):
    """What is made from rows, remembered by the columns that it depends on."""

    def __init__(self, columns: tuple[str, ...], make: Callable[[Row], T]) -> None:
        self._columns = columns
        self._make = make
        self._known: dict[Hashable, T] = {}
        self._names: Names | None = None  # of the store whose columns these are
        self._rules_version = 0

    def of(self, picked: Picked) -> list[T]:
        """Returns what is made from each of the rows."""
        self._forget(picked)
        known = self._known
        keys = picked.keys(self._columns)
        found = list(map(known.get, keys))
        if None in found:
            fresh: dict[Hashable, int] = {}
            for index, (key, value) in enumerate(zip(keys, found, strict=True)):
                if value is None:
                    fresh.setdefault(key, index)
            for key, row in zip(fresh, picked.rows(list(fresh.values())), strict=True):
                known[key] = self._make(row)
        return [known[key] for key in keys]

    def clear(self) -> None:
        """Forgets all."""
        self._known.clear()

    def _forget(self, picked: Picked) -> None:
        """Forgets all if it may be out of date, or too much."""
        version = picked.rules_version if "ruleset" in self._columns else 0
        if (
            picked.names is not self._names
            or version != self._rules_version
            or len(self._known) > REMEMBERED
        ):
            self._known.clear()
            self._names, self._rules_version = picked.names, version


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a line: `text` makes a cell from its value in a row; `before` precedes it."""

    value: Callable[[Row], Any]
    depends: tuple[str, ...]  # the store's columns that the value depends on
    text: Callable[[Any], str]
    before: str = ""
    # Returns the value of each row, of a field that is a segment of its own.
    values: Callable[[Picked], list[Any]] | None = None

    def cell(self, row: Row) -> str:
        """Returns the cell of a row."""
        return self.before + self.text(self.value(row))

    def cells(self, picked: Picked) -> list[str]:
        """Returns the cells of these rows, if the field is a segment of its own."""
        if self.values is None:
            raise ValueError("a field that is remembered with others")
        before, texts = self.before, map(self.text, self.values(picked))
        return [before + text for text in texts] if before else list(texts)


Texts = Mapping[Kind, Callable[[Any], str]]
"""Makes cells, by the kind of the value."""


def _columns(
    labels: Labels,
    texts: Texts,
    join: Callable[[list[str]], str],
    before: Callable[[str], str],
) -> Iterator[Column]:
    """Yields the columns of FIELDS, and `host` if there are several."""
    for name, field in TABLE.items():
        if name == NETNS_NAME:
            yield _netns_name(labels, texts[field.kind], join, before(name))
            continue
        value = attrgetter(attribute(name))
        values = methodcaller("values", name) if name in DIRECT else None
        yield Column(value, field.columns, texts[field.kind], before(name), values)
    if labels.several:

        def host(row: Row) -> str:
            return labels.host(row.host)

        yield Column(host, ("host",), texts[Kind.TEXT], before(HOST))


def _netns_name(
    labels: Labels,
    make: Callable[[Any], str],
    join: Callable[[list[str]], str],
    before: str,
) -> Column:
    @lru_cache(maxsize=REMEMBERED)
    def text(value: str | None) -> str:
        return join([make(value)])

    def name(row: Row) -> str | None:
        return labels.name(row.host, row.netns)

    def names(picked: Picked) -> list[str | None]:
        at = list(zip(picked.column("host").tolist(), picked.column("netns").tolist(), strict=True))
        known = {one: labels.name(*one) for one in set(at)}
        return [known[one] for one in at]

    return Column(name, TABLE[NETNS_NAME].columns, text, before, names)


class Segments:
    """The segments of a line: those of FIELDS, and of `host` if there are several."""

    def __init__(
        self,
        labels: Labels,
        texts: Texts,
        join: Callable[[list[str]], str],
        before: Callable[[str], str] = lambda name: "",
    ) -> None:
        """`join` makes a segment from cells; `before`: what precedes a field's cell."""
        self._of_row: list[Callable[[Row], str]] = []
        self._of_picked: list[Callable[[Picked], list[str]]] = []
        columns = _columns(labels, texts, join, before)
        for alone, run in groupby(columns, lambda column: column.values is not None):
            if alone:
                for column in run:
                    self._of_row.append(column.cell)
                    self._of_picked.append(column.cells)
            else:
                self._add(list(run), join)

    def _add(self, group: list[Column], join: Callable[[list[str]], str]) -> None:
        def text(row: Row) -> str:
            return join([column.cell(row) for column in group])

        depends = tuple(dict.fromkeys(name for column in group for name in column.depends))
        self._of_row.append(text)
        self._of_picked.append(Memo(depends, text).of)

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Sequence[str]]:
        """Yields the texts of each row's segments."""
        return ([make(row) for make in self._of_row] for row in rows)

    def of_picked(self, picked: Picked) -> Iterator[Sequence[str]]:
        """Yields the texts of each row's segments."""
        return zip(*(make(picked) for make in self._of_picked), strict=True)
