# SPDX-License-Identifier: GPL-2.0-only
"""The guard's rules in words: `deny connect to 192.0.2.7 port 10000`.

A rule begins with deny or allow, and goes on up to the next one, a semicolon or the end of
the line; # begins a comment.  The first rule that a call meets decides; without any it is allowed.
Must not do I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ipttrace.guard import conditions
from ipttrace.guard.conditions import Ranges
from ipttrace.guard.layout import RULES
from ipttrace.text import escape

CALLS: Final = ("connect", "accept", "receive")
PROTOCOLS: Final = ("tcp", "udp")
_LONGEST: Final = 1 << 20  # characters of all rules
_SHOWN: Final = 160  # characters of a line with an error
_WORD: Final = re.compile(r'#[^\n]*|\n|;|,|"[^"\n]*"?|[^\s;,"#]+')
# What follows each word; where the value is a list.
_VALUES: Final[dict[str, Callable[[str], Any]]] = {
    "address": conditions.address,
    "port": conditions.port,
    "uid": conditions.user,
    "comm": conditions.comm,
    "container": conditions.container,
}
_WRONG_END: Final = {
    ("connect", "from"): "connect has no `from`: write `to` for the server's address",
    ("accept", "to"): "accept has no `to`: write `on` for this end, `from` for the other",
    ("receive", "to"): "receive has no `to`: write `on` for this end, `from` for the other",
}


class RuleError(Exception):
    """What is wrong with the rules, and where: a line for a person, and the line it is in."""

    def __init__(self, message: str, line: str = "", column: int = 0, number: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column  # from 0
        self.number = number  # of the line, from 1

    def lines(self) -> list[str]:
        """The message, the line, and a caret below the word."""
        if not self.line:
            return [self.message]
        begin = max(0, min(self.column - _SHOWN // 2, len(self.line) - _SHOWN))
        shown = self.line[begin : begin + _SHOWN]
        before = escape(shown[: self.column - begin])
        return [self.message, f"  {escape(shown)}", f"  {' ' * len(before)}^"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; of each condition None if it has none, else what is met.

    Ranges of numbers, both ends included: addresses of 128 bits, IPv4 mapped into IPv6.
    """

    text: str
    denies: bool
    call: str
    protocol: str | None = None
    remote: Ranges | None = None
    local: Ranges | None = None
    remote_port: Ranges | None = None
    local_port: Ranges | None = None
    uid: Ranges | None = None
    comm: Ranges | None = None
    containers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    begin: int  # in all of the text
    end: int
    quoted: bool = False


def parse(text: str) -> list[Rule]:
    """The rules of `text`, in order.  Raises RuleError."""
    if len(text) > _LONGEST:
        raise RuleError("the rules are longer than a million characters")
    rules: list[Rule] = []
    for words in _split(_words(text)):
        if len(rules) == RULES:
            raise _error(text, words[0], f"there are more than {RULES:,} rules")
        rules.append(_Parser(text, words).rule())
    if not rules:
        raise RuleError("there are no rules: write for example deny connect to 192.0.2.7 port 22")
    return rules


def _words(text: str) -> list[_Word]:
    found = []
    for match in _WORD.finditer(text):
        word = match[0]
        if word.startswith("#"):
            continue
        quoted = word.startswith('"')
        if quoted and (len(word) < 2 or not word.endswith('"')):
            raise _error(text, _Word(word, *match.span()), "the quotation mark is not closed")
        found.append(_Word(word[1:-1] if quoted else word, *match.span(), quoted))
    return found


def _split(words: list[_Word]) -> list[list[_Word]]:
    """The words of each rule."""
    rules: list[list[_Word]] = []
    open_ = False
    for word in words:
        if not word.quoted and word.text in ("\n", ";"):
            open_ = False
        elif not open_ or (not word.quoted and word.text in ("deny", "allow")):
            rules.append([word])
            open_ = True
        else:
            rules[-1].append(word)
    return rules


def _error(text: str, word: _Word, message: str) -> RuleError:
    begin = text.rfind("\n", 0, word.begin) + 1
    end = text.find("\n", word.begin)
    line = text[begin : len(text) if end < 0 else end]
    return RuleError(message, line, word.begin - begin, text.count("\n", 0, word.begin) + 1)


class _Parser:
    """Reads one rule."""

    def __init__(self, text: str, words: list[_Word]) -> None:
        self._text = text
        self._words = words
        self._at = 0
        self._found: dict[str, Any] = {}
        self._places: dict[str, _Word] = {}

    def rule(self) -> Rule:
        verb = self._next("deny or allow")
        if verb.text not in ("deny", "allow"):
            raise self._wrong(verb, "a rule begins with deny or allow")
        call = self._next("connect, accept or receive")
        if call.text not in CALLS:
            raise self._wrong(call, f"{_shown(call)} is none of connect, accept, receive")
        # Whose port an unqualified `port` is.
        end = {"connect": "remote", "accept": "local", "receive": ""}[call.text]
        while self._at < len(self._words):
            end = self._condition(call.text, end)
        self._check(call.text)
        words = self._words
        text = " ".join(self._text[words[0].begin : words[-1].end].split())
        return Rule(text, verb.text == "deny", call.text, **self._found)

    def _condition(self, call: str, end: str) -> str:
        """Reads one condition; returns the end that a `port` behind it is of."""
        word = self._next("a condition")
        name = "" if word.quoted else word.text
        if (call, name) in _WRONG_END:
            raise self._wrong(word, _WRONG_END[call, name])
        if name in PROTOCOLS:
            self._set("protocol", word, name)
        elif name in ("to", "from", "on"):
            end = "local" if name == "on" else "remote"
            # `on port 80`: the address is left out.
            if self._peek() != "port":
                self._set(end, word, self._list("address"))
        elif name == "port":
            if not end:
                message = "whose port? write `from … port 53` or `on port 53`"
                raise self._wrong(word, message)
            self._set(f"{end}_port", word, self._list("port"))
        elif name in ("uid", "comm"):
            self._set(name, word, self._list(name))
        elif name == "container":
            self._set("containers", word, self._list(name))
        else:
            raise self._wrong(word, f"{_shown(word)} is no condition of {call}")
        return end

    def _check(self, call: str) -> None:
        """Raises RuleError for conditions that cannot be known where the call is decided."""
        comm = self._places.get("comm")
        if comm is None:
            return
        if call == "accept" and {"remote", "remote_port"} & self._found.keys():
            message = "comm cannot be combined with `from`: which process will accept is not known"
            raise self._wrong(comm, f"{message} when the connection arrives")
        if call == "receive" and self._found.get("protocol") != "tcp":
            message = "which process will receive is not known when a datagram arrives"
            raise self._wrong(comm, f"{message}: add tcp, or take uid in place of comm")

    def _set(self, name: str, word: _Word, value: object) -> None:
        if name in self._found:
            raise self._wrong(word, f"{_shown(word)} is there twice: separate values by commas")
        self._found[name] = value
        self._places[name] = word

    def _list(self, kind: str) -> tuple[Any, ...]:
        """Values that are separated by commas."""
        found: list[Any] = []
        while True:
            word = self._next(
                "a name"
                if kind in ("comm", "container")
                else f"an {kind}"
                if kind == "address"
                else f"a {kind}"
            )
            try:
                value = _VALUES[kind](word.text)
            except ValueError as error:
                raise self._wrong(word, f"{_shown(word)} {error}") from None
            found += [value] if kind == "container" else value
            if self._peek() != ",":
                return tuple(found)
            self._at += 1

    def _peek(self) -> str:
        if self._at >= len(self._words) or self._words[self._at].quoted:
            return ""
        return self._words[self._at].text

    def _next(self, wanted: str) -> _Word:
        if self._at >= len(self._words):
            last = self._words[-1]
            behind = _Word("", last.end, last.end)
            raise self._wrong(behind, f"{wanted} is missing behind {_shown(last)}")
        self._at += 1
        return self._words[self._at - 1]

    def _wrong(self, word: _Word, message: str) -> RuleError:
        return _error(self._text, word, message)


def _shown(word: _Word) -> str:
    return f'"{escape(word.text[:40])}"'
