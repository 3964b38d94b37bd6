# SPDX-License-Identifier: GPL-2.0-only
"""What could come next where a query is being written.

The parser itself says what kind of thing fits; fields and the values that rows
have make words of it.  Must not loop over rows in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import HOOKS, TABLES
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.fields import ALIASES, fields
from ipttrace.trace.query.kinds import SEARCH
from ipttrace.trace.query.tree import MAX_TEXT, parser, quote
from ipttrace.trace.query.words import WORDS, means
from ipttrace.trace.store import Part
from ipttrace.trace.store.names import Names

LIMIT: Final = 50

# Fields whose values are names that came, and which columns have them.
_NAMED: Final = {
    "table": ("table",),
    "chain": ("chain",),
    "comm": ("comm",),
    "in": ("in",),
    "out": ("out",),
    "dev": ("in", "out"),
}
# Where nobody knows better.
_USUAL: Final[dict[str, Sequence[str]]] = {"table": TABLES, "chain": HOOKS}
_KEYWORDS: Final = {
    "AND": ("and", "both have to hold"),
    "OR": ("or", "one has to hold"),
    "RPAR": (")", "closes the parenthesis"),
}
_OPERATORS: Final = {
    "=": "is",
    "!=": "is known and is not",
    "<": "less than",
    "<=": "at most",
    ">": "more than",
    ">=": "at least",
    "~": "has the regular expression in it",
    "!~": "has it not",
    "in": "is one of, or in a network or range",
    "not in": "is none of",
}
_SPECIAL: Final = re.compile(r"[.^$*+?{}\[\]\\|()]")
_TAIL: Final = re.compile(r"[^\s()\"'=!<>~&|,]*\Z")
_HEAD: Final = re.compile(r"[^\s()\"'=!<>~&|,]*")


@dataclass(frozen=True, slots=True)
class Completion:
    """`text` in the place of what stands from `start` to `end` (in characters)."""

    text: str
    start: int
    end: int
    help: str


def complete(text: str, cursor: int, context: Context) -> list[Completion]:
    """What could stand at the cursor, the likeliest first; never raises QueryError."""
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
    state = _State(text[:start], start, end)
    found = _ranked(state.completions(context), word)
    if state.begins and word.lower() in {*fields(), *ALIASES}:
        # The field is whole: what could come right after it.
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


class _State:
    """The place of the cursor: the parser after all that stands before the word."""

    def __init__(self, before: str, start: int, end: int) -> None:
        self._start, self._end = start, end
        self._tokens: list[Any] = []
        self._fits: set[str] = set()
        interactive = parser().parse_interactive(before)
        try:
            self._tokens = interactive.exhaust_lexer()
            self._fits = interactive.accepts()
        except Exception:
            # Something before the cursor is wrong; the error under it says what.
            return

    @property
    def begins(self) -> bool:
        """Is it the place of a field?"""
        return {"WORD", "NOT"} <= self._fits

    def _made(self, text: str, help: str) -> Completion:
        return Completion(text, self._start, self._end, help)

    def completions(self, context: Context) -> Iterator[Completion]:
        fits = self._fits
        if self.begins:
            yield from self._begin()
        elif fits & {"WORD", "PATTERN"}:
            yield from self._values(context)
        if "EQ" in fits and "IN" in fits:
            yield from self._operators()
        elif "EQ" in fits:
            yield self._made("=", "is, under the mask")
        elif "IN" in fits:
            yield self._made("in", _OPERATORS["in"])
        if "EQ" in fits and "IN" in fits and not means(str(self._tokens[-1])):
            return  # a word that says nothing yet
        for kind, (text, help) in _KEYWORDS.items():
            if kind in fits:
                yield self._made(text, help)

    def _begin(self) -> Iterator[Completion]:
        for field in fields().values():
            yield self._made(field.name, field.help)
        for word, (name, op, value) in WORDS.items():
            yield self._made(word, f"{name}{op}{value}")
        yield self._made("not", "takes what the rest does not")

    def _field(self) -> str:
        """The field whose operator or value is being written."""
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
            yield self._made("none", "not known, or there is none")


def _operators_of(name: str) -> Iterator[tuple[str, str]]:
    field = fields().get(ALIASES.get(name.lower(), name.lower()))
    if field is not None:
        for op in field.kinds[0].operators:
            yield op, _OPERATORS[op]
        if field.kinds[0].maskable:
            yield "&", "bits: mark&0xff=0x10"


def _values_of(name: str, context: Context) -> Iterator[tuple[str, str]]:
    if name == "netns":
        for (_, inode), text in context.netns.items():
            yield text, str(inode)
    elif name == "host":
        for text in context.hosts:
            yield text, ""
    of = "chain" if name == "path" else name
    for text in context.values.get(of, _USUAL.get(of, ())):
        yield text, name


def values_of(parts: Iterable[Part], names: Names) -> dict[str, Sequence[str]]:
    """For Context.values: the tables, chains, devices and processes of these rows."""
    seen: dict[str, set[int]] = {column: set() for of in _NAMED.values() for column in of}
    for part in parts:
        for column, ids in seen.items():
            # Where ids are few numbers, counting is faster than sorting.
            ids.update(np.flatnonzero(np.bincount(part.columns[column])).tolist())
        first, last = (int(part.begins[0]), int(part.ends[-1])) if len(part) else (0, 0)
        seen["chain"].update(np.unique(part.steps["chain"][first:last]).tolist())
    return {
        name: sorted({names.text(one) for column in of for one in seen[column] if one})
        for name, of in _NAMED.items()
    }
