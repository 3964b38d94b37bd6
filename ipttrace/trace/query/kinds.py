# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of fields: how a test of each becomes a numpy mask.

A kind says for which rows a value is known, and which rows a test hits; what
it says of rows whose value is not known does not count.  Must not loop over
rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.query import values
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.error import QueryError, shown, suggestion
from ipttrace.trace.query.patterns import compile_pattern
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.store import Part

Hit = Callable[[Part, Context], Array]
Known = Callable[[Part], Array]

EQUAL: Final = ("=", "!=", "in", "not in")
ORDER: Final = ("<", "<=", ">", ">=")
SEARCH: Final = ("~", "!~")


class Kind:
    """What fields of one type have in common."""

    title: ClassVar[str]
    operators: ClassVar[tuple[str, ...]]
    maskable: ClassVar[bool] = False
    # Does it hit only rows whose value is known?
    implied: ClassVar[bool] = False

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        """Rows for which `op` (one of = < <= > >= ~) holds for one of `wanted`.

        `wanted` has no ``none`` in it, and one value where `op` is not ``=``.
        Raises QueryError.
        """
        raise NotImplementedError

    def known(self, part: Part, context: Context) -> Array | None:
        """Rows that have a value; None: all."""
        return None

    def choices(self) -> Sequence[str]:
        """The values that there can be, where they are few."""
        return ()


def either(hits: Sequence[Hit]) -> Hit:
    """Rows that one of them hits."""
    if len(hits) == 1:
        return hits[0]

    def any_of(part: Part, context: Context) -> Array:
        found = hits[0](part, context)
        for hit in hits[1:]:
            found = found | hit(part, context)
        return found

    return any_of


def nothing(part: Part, context: Context) -> Array:
    """No row."""
    return np.zeros(len(part), bool)


class Number(Kind):
    """An unsigned integer column."""

    title = "a number"
    operators: ClassVar[tuple[str, ...]] = EQUAL + ORDER
    maskable = True

    def __init__(
        self, column: str, known: Known | None = None, units: dict[str, int] | None = None
    ) -> None:
        self._column = column
        self._known = known
        self._units = units or {}

    def known(self, part: Part, context: Context) -> Array | None:
        return None if self._known is None else self._known(part)

    def codes(self, part: Part) -> Array:
        """What is compared: unsigned integers, shape (n,)."""
        return part.columns[self._column]

    def interval(self, value: Value) -> values.Interval:
        return values.interval(value, self._units)

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        if test.mask is not None:
            return self._masked(test.mask, wanted[0])
        if op == "=":
            hits = []
            for value in wanted:
                text, slash, mask = value.text.partition("/")
                if slash and mask and self._column == "mark":
                    # As iptables writes it: --mark 0x10/0xff.
                    at = value.start
                    hits.append(
                        self._masked(
                            Value(mask, value.quoted, at + len(text) + 1, value.end),
                            Value(text, value.quoted, at, at + len(text)),
                        )
                    )
                else:
                    hits.append(self.between(*self.interval(value)))
            return either(hits)
        low, high = self.interval(wanted[0])
        if low != high:
            raise wanted[0].wrong(f"a range does not fit {op}: write {test.name.text}=8000-8100")
        if op == "<":
            return self.between(0, low - 1)
        if op == "<=":
            return self.between(0, low)
        return self.between(low + (op == ">"), None)

    def between(self, low: int, high: int | None) -> Hit:
        """Rows from `low` to `high`, both included; None: without end."""

        def within(part: Part, context: Context) -> Array:
            codes = self.codes(part)
            most = int(np.iinfo(codes.dtype).max)
            end = most if high is None else min(high, most)
            if low > end:
                return nothing(part, context)
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

    def _masked(self, mask: Value, value: Value) -> Hit:
        bits = values.number(mask, self._units)
        want = values.number(value, self._units)

        def masked(part: Part, context: Context) -> Array:
            codes = self.codes(part)
            most = int(np.iinfo(codes.dtype).max)
            if want > most:
                return nothing(part, context)
            found: Array = (codes & codes.dtype.type(bits & most)) == codes.dtype.type(want)
            return found

        return masked


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
            raise value.wrong("an ICMP code is at most 255", len(of) + 1)
        return at + number, at + number


class Time(Kind):
    """Wall clock."""

    title = "a time"
    operators = ("=", "!=", *ORDER)

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        if len(wanted) > 1:
            raise wanted[1].wrong("one time is enough here")
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
    """A small number with names: a table says for each number whether it is meant."""

    title = "one of few names"
    operators = EQUAL + SEARCH

    def __init__(
        self,
        codes: Callable[[Part], Array],
        texts: Sequence[str],
        *,
        listed: Sequence[str],
        also: dict[str, str] | None = None,
        known: Known | None = None,
    ) -> None:
        """`texts`: of each code, empty where it means nothing; `listed`: those to choose
        from; `also`: other words for them."""
        self._codes = codes
        self._texts = tuple(texts)
        self._listed = tuple(listed)
        self._also = also or {}
        self._known = known
        self._has = np.array([text != "" for text in texts])

    def choices(self) -> Sequence[str]:
        return self._listed

    def known(self, part: Part, context: Context) -> Array | None:
        known = None if self._known is None else self._known(part)
        if self._has.all():
            return known
        has = self._has[self._codes(part)]
        return has if known is None else has & known

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        if op == "~":
            search = compile_pattern(wanted[0], source)
            table = np.array([search(text) for text in self._texts])
        else:
            table = np.zeros(len(self._texts), bool)
            for value in wanted:
                table |= self.table(value, test)
        return self.looked_up(table)

    def table(self, value: Value, test: Test) -> Array:
        """Which codes `value` means.  Raises QueryError when none."""
        word = value.text.lower()
        word = self._also.get(word, word).lower()
        table = np.array([text.lower() == word for text in self._texts])
        if not table.any():
            near = suggestion(value.text, (*self._listed, *self._also))
            if not near and len(self._listed) <= 8:
                near = f": one of {' '.join(self._listed)}"
            raise value.wrong(f"{test.name.text} is never {shown(value.text)}{near}")
        return table

    def looked_up(self, table: Array) -> Hit:
        single = int(np.flatnonzero(table)[0]) if table.sum() == 1 else None
        # Negative codes count from the end, in the table too.
        last = len(table) - 1

        def hit(part: Part, context: Context) -> Array:
            codes = self._codes(part)
            if single is not None and single != last:
                same: Array = codes == codes.dtype.type(single)
                return same
            found: Array = table[codes]
            return found

        return hit


class Flags(Choice):
    """TCP flags: a row is hit when it has all that are named."""

    title = "TCP flags"
    maskable = True

    def __init__(
        self,
        texts: Sequence[str],
        bits: dict[str, int],
        codes: Callable[[Part], Array],
        known: Known,
    ) -> None:
        super().__init__(codes, texts, listed=tuple(bits), known=known)
        self._bits = bits

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        every = np.arange(len(self._texts))
        if test.mask is not None:
            mask, want = self._number(test.mask, test), self._number(wanted[0], test)
            return self.looked_up((every & mask) == want)
        if test.op in ("=", "!="):
            # SYN,ACK is one value here: a segment with both.
            table = np.ones(len(self._texts), bool)
            for value in wanted:
                table &= self.table(value, test)
            return self.looked_up(table)
        return super().hit(op, wanted, test, source)

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
                near = suggestion(name, self._bits) or f": flags are {' '.join(self._bits)}"
                raise value.wrong(f"no TCP flag is called {shown(name)}{near}")
            bits |= self._bits[name]
        return bits


def fitting(kind: Kind, test: Test) -> None:
    """Raises QueryError where the operator is none of this kind."""
    if test.mask is not None and not kind.maskable:
        raise QueryError(f"{test.name.text} is {kind.title}: it has no bits to mask", test.at)
    if test.op not in kind.operators:
        fit = " ".join(kind.operators).replace("not in", "").replace("  ", " ").strip()
        message = f"{test.name.text} is {kind.title}: {test.op} does not fit, but one of {fit}"
        raise QueryError(message, test.at, len(test.op.split()[0]))
