# SPDX-License-Identifier: GPL-2.0-only
"""Completions at the cursor in a query that is being typed.

The parser reports which kinds of tokens may come next; the fields and the values of
rows turn them into words.  Must not loop over rows in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import IP_HOOKS, TABLES
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.fields import ALIASES, fields
from ipttrace.trace.query.kinds import SEARCH
from ipttrace.trace.query.tree import MAX_TEXT, parser, quote
from ipttrace.trace.query.words import WORDS, is_word
from ipttrace.trace.store import Names, Part

LIMIT: Final = 50

# Fields whose values are names, and the columns that hold them.
_NAMED: Final = {
    "table": ("table",),
    "chain": ("chain",),
    "comm": ("comm",),
    "in": ("in",),
    "out": ("out",),
    "dev": ("in", "out"),
    "physin": ("physin",),
    "physout": ("physout",),
    "owner_comm": ("owner_comm",),
    "container": ("container",),
}
# Offered if no rows are known.
_USUAL: Final[dict[str, Sequence[str]]] = {"table": TABLES, "chain": IP_HOOKS}
# The fields that most queries begin with: offered first.
_COMMON: Final = ("verdict", "src", "dst", "port", "proto", "netns", "table", "chain")
_KEYWORDS: Final = {
    "AND": ("and", "both must match"),
    "OR": ("or", "at least one must match"),
    "RPAR": (")", "closes the parenthesis"),
}
_OPERATORS: Final = {
    "=": "equals",
    "!=": "is known and differs",
    "<": "less than",
    "<=": "at most",
    ">": "more than",
    ">=": "at least",
    "~": "matches the regular expression",
    "!~": "does not match the regular expression",
    "in": "is one of, or in a network or range",
    "not in": "is none of them",
}
_SPECIAL: Final = re.compile(r"[.^$*+?{}\[\]\\|()]")
_TAIL: Final = re.compile(r"[^\s()\"'=!<>~&|,]*\Z")
_HEAD: Final = re.compile(r"[^\s()\"'=!<>~&|,]*")


@dataclass(frozen=True, slots=True)
class Completion:
    """Replaces the characters from `start` to `end` with `text`."""

    text: str
    start: int
    end: int
    help: str


def complete(text: str, cursor: int, context: Context) -> list[Completion]:
    """Completions at `cursor`, the likeliest first; never raises QueryError."""
    cursor = max(0, min(cursor, len(text)))
    if len(text) > MAX_TEXT:
        return []
    quote_at = _open_quote(text[:cursor])
    if quote_at is None:
        begun = _TAIL.search(text[:cursor])
        start = begun.start() if begun else cursor
        after = _HEAD.match(text, cursor)
        end = after.end() if after else cursor
        word = text[start:cursor]
    else:
        start, end = quote_at, cursor
        word = text[quote_at + 1 : cursor]
    state = _Position(text[:start], start, end)
    found = _ranked(state.completions(context), word)
    if state.begins_test and word.lower() in {*fields(), *ALIASES}:
        # The field's name is complete: its operators may follow.
        found += [Completion(one, end, end, text) for one, text in _operators_of(word)]
    return found


def _open_quote(text: str) -> int | None:
    at = 0
    for done in re.finditer(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", text, re.S):
        at = done.end()
    left = re.search("[\"']", text[at:])
    return at + left.start() if left else None


def _ranked(found: Iterable[Completion], word: str) -> list[Completion]:
    lower = word.lower()
    first, later = [], []
    for one in found:
        bare = one.text.strip("\"'").lower()
        if bare.startswith(lower):
            first.append(one)
        elif len(lower) > 1 and lower in bare:
            later.append(one)
    unique: dict[str, Completion] = {}
    for one in (*first, *later):
        unique.setdefault(one.text, one)
    return list(unique.values())[:LIMIT]


class _Position:
    """The parser's state before the word at the cursor."""

    def __init__(self, before: str, start: int, end: int) -> None:
        self._start, self._end = start, end
        self._tokens: list[Any] = []
        self._accepted: set[str] = set()
        interactive = parser().parse_interactive(before)
        try:
            self._tokens = interactive.exhaust_lexer()
            self._accepted = interactive.accepts()
        except Exception:
            # An error before the cursor, which the prompt shows: nothing to offer.
            return

    @property
    def begins_test(self) -> bool:
        """Whether a field may stand here."""
        return {"WORD", "NOT"} <= self._accepted

    def _made(self, text: str, help: str) -> Completion:
        return Completion(text, self._start, self._end, help)

    def completions(self, context: Context) -> Iterator[Completion]:
        accepted = self._accepted
        if self.begins_test:
            yield from self._fields_and_words()
        elif accepted & {"WORD", "PATTERN"}:
            yield from self._values(context)
        if "EQ" in accepted and "IN" in accepted:
            yield from self._operators()
        elif "EQ" in accepted:
            yield self._made("=", "equals, under the mask")
        elif "IN" in accepted:
            yield self._made("in", _OPERATORS["in"])
        if "EQ" in accepted and "IN" in accepted and not is_word(str(self._tokens[-1])):
            return  # an incomplete word
        for kind, (text, help) in _KEYWORDS.items():
            if kind in accepted:
                yield self._made(text, help)

    def _fields_and_words(self) -> Iterator[Completion]:
        known = fields()
        for name in dict.fromkeys((*_COMMON, *known)):
            yield self._made(known[name].name, known[name].help)
        for word, (name, op, value) in WORDS.items():
            yield self._made(word, f"{name}{op}{value}")
        yield self._made("not", "negates the next test")

    def _field(self) -> str:
        """The field whose operator or value is being typed."""
        words = [token for token in self._tokens if token.type == "WORD"]
        at = len(self._tokens) - 1
        while at >= 0 and self._tokens[at].type in ("COMMA", "WORD", "STRING", "LPAR"):
            at -= 1
        while at >= 0 and self._tokens[at].type != "WORD":
            at -= 1
        token = self._tokens[at] if at >= 0 else (words[-1] if words else "")
        name = str(token).lower()
        return ALIASES.get(name, name)

    def _operators(self) -> Iterator[Completion]:
        for op, help in _operators_of(str(self._tokens[-1])):
            yield self._made(op, help)

    def _values(self, context: Context) -> Iterator[Completion]:
        name = self._field()
        field = fields().get(name)
        if field is None:
            return
        last = str(self._tokens[-1]) if self._tokens else ""
        for text, help in _values_of(name, context):
            literal = _SPECIAL.sub(r"\\\g<0>", text) if last in SEARCH else text
            yield self._made(quote(literal), help)
        kind = field.kinds[0]
        for choice in kind.choices():
            yield self._made(quote(choice), field.help)
        if last not in (*SEARCH, "<", "<=", ">", ">=", "&"):
            yield self._made("none", "unknown or absent")


def _operators_of(name: str) -> Iterator[tuple[str, str]]:
    field = fields().get(ALIASES.get(name.lower(), name.lower()))
    if field is not None:
        for op in field.kinds[0].operators:
            yield op, _OPERATORS[op]
        if field.kinds[0].maskable:
            yield "&", "bits: mark&0xff=0x10"


def _values_of(name: str, context: Context) -> Iterator[tuple[str, str]]:
    if name in ("netns", "netns_name"):
        for (_, inode), text in context.netns.items():
            yield text, str(inode)
    elif name == "host":
        for text in context.hosts:
            yield text, ""
    name = "chain" if name == "path" else name
    for text in context.values.get(name, _USUAL.get(name, ())):
        yield text, name


def values_of(parts: Iterable[Part], names: Names) -> dict[str, Sequence[str]]:
    """Tables, chains, devices and processes of these rows, by field, for Context.values."""
    seen: dict[str, set[int]] = {column: set() for of in _NAMED.values() for column in of}
    for part in parts:
        for column, ids in seen.items():
            # Ids are small numbers: counting them is faster than sorting.
            ids.update(np.flatnonzero(np.bincount(part.columns[column])).tolist())
        first, last = (int(part.begins[0]), int(part.ends[-1])) if len(part) else (0, 0)
        seen["chain"].update(np.unique(part.steps["chain"][first:last]).tolist())
    return {
        name: sorted({names.text(one) for column in of for one in seen[column] if one})
        for name, of in _NAMED.items()
    }
