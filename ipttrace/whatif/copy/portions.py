# SPDX-License-Identifier: GPL-2.0-only
"""Rules in portions: without rights over the host, a socket's buffer limits one transaction.

The portions, loaded one after the other, have the effect of the whole.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# Characters of a portion, to be tried in this order: messages are some five to ten times as
# long, and the buffer has 400 KB by default.
SIZES: Final = (40_000, 16_000, 4_000)
_BLOCK: Final = re.compile(r"^\s*(table|chain|set|map|flowtable|counter|quota|limit|ct \w+)\b.*\{$")
_ELEMENTS: Final = re.compile(r"^\s*elements = \{")
_ELEMENT: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')


def iptables(text: str, portion: int) -> Iterator[str]:
    """Yields portions for iptables-restore; all but the first are for ``--noflush``.

    `portion`: characters.
    """
    table = ""
    heads: list[str] = []
    rules: list[str] = []
    size = 0
    begun = False
    for line in [*text.splitlines(), "*"]:
        if line.startswith("*"):
            if begun or heads or rules:
                yield _restored(table, heads, rules)
            table, heads, rules, size, begun = line, [], [], 0, line != "*"
        elif line.startswith(":"):
            heads.append(line)
        elif line.lstrip()[:1] in ("-", "["):
            rules.append(line)
            size += len(line)
        if size > portion:
            yield _restored(table, heads, rules)
            heads, rules, size, begun = [], [], 0, False


def _restored(table: str, heads: list[str], rules: list[str]) -> str:
    return "\n".join([table, *heads, *rules, "COMMIT", ""])


def nft(text: str, portion: int) -> Iterator[str]:
    """Yields portions for ``nft -f``: tables, chains, sets; then elements; then rules.

    `portion`: characters.
    """
    outline: list[str] = []
    filled: list[str] = []
    where: list[list[str]] = []
    for line in _whole_lines(text):
        plain = line.strip()
        if plain == "}" and where:
            where.pop()
            outline.append(line)
        elif _BLOCK.match(line):
            where.append(plain.rstrip("{").split())
            outline.append(line)
        elif len(where) == 2 and where[1][0] == "chain" and plain and not _is_head(plain):
            filled.append(f"add rule {_of(where)} {plain}")
        elif len(where) == 2 and where[1][0] in ("set", "map") and _ELEMENTS.match(line):
            filled += _elements(_of(where), plain, portion // 4)
        else:
            outline.append(line)
    yield "\n".join(outline) + "\n"
    some: list[str] = []
    size = 0
    # Elements before the rules that use them.
    for line in sorted(filled, key=lambda one: one.startswith("add rule")):
        some.append(line)
        size += len(line)
        if size > portion:
            yield "\n".join(some) + "\n"
            some, size = [], 0
    if some:
        yield "\n".join(some) + "\n"


def empty(text: str) -> str:
    """Returns what removes the tables of a text for nft again."""
    found = re.findall(r"^(?:add )?table (\w+ )?([^\s{]+)", text, re.MULTILINE)
    return "".join(f"table {one} {{}}\ndelete table {one}\n" for one in map("".join, found))


def _is_head(plain: str) -> bool:
    """Whether a line of a chain is about the chain itself."""
    return bool(re.match(r'type \w+ hook |comment "[^"]*"$|policy \w+;?$|devices? = |#', plain))


def _of(where: list[list[str]]) -> str:
    return " ".join([*where[0][1:], where[1][1]])


def _whole_lines(text: str) -> Iterator[str]:
    """The lines; braces that are closed on a later line, other than those of blocks, join lines."""
    held = ""
    for line in text.splitlines():
        joined = f"{held} {line.strip()}" if held else line
        if not held and _BLOCK.match(line):
            yield line
            continue
        plain = re.sub(r'"(?:[^"\\]|\\.)*"', "", joined)
        if plain.count("{") > plain.count("}"):
            held = joined
            continue
        held = ""
        yield joined
    if held:
        yield held


def _elements(of: str, plain: str, most: int) -> Iterator[str]:
    inside = plain[plain.index("{") + 1 : plain.rindex("}")]
    some: list[str] = []
    size = 0
    for element in (one.strip() for one in _ELEMENT.findall(inside)):
        if not element:
            continue
        some.append(element)
        size += len(element)
        if size > most:
            yield f"add element {of} {{ {', '.join(some)} }}"
            some, size = [], 0
    if some:
        yield f"add element {of} {{ {', '.join(some)} }}"
