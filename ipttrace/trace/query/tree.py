# SPDX-License-Identifier: GPL-2.0-only
"""The grammar of queries: text to a syntax tree, and a tree to canonical text.

The grammar is LALR(1).  lark parses it without recursion, so the depth of nesting is
limited by a check here and not by Python's stack; lark is imported on the first query.
Must not know fields or the meaning of words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from ipttrace.trace.query.error import QueryError, for_message

MAX_TEXT: Final = 20_000
MAX_DEPTH: Final = 100

# Characters that end a word without quotes.
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
    """A word or a quoted string.  `text` is without quotes and escapes."""

    text: str
    quoted: bool
    start: int  # position in the query
    end: int

    @property
    def is_none(self) -> bool:
        """Whether it stands for an unknown value: ``none``, or empty."""
        return not self.text or (not self.quoted and self.text.lower() == "none")

    def error(self, message: str, at: int = 0, length: int | None = None) -> QueryError:
        """An error at this value, or at `length` of its characters from `at` on."""
        start = self.start + at
        return QueryError(message, start, self.end - start if length is None else length)

    def to_text(self) -> str:
        """Canonical text."""
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

    def to_text(self) -> str:
        listed = ",".join(value.to_text() for value in self.values)
        if self.mask is not None:
            return f"{self.name.text}&{self.mask.to_text()}{self.op}{listed}"
        blank = " " if self.op[-1] == "n" else ""
        return f"{self.name.text}{blank}{self.op}{blank}{listed}"


@dataclass(frozen=True, slots=True)
class BareWord:
    """A word without an operator, as drop or 10.1.2.3."""

    value: Value
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Not:
    """``not part``."""

    part: Node
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Junction:
    """Parts joined by and, or by or."""

    word: str  # "and" or "or"
    parts: tuple[Node, ...]
    depth: int = 0


Node = Test | BareWord | Not | Junction


def quote(value: object) -> str:
    """`value` as text of a query, quoted if necessary; None is ``none``."""
    if value is None:
        return "none"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() != "none":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def to_text(node: Node, nested: bool = False) -> str:
    """Canonical text of a tree; `nested`: inside not or and, with parentheses if needed."""
    if isinstance(node, Test):
        return node.to_text()
    if isinstance(node, BareWord):
        return node.value.to_text()
    if isinstance(node, Not):
        return f"not {to_text(node.part, True)}"
    text = f" {node.word} ".join(
        to_text(part, node.word == "and" or isinstance(part, Junction)) for part in node.parts
    )
    return f"({text})" if nested else text


_UNESCAPE: Final = re.compile(r"\\([\\\"'])", re.S)


def unquote(text: str) -> str:
    r"""The text of a quoted string: \\, \" and \' are escapes; other backslashes stay."""
    return _UNESCAPE.sub(r"\1", text[1:-1])


def source_offset(quoted: str, at: int) -> int:
    """Position in a quoted string of the character `at` of its text."""
    position, done = 1, 0
    while done < at and position < len(quoted) - 1:
        position += 2 if _UNESCAPE.match(quoted, position) else 1
        done += 1
    return position


class _Builder:
    """lark's transformer: a method for each rule of the grammar, called with its children."""

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
        # The parentheses are dropped, but count for the depth even if redundant.
        node: Node = replace(part, depth=_deeper(part, token))
        return node

    def alone(self, children: list[Any]) -> Node:
        return BareWord(_value(children[0]))

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
    text = unquote(str(token)) if quoted else str(token)
    return Value(text, quoted, token.start_pos, token.end_pos)


def _many(word: str, parts: list[Node]) -> Node:
    if len(parts) == 1:
        return parts[0]
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, Junction) and part.word == word:
            flat += part.parts
        else:
            flat.append(part)
    return Junction(word, tuple(flat), max(part.depth for part in parts))


def _deeper(part: Node, token: Any) -> int:
    depth = part.depth + 1
    if depth > MAX_DEPTH:
        raise QueryError(f"nested more than {MAX_DEPTH} levels deep", token.start_pos)
    return depth


@lru_cache(maxsize=1)
def parser() -> Any:
    """lark's parser of the grammar, made once."""
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr", lexer="contextual", transformer=_Builder())


def parse(text: str) -> Node | None:
    """The tree of `text`; None if it is blank.  Raises QueryError."""
    if not text.strip():
        return None
    if len(text) > MAX_TEXT:
        raise QueryError(f"query longer than {MAX_TEXT} characters", MAX_TEXT, 1)
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    try:
        tree: Node | None = parser().parse(text)
    except UnexpectedToken as error:
        raise _unexpected(text, error) from None
    except UnexpectedCharacters as error:
        raise _unreadable(text, error.pos_in_stream or 0) from None
    return tree


_VALUES: Final = {"WORD", "STRING", "PATTERN"}
# Text that ends in a pattern without quotes, or in a mask.
_OPEN_PATTERN: Final = re.compile(r"~[^\s\"'()]+\Z")
_OPEN_MASK: Final = re.compile(rf"[^&]&\s*[^{_STOP}]+\Z")


def _unreadable(text: str, at: int) -> QueryError:
    if text[at] in "\"'":
        return QueryError("closing quote missing", at)
    return QueryError(f"unexpected character {for_message(text[at])}", at)


def _unexpected(text: str, error: Any) -> QueryError:
    """One line about an unexpected token, by the tokens that were expected."""
    token, expected = error.token, set(error.expected)
    end = token.type == "$END"
    at = len(text.rstrip()) if end else token.start_pos
    length = 1 if end else max(len(token), 1)
    before = text[:at].rstrip()
    word = for_message(str(token))
    if token.type == "LPAR" and ("PATTERN" in expected or _OPEN_PATTERN.search(text[:at])):
        message = "quotes missing around a pattern that contains ( or a space"
    elif end and "RPAR" in expected and (opened := _open(text)) < len(text):
        message, at = "closing ) missing", opened
    elif _OPEN_MASK.search(before):
        message = "= or != missing, as in mark&0xff=0x10"
    elif expected <= {"IN"}:
        message = "in missing after not, as in dport not in 80,443"
    elif expected <= _VALUES | {"LPAR"}:
        message = f"value missing after {for_message(before.split()[-1])}"
    elif "WORD" in expected:
        message = (
            f"incomplete after {for_message(before.split()[-1])}"
            if end
            else f"unexpected {word}; a field, a word or ( is missing before it"
        )
        if end and not before:
            message = "incomplete query"
    elif token.type == "RPAR":
        message = "no matching ( for this )"
    elif token.type == "LPAR" or token.type in _VALUES or token.type in ("NOT", "BANG", "IN"):
        message = _without_operator(before, str(token))
    else:
        message = f"unexpected {word}"
    return QueryError(message, at, length)


# Fields by tcpdump's words for them.
_TCPDUMP: Final = {"host": "addr", "net": "addr", "port": "port", "proto": "proto"}


def _without_operator(before: str, value: str) -> str:
    """What is wrong with a value behind these words: "port 443" is meant as in tcpdump."""
    word = before.split()[-1].lower() if before else ""
    if word == "no" and value.upper() in ("ARP", "ND"):
        return f"no and {value.upper()} are one word: no_{value.lower()}"  # as the screen shows it
    name = _TCPDUMP.get(word)
    if name == "addr" and "." not in value and ":" not in value:
        name = word if word == "host" else None  # a host's name
    if name is not None:
        return f"operator missing: {name}={for_message(value)}"
    return f"and, or, or an operator missing before {for_message(value)}"


def _open(text: str) -> int:
    """Position of the innermost parenthesis that is not closed; the length if all are."""
    opened: list[int] = []
    for token in re.finditer(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[()]""", text, re.S):
        if token.group() == "(":
            opened.append(token.start())
        elif token.group() == ")" and opened:
            opened.pop()
    return opened[-1] if opened else len(text)


def map_leaves(node: Node, by: Callable[[Test | BareWord], Node]) -> Node:
    """The tree with each leaf replaced by `by(leaf)`."""
    if isinstance(node, Test | BareWord):
        return by(node)
    if isinstance(node, Not):
        return Not(map_leaves(node.part, by), node.depth)
    return Junction(node.word, tuple(map_leaves(part, by) for part in node.parts), node.depth)
