# SPDX-License-Identifier: GPL-2.0-only
"""The text of each rule in what `nft -a list ruleset` prints.

nft does not escape names and comments, so that a comment may look like rules, chains or
tables.  But real ones are always printed as well, in complete lines that no comment can
remove: a rule gets a text only if the kernel's list leaves no other reading, otherwise
None.  Must not do I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.netfilter import NFT_FAMILY_NUMBERS

Texts = dict[tuple[int, str, str], list[str | None]]
"""A text for each rule, None if unknown, by family (NFPROTO_*), table and chain."""

# nft prints the name of the process that owns a table.
_TABLE: Final = re.compile(
    r"table (\w+) (.+?) \{(?: # progname .*)? # handle (\d+)(?: progname .*)?"
)
_CHAIN: Final = re.compile(r"\tchain (.+) \{ # handle \d+")
_HANDLE: Final = re.compile(r" # handle (\d+)\Z")
# nft breaks a set's elements into lines; line breaks in quotes belong to a comment.
_FOLD: Final = re.compile(r'("[^"]*")|\s*\n\s*')


class _Ambiguous(Exception):
    """Which table a line belongs to cannot be determined."""


def parse(text: str, snapshot: Snapshot) -> Texts:
    """Returns the texts of each chain of the snapshot that was found.

    `text`: what nft printed, of the ruleset in `snapshot`.
    """
    chains: dict[tuple[int, str, str], list[str]] = {}
    seen: set[tuple[int, str]] = set()
    ambiguous: set[tuple[int, str]] = set()  # tables whose texts are not used
    table: tuple[int, str] | None = None
    lines: list[str] | None = None  # of the chain that has begun
    try:
        for line in text.split("\n"):
            if line.startswith("table ") and (start := _TABLE.fullmatch(line)) is not None:
                table, lines = _table(start, snapshot), None
                if table in seen:
                    raise _Ambiguous
                seen.add(table)
            elif line == "}":
                table, lines = None, None
            elif line == "\t}":
                lines = None
            elif (start := _CHAIN.fullmatch(line)) is not None:
                if table is None:
                    raise _Ambiguous
                key = (*table, _name(start[1], snapshot, table))
                if lines is not None or key in chains or key not in snapshot.chains:
                    ambiguous.add(table)
                lines = chains.setdefault(key, [])
            elif lines is not None:
                lines.append(line)
            elif _HANDLE.search(line) is not None and not _HANDLE.sub("", line).endswith("{"):
                # A rule outside of a chain.
                if table is None:
                    raise _Ambiguous
                ambiguous.add(table)
    except _Ambiguous:
        return {}
    return {
        key: _texts(lines, snapshot.chains[key])
        for key, lines in chains.items()
        if key[:2] not in ambiguous
    }


def _table(start: re.Match[str], snapshot: Snapshot) -> tuple[int, str]:
    for name in (start[2], _unquoted(start[2])):
        key = (NFT_FAMILY_NUMBERS.get(start[1], 0), name)
        info = snapshot.tables.get(key)
        if info is not None and info.handle == int(start[3]):
            return key
    raise _Ambiguous


def _name(word: str, snapshot: Snapshot, table: tuple[int, str]) -> str:
    return word if (*table, word) in snapshot.chains else _unquoted(word)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word


def _texts(lines: list[str], info: ChainInfo) -> list[str | None]:
    """Returns a text for each rule of a chain, of which nft printed `lines`."""
    texts: list[str | None] = [None] * len(info.handles)
    # Before the rules nft prints the comment, which may have several lines, and the hook.
    head = 0 if info.hook is None else 1
    head += 0 if info.comment is None else info.comment.count("\n") + 1
    if info.hook is not None and not any(one.startswith("\t\ttype ") for one in lines[:head]):
        return texts
    if info.comment is not None and not "".join(lines[:1]).startswith('\t\tcomment "'):
        return texts
    printed: list[tuple[int, str]] = []  # handle and text
    begun = head
    for at, line in enumerate(lines[head:], head):
        if (end := _HANDLE.search(line)) is not None:
            body = "\n".join((*lines[begun:at], line[: end.start()]))
            printed.append((int(end[1]), body))
            begun = at + 1
    # Each rule's real end is among them.  A comment may add ends, after which a text begins
    # too late: so the end before a text must be that of the kernel's rule before.
    often = Counter(handle for handle, _ in printed)
    index = {handle: at for at, (handle, _) in enumerate(printed)}
    for number, handle in enumerate(info.handles):
        at = index.get(handle, -1)
        if often[handle] != 1 or (number == 0) != (at == 0):
            continue
        before = info.handles[number - 1]
        if number == 0 or (often[before] == 1 and printed[at - 1][0] == before):
            texts[number] = _text(printed[at][1])
    return texts


def _text(body: str) -> str:
    folded = _FOLD.sub(lambda match: match[1] or " ", body.strip())
    return folded.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
