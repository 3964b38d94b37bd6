# SPDX-License-Identifier: GPL-2.0-only
"""The texts of rules in what `nft -a list ruleset` prints.

nft prints names and comments as they are, so that a comment may look like rules,
chains or tables.  But whatever is really there is printed as well, in whole lines
that nothing can take away: a text is believed where the kernel's list leaves no
other reading, and is None otherwise.  Must not do I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.netfilter import NFT_FAMILY_NUMBERS

Texts = dict[tuple[int, str, str], list[str | None]]


# A table that belongs to a process is told with its name.
_TABLE: Final = re.compile(
    r"table (\w+) (.+?) \{(?: # progname .*)? # handle (\d+)(?: progname .*)?"
)
_CHAIN: Final = re.compile(r"\tchain (.+) \{ # handle \d+")
_HANDLE: Final = re.compile(r" # handle (\d+)\Z")
# A set's elements go over several lines; a comment's lines are its own.
_FOLD: Final = re.compile(r'("[^"]*")|\s*\n\s*')


class _Astray(Exception):
    """It cannot be told what belongs where."""


def parse(text: str, snapshot: Snapshot) -> Texts:
    """Of each chain of the snapshot that was found, a text for each rule, or None."""
    chains: dict[tuple[int, str, str], list[str]] = {}
    seen: set[tuple[int, str]] = set()
    spoilt: set[tuple[int, str]] = set()
    table: tuple[int, str] | None = None
    lines: list[str] | None = None  # of the chain
    try:
        for line in text.split("\n"):
            if line.startswith("table ") and (start := _TABLE.fullmatch(line)) is not None:
                table, lines = _table(start, snapshot), None
                if table in seen:
                    raise _Astray
                seen.add(table)
            elif line == "}":
                table, lines = None, None
            elif line == "\t}":
                lines = None
            elif (start := _CHAIN.fullmatch(line)) is not None:
                if table is None:
                    raise _Astray
                key = (*table, _name(start[1], snapshot, table))
                if lines is not None or key in chains or key not in snapshot.chains:
                    spoilt.add(table)
                lines = chains.setdefault(key, [])
            elif lines is not None:
                lines.append(line)
            elif _HANDLE.search(line) is not None and not _HANDLE.sub("", line).endswith("{"):
                # A rule where none can be.
                if table is None:
                    raise _Astray
                spoilt.add(table)
    except _Astray:
        return {}
    return {
        key: _texts(lines, snapshot.chains[key])
        for key, lines in chains.items()
        if key[:2] not in spoilt
    }


def _table(start: re.Match[str], snapshot: Snapshot) -> tuple[int, str]:
    for name in (start[2], _unquoted(start[2])):
        key = (NFT_FAMILY_NUMBERS.get(start[1], 0), name)
        info = snapshot.tables.get(key)
        if info is not None and info.handle == int(start[3]):
            return key
    raise _Astray


def _name(word: str, snapshot: Snapshot, table: tuple[int, str]) -> str:
    return word if (*table, word) in snapshot.chains else _unquoted(word)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word


def _texts(lines: list[str], info: ChainInfo) -> list[str | None]:
    """A text for each rule of the chain."""
    texts: list[str | None] = [None] * len(info.handles)
    # Before the rules: the comment, in as many lines as it has, and what hook it is for.
    head = 0 if info.hook is None else 1
    head += 0 if info.comment is None else info.comment.count("\n") + 1
    if info.hook is not None and not any(one.startswith("\t\ttype ") for one in lines[:head]):
        return texts
    if info.comment is not None and not "".join(lines[:1]).startswith('\t\tcomment "'):
        return texts
    said: list[tuple[int, str]] = []
    begun = head
    for at, line in enumerate(lines[head:], head):
        if (end := _HANDLE.search(line)) is not None:
            body = "\n".join((*lines[begun:at], line[: end.start()]))
            said.append((int(end[1]), body))
            begun = at + 1
    # Every rule's own end is there.  Where something looks like one, what is next to
    # it may begin or end elsewhere.
    often = Counter(handle for handle, _ in said)
    place = {handle: at for at, (handle, _) in enumerate(said)}
    for number, handle in enumerate(info.handles):
        at = place.get(handle, -1)
        if often[handle] != 1 or (number == 0) != (at == 0):
            continue
        before = info.handles[number - 1]
        if number == 0 or (often[before] == 1 and said[at - 1][0] == before):
            texts[number] = _text(said[at][1])
    return texts


def _text(body: str) -> str:
    folded = _FOLD.sub(lambda match: match[1] or " ", body.strip())
    return folded.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
