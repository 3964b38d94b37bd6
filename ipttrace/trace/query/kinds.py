# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of fields: how a test of a field becomes a mask of rows.

A kind determines which rows have a value, and which rows a test matches; the caller
ignores matches in rows that have no value.  Must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.query import values
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.error import QueryError, for_message, suggestion
from ipttrace.trace.query.patterns import compile_pattern
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.store import Part

# Both return bool of shape (len(part),): the rows that match, or that have a value.
Matcher = Callable[[Part, Context], Array]
HasValue = Callable[[Part], Array]

EQUAL: Final = ("=", "!=", "in", "not in")
ORDER: Final = ("<", "<=", ">", ">=")
SEARCH: Final = ("~", "!~")


class Kind:
    """A type of field."""

    title: ClassVar[str]
    operators: ClassVar[tuple[str, ...]]
    maskable: ClassVar[bool] = False
    # Do its matchers match only rows that have a value?
    skips_unknown: ClassVar[bool] = False
    # Does a row's value change with what is known of neighbours, or of other fragments?
    changes: ClassVar[bool] = False

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        """Matches rows for which `op` (one of = < <= > >= ~) holds for one of `wanted`.

        `wanted` has no ``none``, and only one value unless `op` is ``=``; `source`: the
        query.  Raises QueryError.
        """
        raise NotImplementedError

    def has_value(self, part: Part, context: Context) -> Array | None:
        """The rows that have a value; None: all."""
        return None

    def choices(self) -> Sequence[str]:
        """All possible values, if they are few."""
        return ()


def any_of(matchers: Sequence[Matcher]) -> Matcher:
    """Matches rows that one of `matchers` matches."""
    if len(matchers) == 1:
        return matchers[0]

    def match_any(part: Part, context: Context) -> Array:
        found = matchers[0](part, context)
        for matcher in matchers[1:]:
            found = found | matcher(part, context)
        return found

    return match_any


def no_rows(part: Part, context: Context) -> Array:
    """No row."""
    return np.zeros(len(part), bool)


class Number(Kind):
    """An unsigned integer column."""

    title = "a number"
    operators: ClassVar[tuple[str, ...]] = EQUAL + ORDER
    maskable = True

    def __init__(
        self, column: str, known: HasValue | None = None, units: dict[str, int] | None = None
    ) -> None:
        self._column = column
        self._has_value = known
        self._units = units or {}

    def has_value(self, part: Part, context: Context) -> Array | None:
        return None if self._has_value is None else self._has_value(part)

    def codes(self, part: Part) -> Array:
        """The numbers to compare, unsigned integers of shape (n,)."""
        return part.columns[self._column]

    def interval(self, value: Value) -> values.Interval:
        """The codes that a value stands for.  Raises QueryError."""
        return values.interval(value, self._units)

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        if test.mask is not None:
            return self._masked(test.mask, wanted[0])
        if op == "=":
            matchers = []
            for value in wanted:
                text, slash, mask = value.text.partition("/")
                if slash and mask and self._column == "mark":
                    # iptables' syntax: --mark 0x10/0xff.
                    at = value.start
                    matchers.append(
                        self._masked(
                            Value(mask, value.quoted, at + len(text) + 1, value.end),
                            Value(text, value.quoted, at, at + len(text)),
                        )
                    )
                else:
                    matchers.append(self.in_range(*self.interval(value)))
            return any_of(matchers)
        low, high = self.interval(wanted[0])
        if low != high:
            raise wanted[0].error(
                f"{op} takes one number; for a range, use {test.name.text}=8000-8100"
            )
        if op == "<":
            return self.in_range(0, low - 1)
        if op == "<=":
            return self.in_range(0, low)
        return self.in_range(low + (op == ">"), None)

    def in_range(self, low: int, high: int | None) -> Matcher:
        """Matches codes from `low` to `high`, inclusive; None: no upper limit."""

        def within(part: Part, context: Context) -> Array:
            codes = self.codes(part)
            most = int(np.iinfo(codes.dtype).max)
            end = most if high is None else min(high, most)
            if low > end:
                return no_rows(part, context)
            found: Array
            if low == end:
                found = codes == codes.dtype.type(low)
            elif end == most:
                found = codes >= codes.dtype.type(low)
            else:
                found = codes <= codes.dtype.type(end)
                if low:
                    found &= codes >= codes.dtype.type(low)
            return found

        return within

    def _masked(self, mask: Value, value: Value) -> Matcher:
        bits = values.number(mask, self._units)
        want = values.number(value, self._units)

        def masked(part: Part, context: Context) -> Array:
            codes = self.codes(part)
            most = int(np.iinfo(codes.dtype).max)
            if want > most:
                return no_rows(part, context)
            found: Array = (codes & codes.dtype.type(bits & most)) == codes.dtype.type(want)
            return found

        return masked


class Flow(Number):
    """The number of a flow, or one that it had before NAT was known."""

    title = "a flow"
    operators = EQUAL
    maskable = False

    def __init__(self) -> None:
        super().__init__("flow", lambda part: part.columns["flow"] != 0)

    def codes(self, part: Part) -> Array:
        return part.flows

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        numbers = np.array([self._number(value) for value in wanted], np.uint64)

        def of_flow(part: Part, context: Context) -> Array:
            flows, roots = part.flows, part.aliases.roots(numbers)
            found = np.zeros(len(part), bool)
            for number in {*numbers.tolist(), *roots.tolist()}:
                found |= flows == np.uint64(number)
            return found

        return of_flow

    def _number(self, value: Value) -> int:
        low, high = self.interval(value)
        if low != high or low > np.iinfo(np.uint64).max:
            raise value.error("not a flow, 0x…")
        return low


class Icmp(Number):
    """ICMP type and code: ``8/0``, or the type alone."""

    title = "an ICMP type/code"
    operators = EQUAL
    maskable = False

    def codes(self, part: Part) -> Array:
        codes = part.columns["icmp_type"].astype(np.uint16)
        codes <<= np.uint16(8)
        codes |= part.columns["icmp_code"]
        return codes

    def interval(self, value: Value) -> values.Interval:
        of, slash, code = value.text.partition("/")
        at = values.number(value, {}, of) << 8
        if not slash:
            return at, at + 255
        number = values.number(value, {}, code, len(of) + 1)
        if number > 255:
            raise value.error("ICMP codes go up to 255", len(of) + 1)
        return at + number, at + number


class Time(Kind):
    """Wall-clock time."""

    title = "a time"
    operators = ("=", "!=", *ORDER)

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        if len(wanted) > 1:
            raise wanted[1].error("only one time allowed here")
        value = wanted[0]
        local, utc = values.moment(value), values.moment(value, utc=True)

        def compared(part: Part, context: Context) -> Array:
            times = part.columns["time"]
            newest = context.newest
            if newest is None:
                newest = int(times.max()) if len(times) else 0
            moment = utc if context.utc else local
            limit = np.iinfo(np.int64).max
            begin = min(max(moment.begin(newest, context.utc), 0), limit)
            found: Array
            if op == "=":
                found = (times >= begin) & (times <= min(begin + moment.span - 1, limit))
            elif op == "<":
                found = times < begin
            elif op == "<=":
                found = times <= begin
            elif op == ">":
                found = times > begin
            else:
                found = times >= begin
            return found

        return compared


class Choice(Kind):
    """A small number with names: a table holds for each number whether it matches."""

    title = "one of few names"
    operators = EQUAL + SEARCH

    def __init__(
        self,
        codes: Callable[[Part], Array],
        texts: Sequence[str],
        *,
        listed: Sequence[str],
        also: dict[str, str] | None = None,
        known: HasValue | None = None,
    ) -> None:
        """A choice among `texts`.

        `codes`: the numbers of a part's rows; `texts`: name of each number, "" if it has
        none; `listed`: names offered; `also`: synonyms; `known`: rows with a value.
        """
        self._codes = codes
        self._texts = tuple(texts)
        self._listed = tuple(listed)
        self._also = also or {}
        self._has_value = known
        self._has = np.array([text != "" for text in texts])

    def choices(self) -> Sequence[str]:
        return self._listed

    def has_value(self, part: Part, context: Context) -> Array | None:
        known = None if self._has_value is None else self._has_value(part)
        if self._has.all():
            return known
        has = self._has[self._codes(part)]
        return has if known is None else has & known

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        if op == "~":
            search = compile_pattern(wanted[0], source)
            table = np.array([search(text) for text in self._texts])
        else:
            table = np.zeros(len(self._texts), bool)
            for value in wanted:
                table |= self.table(value, test)
        return self.by_table(table)

    def table(self, value: Value, test: Test) -> Array:
        """The codes that `value` names: bool of shape (codes,).  Raises QueryError if none."""
        word = value.text.lower()
        word = self._also.get(word, word).lower()
        table = np.array([text.lower() == word for text in self._texts])
        if not table.any():
            near = suggestion(value.text, (*self._listed, *self._also))
            if not near and len(self._listed) <= 8:
                near = f"; use one of {' '.join(self._listed)}"
            raise value.error(f"{test.name.text} cannot be {for_message(value.text)}{near}")
        return table

    def by_table(self, table: Array) -> Matcher:
        """Matches rows by their codes: `table` is bool of shape (codes,)."""
        single = int(np.flatnonzero(table)[0]) if table.sum() == 1 else None
        # -1 is the last entry of the table, which a comparison would miss.
        last = len(table) - 1

        def in_table(part: Part, context: Context) -> Array:
            codes = self._codes(part)
            if single is not None and single != last:
                same: Array = codes == codes.dtype.type(single)
                return same
            found: Array = table[codes]
            return found

        return in_table


class Flags(Choice):
    """TCP flags: a row matches if all named flags are set."""

    title = "TCP flags"
    maskable = True

    def __init__(
        self,
        texts: Sequence[str],
        bits: dict[str, int],
        codes: Callable[[Part], Array],
        known: HasValue,
    ) -> None:
        super().__init__(codes, texts, listed=tuple(bits), known=known)
        self._bits = bits

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        every = np.arange(len(self._texts))
        if test.mask is not None:
            mask, want = self._number(test.mask, test), self._number(wanted[0], test)
            return self.by_table((every & mask) == want)
        if test.op in ("=", "!="):
            # SYN,ACK is one value: a segment with both flags.
            table = np.ones(len(self._texts), bool)
            for value in wanted:
                table &= self.table(value, test)
            return self.by_table(table)
        return super().matcher(op, wanted, test, source)

    def table(self, value: Value, test: Test) -> Array:
        every = np.arange(len(self._texts))
        bits = self._number(value, test)
        table: Array = (every & bits) == bits if bits else every == 0
        return table

    def _number(self, value: Value, test: Test) -> int:
        text = value.text.upper()
        if text == "NONE":
            return 0
        if text[:1].isdigit():
            return values.number(value, {})
        bits = 0
        for name in text.replace("/", ",").replace("+", ",").split(","):
            if name not in self._bits:
                near = suggestion(name, self._bits) or f"; flags are {' '.join(self._bits)}"
                raise value.error(f"unknown TCP flag {for_message(name)}{near}")
            bits |= self._bits[name]
        return bits


def check_operator(kind: Kind, test: Test) -> None:
    """Raises QueryError if the kind does not support the test's operator or mask."""
    if test.mask is not None and not kind.maskable:
        raise QueryError(f"{test.name.text} is {kind.title} and has no bits to mask", test.at)
    if test.op not in kind.operators:
        supported = " ".join(op for op in kind.operators if op != "not in")
        message = (
            f"operator {test.op} not supported for {test.name.text} ({kind.title}); "
            f"use one of {supported}"
        )
        raise QueryError(message, test.at, len(test.op.split()[0]))
