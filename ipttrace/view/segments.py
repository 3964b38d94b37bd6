# SPDX-License-Identifier: GPL-2.0-only
"""Lines of rows from the fields' texts: each text is made once for all rows that share it.

A line is cut into segments.  A field whose values hardly ever repeat (a time, a cost), or
may change (the name of a namespace), is a segment of its own, made from columns; the others
are made from a row, and remembered by the columns that they depend on.  Lines are made by one
%-format, which takes numbers as they are: a text for each number would cost more than the rest.
Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import attrgetter, methodcaller
from typing import Any, Final, Generic, TypeVar

from ipttrace.trace.row import NETNS_NAME, TABLE, Kind, Row, attribute
from ipttrace.trace.store import DIRECT, Names, Picked
from ipttrace.view.labels import HOST, Labels
from ipttrace.view.parts import Part, escaped, format_lines, times
from ipttrace.view.values import utc_second

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
        if None not in found:
            return found  # type: ignore[return-value]
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
    form: str = ""  # see Forms; with `before`
    is_time: bool = False

    def cell(self, row: Row) -> str:
        """Returns the cell of a row."""
        return self.before + self.text(self.value(row))

    def part(self, picked: Picked) -> Part:
        """Returns the cells of these rows, if the field is a segment of its own."""
        if self.values is None:
            raise ValueError("a field that is remembered with others")
        if self.is_time and self.form:
            with suppress(ValueError):
                return times(self.form, picked.column("time"), utc_second)
        values = self.values(picked)
        if self.form and not self.is_time and isinstance(values[0], int) and None not in values:
            return Part(self.form, [values])
        texts = map(self.text, values)
        return Part(escaped(self.before) + "%s", [list(texts)])


Texts = Mapping[Kind, Callable[[Any], str]]
"""Makes cells, by the kind of the value."""

Forms = Mapping[Kind, str]
"""%-formats that make the same cells of numbers, by the kind of the value.

That of Kind.TIME takes the text of the second and the ns behind it.
"""


def _columns(
    labels: Labels,
    texts: Texts,
    forms: Forms,
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
        form = escaped(before(name)) + forms[field.kind] if field.kind in forms else ""
        is_time = field.kind is Kind.TIME
        yield Column(value, field.columns, texts[field.kind], before(name), values, form, is_time)
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
        forms: Forms,
        join: Callable[[list[str]], str],
        before: Callable[[str], str] = lambda name: "",
    ) -> None:
        """`join` makes a segment from cells; `before`: what precedes a field's cell."""
        self._of_row: list[Callable[[Row], str]] = []
        self._of_picked: list[Callable[[Picked], Part]] = []
        columns = _columns(labels, texts, forms, join, before)
        for alone, run in groupby(columns, lambda column: column.values is not None):
            if alone:
                for column in run:
                    self._of_row.append(column.cell)
                    self._of_picked.append(column.part)
            else:
                self._add(list(run), join)

    def _add(self, group: list[Column], join: Callable[[list[str]], str]) -> None:
        def text(row: Row) -> str:
            return join([column.cell(row) for column in group])

        depends = tuple(dict.fromkeys(name for column in group for name in column.depends))
        self._of_row.append(text)
        memo = Memo(depends, text)
        self._of_picked.append(lambda picked: Part("%s", [memo.of(picked)]))

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Sequence[str]]:
        """Yields the texts of each row's segments."""
        return ([make(row) for make in self._of_row] for row in rows)

    def of_picked(self, picked: Picked, between: str) -> Iterable[str]:
        """Returns each row's segments with `between` them."""
        return format_lines([make(picked) for make in self._of_picked], between, len(picked))
