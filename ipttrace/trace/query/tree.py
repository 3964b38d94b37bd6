# SPDX-License-Identifier: GPL-2.0-only
"""What is written in a query: its tokens and its tree, before anything has a meaning.

The grammar is LALR(1); lark parses it without recursion, so that nesting is
limited by the check here and not by Python's stack.  lark is imported when the
first query is parsed.  Must not know fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from ipttrace.trace.query.error import QueryError, shown

MAX_TEXT: Final = 20_000
MAX_DEPTH: Final = 100

# What ends an unquoted word.
_STOP: Final = r"\s()\"'=!<>~&|,"

GRAMMAR: Final = rf"""
start: expr?
expr: conj (OR conj)*
conj: term (AND term)*
?term: NOT term           -> negated
     | BANG term          -> negated
     | LPAR expr RPAR     -> group
     | WORD               -> alone
     | STRING             -> alone
     | WORD (EQ | REL) values                  -> test
     | WORD (MATCH | UNMATCH) pattern          -> test
     | WORD IN (values | LPAR values RPAR)     -> test
     | WORD NOT IN (values | LPAR values RPAR) -> test
     | WORD AMP value EQ value                 -> masked
values: value (COMMA value)*
value: WORD | STRING
pattern: PATTERN | STRING

AND.2: /(?i:and)(?![^{_STOP}])|&&/
OR.2: /(?i:or)(?![^{_STOP}])|\|\|/
NOT.2: /(?i:not)(?![^{_STOP}])/
IN.2: /(?i:in)(?![^{_STOP}])/
EQ.3: /==?|!=/
REL.3: /[<>]=?/
MATCH.4: /=?~/
UNMATCH.4: /!~/
BANG.1: "!"
AMP.1: "&"
COMMA: ","
LPAR: "("
RPAR: ")"
STRING: /"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'/s
WORD: /[^{_STOP}]+/
PATTERN.-1: /(?:[^\s()"'&|]|&(?!&)|\|(?!\|))+/
%ignore /\s+/
"""

_PLAIN: Final = re.compile(r"[\w.:/@%+*?#;-]+")


@dataclass(frozen=True, slots=True)
class Value:
    """A word or a quoted text.  `text` is without quotes and escapes."""

    text: str
    quoted: bool
    start: int  # in the query
    end: int

    @property
    def is_none(self) -> bool:
        """Does it stand for what is not known?"""
        return not self.text or (not self.quoted and self.text.lower() == "none")

    def wrong(self, message: str, at: int = 0, length: int | None = None) -> QueryError:
        """An error about this value, or about `length` characters at `at` in it."""
        start = self.start + at
        return QueryError(message, start, self.end - start if length is None else length)

    def written(self) -> str:
        """As it stands in canonical text."""
        return "none" if self.is_none and not self.quoted else quote(self.text)


@dataclass(frozen=True, slots=True)
class Test:
    """``field op values``; `op` is one of = != < <= > >= ~ !~ in, "not in"."""

    name: Value
    op: str
    values: tuple[Value, ...]
    mask: Value | None = None  # of ``field&mask=value``
    at: int = 0  # of the operator
    depth: int = 0

    def written(self) -> str:
        listed = ",".join(value.written() for value in self.values)
        if self.mask is not None:
            return f"{self.name.text}&{self.mask.written()}{self.op}{listed}"
        blank = " " if self.op[-1] == "n" else ""
        return f"{self.name.text}{blank}{self.op}{blank}{listed}"


@dataclass(frozen=True, slots=True)
class Alone:
    """A word without an operator."""

    value: Value
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Not:
    part: Node
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Many:
    """`word`: and, or."""

    word: str
    parts: tuple[Node, ...]
    depth: int = 0


Node = Test | Alone | Not | Many


def quote(value: object) -> str:
    """`value` as a query has to write it; None is ``none``."""
    if value is None:
        return "none"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() != "none":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def written(node: Node, inside: bool = False) -> str:
    """Canonical text of a tree; `inside` a not or an and, parentheses where needed."""
    if isinstance(node, Test):
        return node.written()
    if isinstance(node, Alone):
        return node.value.written()
    if isinstance(node, Not):
        return f"not {written(node.part, True)}"
    text = f" {node.word} ".join(
        written(part, node.word == "and" or isinstance(part, Many)) for part in node.parts
    )
    return f"({text})" if inside else text


_UNESCAPE: Final = re.compile(r"\\([\\\"'])", re.S)


def unquoted(text: str) -> str:
    r"""The text in a quoted one: \\, \" and \' are escapes; other backslashes stay."""
    return _UNESCAPE.sub(r"\1", text[1:-1])


def source_offset(written_text: str, at: int) -> int:
    """Where in quoted `written_text` the character `at` of its content stands."""
    place, done = 1, 0
    while done < at and place < len(written_text) - 1:
        place += 2 if _UNESCAPE.match(written_text, place) else 1
        done += 1
    return place


class _Builder:
    """The parser's callbacks: each gets the children of one rule."""

    def start(self, children: list[Any]) -> Node | None:
        tree: Node | None = children[0] if children else None
        return tree

    def expr(self, children: list[Any]) -> Node:
        return _many("or", children[::2])

    def conj(self, children: list[Any]) -> Node:
        return _many("and", children[::2])

    def negated(self, children: list[Any]) -> Node:
        token, part = children
        return Not(part, _deeper(part, token))

    def group(self, children: list[Any]) -> Node:
        token, part, _ = children
        # Parentheses go, but nesting them counts even where they say nothing.
        node: Node = replace(part, depth=_deeper(part, token))
        return node

    def alone(self, children: list[Any]) -> Node:
        return Alone(_value(children[0]))

    def test(self, children: list[Any]) -> Node:
        name, first, *more = children
        values = next(child for child in more if isinstance(child, tuple))
        op = {"==": "=", "=~": "~"}.get(first.lower(), first.lower())
        if op == "not":
            op = "not in"
        return Test(_value(name), op, values, at=first.start_pos)

    def masked(self, children: list[Any]) -> Node:
        name, amp, mask, op, value = children
        return Test(_value(name), op.replace("==", "="), (value,), mask, amp.start_pos)

    def values(self, children: list[Any]) -> tuple[Value, ...]:
        return tuple(children[::2])

    def value(self, children: list[Any]) -> Value:
        return _value(children[0])

    def pattern(self, children: list[Any]) -> tuple[Value, ...]:
        return (_value(children[0]),)


def _value(token: Any) -> Value:
    quoted = token.type == "STRING"
    text = unquoted(str(token)) if quoted else str(token)
    return Value(text, quoted, token.start_pos, token.end_pos)


def _many(word: str, parts: list[Node]) -> Node:
    if len(parts) == 1:
        return parts[0]
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, Many) and part.word == word:
            flat += part.parts
        else:
            flat.append(part)
    return Many(word, tuple(flat), max(part.depth for part in parts))


def _deeper(part: Node, token: Any) -> int:
    depth = part.depth + 1
    if depth > MAX_DEPTH:
        raise QueryError(f"nested more than {MAX_DEPTH} deep", token.start_pos)
    return depth


@lru_cache(maxsize=1)
def parser() -> Any:
    """lark's parser of the grammar; made once."""
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr", lexer="contextual", transformer=_Builder())


def parse(text: str) -> Node | None:
    """The tree of `text`, None where nothing is written.  Raises QueryError."""
    if not text.strip():
        return None
    if len(text) > MAX_TEXT:
        raise QueryError(f"the query is longer than {MAX_TEXT} characters", MAX_TEXT, 1)
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    try:
        tree: Node | None = parser().parse(text)
    except UnexpectedToken as error:
        raise _unexpected(text, error) from None
    except UnexpectedCharacters as error:
        raise _unreadable(text, error.pos_in_stream or 0) from None
    return tree


_VALUES: Final = {"WORD", "STRING", "PATTERN"}
# Where it ends in a pattern without quotes, or after a mask.
_OPEN_PATTERN: Final = re.compile(r"~[^\s\"'()]+\Z")
_OPEN_MASK: Final = re.compile(rf"[^&]&\s*[^{_STOP}]+\Z")


def _unreadable(text: str, at: int) -> QueryError:
    if text[at] in "\"'":
        return QueryError("this quote is never closed", at)
    return QueryError(f"{shown(text[at])} means nothing here", at)


def _unexpected(text: str, error: Any) -> QueryError:
    """One line on the token that did not fit, from those that would have."""
    token, expected = error.token, set(error.expected)
    end = token.type == "$END"
    at = len(text.rstrip()) if end else token.start_pos
    length = 1 if end else max(len(token), 1)
    before = text[:at].rstrip()
    word = shown(str(token))
    if token.type == "LPAR" and ("PATTERN" in expected or _OPEN_PATTERN.search(text[:at])):
        message = "a pattern with ( or a blank in it has to stand in quotes"
    elif end and "RPAR" in expected and (opened := _open(text)) < len(text):
        message, at = "this ( is never closed", opened
    elif _OPEN_MASK.search(before):
        message = "= or != is missing: write mark&0xff=0x10"
    elif expected <= {"IN"}:
        message = "in is missing after not: write field not in values"
    elif expected <= _VALUES | {"LPAR"}:
        message = f"a value is missing after {shown(before.split()[-1])}"
    elif "WORD" in expected:
        message = (
            f"something is missing after {shown(before.split()[-1])}"
            if end
            else f"{word} cannot stand here: a field, a word or ( is missing"
        )
        if end and not before:
            message = "something is missing"
    elif token.type == "RPAR":
        message = "there is no ( for this )"
    elif token.type == "LPAR" or token.type in _VALUES or token.type in ("NOT", "BANG", "IN"):
        message = f"and, or, or an operator is missing before {word}"
    else:
        message = f"{word} cannot stand here"
    return QueryError(message, at, length)


def _open(text: str) -> int:
    """Where the innermost parenthesis that is never closed stands."""
    opened: list[int] = []
    for token in re.finditer(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[()]""", text, re.S):
        if token.group() == "(":
            opened.append(token.start())
        elif token.group() == ")" and opened:
            opened.pop()
    return opened[-1] if opened else len(text)


def leaves(node: Node) -> Iterator[Test | Alone]:
    """The tests and words of a tree, as they are written."""
    if isinstance(node, Test | Alone):
        yield node
    elif isinstance(node, Not):
        yield from leaves(node.part)
    else:
        for part in node.parts:
            yield from leaves(part)


Replace = Callable[[Test | Alone], Node]


def replaced(node: Node, by: Replace) -> Node:
    """The tree with each leaf replaced."""
    if isinstance(node, Test | Alone):
        return by(node)
    if isinstance(node, Not):
        return Not(replaced(node.part, by), node.depth)
    return Many(node.word, tuple(replaced(part, by) for part in node.parts), node.depth)
