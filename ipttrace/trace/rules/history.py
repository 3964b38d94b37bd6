# SPDX-License-Identifier: GPL-2.0-only
"""The rules as they were: what RULES and COUNTERS frames said, by generation.

A generation is a number that rises with every change of any table of a host;
each traversal knows the one that it was in.  A RULES frame is one of

``{"netns", "family", "table", "backend", "since", "mono", "chains", "upto"}``
    the rules of a table from generation `since` on, up to its next change; `family` is
    4 or 6, or of an nftables table "ip", "ip6", "inet", "arp", "bridge" or "netdev":
    ``{"INPUT": {"policy": "DROP" or null, "rules": ["-p tcp -j ACCEPT", …]}}``
the same without ``chains``
    it was changed at `since`; its rules are not known, or come later
``{"netns", "family", "table", "gone": true}``
    it is not there any more, perhaps with its namespace
``{"since", "upto"}``
    any table may have been changed at `since`
``{"upto"}``
    nothing new but that

Generations of legacy tables and of nftables' are apart: the last two are about the
latter where they have ``"of": "nft"``.

`upto` is the generation up to which every change has been told by now: what a
later one did is not known yet, so that nothing is said of it.  A COUNTERS frame
is ``{"netns", "family", "table", "mono", "since", "chains": {"INPUT": {"policy":
[packets, bytes] or null, "rules": [[packets, bytes], …]}}}``.

All of it may come from anybody: it is checked, and what is kept is bounded.
Readers may be in other threads than who feeds.  Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import table_order
from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.rules.frames import (
    FAMILIES,
    NFT,
    U32,
    U64,
    Chain,
    Counted,
    Key,
    frame_chains,
    frame_counted,
    frame_key,
    frame_number,
)

TEXT_LIMIT: Final = 4096  # characters of a rule
# What all texts may take, in bytes; numbers of counters that are kept.
_TEXT_ROOM: Final = 64 << 20
_COUNT_ROOM: Final = 4 << 20
# What Python takes beside a text, for a place in a tuple, for a chain, for a generation.
_EACH: Final = 64
_PLACE: Final = 8
_CHAIN: Final = 300
_GENERATION: Final = 400
_MOST_BREAKS: Final = 1000
BACKENDS: Final = ("legacy", "iptables-nft", "nft")


@dataclass(frozen=True, slots=True)
class Table:
    """A table's newest known rules, safe for a terminal.

    `current` is false when it has been changed since and the new rules are not
    known, or not yet.
    """

    netns: int
    family: int
    table: str
    since: int
    chains: dict[str, Chain]
    current: bool
    backend: str = "legacy"  # one of BACKENDS


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of a table at `mono` ns of the host's monotonic clock.

    `since`: the generation of the rules that they belong to.
    """

    mono: int
    since: int
    chains: dict[str, Counted]


@dataclass(slots=True)
class _Generation:
    """A table's rules from `since` on; no chains: not known."""

    since: int
    chains: dict[str, Chain] | None
    backend: str
    shown: Table | None = field(default=None)


# Of one table, by `since`; replaced, never changed, so that a reader's copy stays whole.
_History = tuple[_Generation, ...]


class Rulesets:
    """Rules of all tables, in every generation that was seen.

    Legacy tables and those of nftables are told of by different ways, so that the
    generations of the ones say nothing about the others.
    """

    def __init__(self, room: int = _TEXT_ROOM) -> None:
        """`room`: bytes that the texts of either may take."""
        self._legacy, self._nft = Line(room), Line(room)

    @property
    def version(self) -> int:
        """Rises when a text may have become another."""
        return self._legacy.version + self._nft.version

    @property
    def counted(self) -> int:
        """Rises with each COUNTERS frame."""
        return self._legacy.counted + self._nft.counted

    def _of(self, family: int) -> Line:
        return self._nft if family > NFT else self._legacy

    def begin(self) -> None:
        """Another stream begins, with generations of its own: nothing of it is known yet."""
        self._legacy.begin()
        self._nft.begin()

    def place(self, generations: Array, nft: Array | None = None) -> Array:
        """The stream's generations, uint32 of shape (n,), as rows keep them: each its own.

        `nft`: bool, shape (n,): is it a row of an nftables table?
        """
        if nft is None or not nft.any():
            return self._legacy.place(generations)
        placed = np.zeros(len(generations), np.uint32)
        placed[nft] = self._nft.place(generations[nft])
        placed[~nft] = self._legacy.place(generations[~nft])
        return placed

    def feed(self, rules: dict[str, Any]) -> None:
        """Take a RULES frame.  Raises StreamError, one line, where it cannot be one."""
        family = rules.get("family")
        named = isinstance(family, str) and family in FAMILIES
        (self._nft if named or rules.get("of") == "nft" else self._legacy).feed(rules)

    def feed_counters(self, counters: dict[str, Any]) -> None:
        """Take a COUNTERS frame.  Raises StreamError, one line, where it cannot be one."""
        self._of(frame_key(counters, "counters")[1]).feed_counters(counters)

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """The rule's text in a row's generation, clean; None where it is not known.

        At most 4,096 characters.  A policy, and the end of a chain, have none.
        `family`: as in a Key.
        """
        return self._of(family).text(netns, family, table, chain, rulenum, generation)

    def tables(self, netns: int) -> list[Table]:
        """The newest known rules of each table, IPv4 first, in the order that packets meet them."""
        return self._legacy.tables(netns) + self._nft.tables(netns)

    def namespaces(self) -> list[int]:
        """Those of which rules were told, by inode."""
        return sorted({*self._legacy.namespaces(), *self._nft.namespaces()})

    def counters(
        self, netns: int, family: int, table: str
    ) -> tuple[Counters, Counters | None] | None:
        """The newest counters and those before, where they are of the same rules."""
        return self._of(family).counters(netns, family, table)


class Line:
    """Tables whose generations are counted together."""

    def __init__(self, room: int) -> None:
        self.version = 0  # rises when a text may have become another
        self.counted = 0  # rises with each COUNTERS frame
        self._room = room
        self._used = 0
        self._upto = 0
        self._base = 0  # what generation 0 of the stream that is fed is here
        self._highest = 0  # that a row has, or rules
        self._breaks: tuple[int, ...] = ()
        self._tables: dict[Key, _History] = {}
        self._pool = _Pool()
        self._gone: frozenset[Key] = frozenset()
        self._arrived: deque[tuple[Key, _Generation]] = deque()
        self._counters: dict[Key, tuple[Counters, Counters | None]] = {}
        self._numbers = 0  # in all of them

    def begin(self) -> None:
        """Another stream begins, with generations of its own: nothing of it is known yet."""
        # Nobody has told what later rows of the stream before met.
        self._break(self._upto + 1)
        self._base = self._highest = self._upto = max(self._highest, self._upto)
        self._gone = frozenset(self._tables)

    def place(self, generations: Array) -> Array:
        """The stream's generations, uint32 of shape (n,), as rows keep them: each its own."""
        placed = generations.astype(np.uint64) + np.uint64(self._base)
        placed[(generations == 0) | (placed >= U32)] = 0
        self._highest = max(self._highest, int(placed.max(initial=0)))
        return placed.astype(np.uint32)

    def feed(self, rules: dict[str, Any]) -> None:
        """Take a RULES frame.  Raises StreamError, one line, where it cannot be one."""
        upto = 0
        if rules.get("gone") is True:
            key = frame_key(rules, "rules")
            if key in self._tables:
                self._gone |= {key}
        elif "table" in rules:
            key, since = frame_key(rules, "rules"), self._generation(rules, "since")
            chains = frame_chains(rules["chains"]) if "chains" in rules else None
            self._add(key, since, chains, str(rules.get("backend")))
            upto = since
        elif "since" in rules:
            upto = self._generation(rules, "since")
            self._break(upto)
        if "upto" in rules:
            upto = max(upto, self._generation(rules, "upto"))
        self._upto = max(self._upto, upto)
        self.version += 1

    def feed_counters(self, counters: dict[str, Any]) -> None:
        """Take a COUNTERS frame.  Raises StreamError, one line, where it cannot be one."""
        key = frame_key(counters, "counters")
        chains = counters.get("chains")
        if not isinstance(chains, dict):
            raise StreamError("counters in the stream have no chains")
        new = Counters(
            mono=frame_number(counters, "mono", U64, "counters"),
            since=self._base + frame_number(counters, "since", U32, "counters"),
            chains={clean(name): frame_counted(chain) for name, chain in chains.items()},
        )
        old = self._counters.pop(key, None)
        if old is not None:
            self._numbers -= _numbers(old)
        # Last in the dict is newest: what is dropped is the first.
        self._counters[key] = (new, None if old is None else old[0])
        self._numbers += _numbers(self._counters[key])
        while len(self._counters) > 1 and self._numbers > _COUNT_ROOM:
            self._numbers -= _numbers(self._counters.pop(next(iter(self._counters))))
        self.counted += 1

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """The rule's text in a row's generation, clean; None where it is not known.

        At most 4,096 characters.  A policy, and the end of a chain, have none.
        """
        found = self._at((netns, family, table), generation)
        if found is None or found.chains is None:
            return None
        rules = found.chains.get(chain)
        if rules is None or not 0 < rulenum <= len(rules.rules):
            return None
        return clean(rules.rules[rulenum - 1], TEXT_LIMIT)

    def tables(self, netns: int) -> list[Table]:
        """The newest known rules of each table, IPv4 first, in the order that packets meet them."""
        found = []
        for key, history in sorted(self._tables.copy().items(), key=_order):
            known = next((one for one in reversed(history) if one.chains is not None), None)
            if key[0] != netns or key in self._gone or known is None or not known.chains:
                continue
            current = known is history[-1] and not self._broken(known.since, self._upto)
            if known.shown is None or known.shown.current != current:
                known.shown = Table(
                    *key, known.since, _cleaned(known.chains), current, known.backend
                )
            found.append(known.shown)
        return found

    def namespaces(self) -> list[int]:
        """Those of which rules were told, by inode."""
        return sorted({key[0] for key in list(self._tables) if key not in self._gone})

    def counters(
        self, netns: int, family: int, table: str
    ) -> tuple[Counters, Counters | None] | None:
        """The newest counters and those before, where they are of the same rules."""
        found = self._counters.get((netns, family, table))
        if found is None or found[1] is None or found[0].since == found[1].since:
            return found
        return found[0], None

    def _generation(self, rules: dict[str, Any], name: str) -> int:
        return self._base + frame_number(rules, name, U32, "rules")

    def _at(self, key: Key, generation: int) -> _Generation | None:
        history = self._tables.get(key)
        if history is None or not 0 < generation <= self._upto:
            return None
        at = bisect_right(history, generation, key=_since)
        if at == 0 or self._broken(history[at - 1].since, generation):
            return None
        return history[at - 1]

    def _broken(self, since: int, generation: int) -> bool:
        breaks = self._breaks
        at = bisect_right(breaks, generation)
        return at > 0 and breaks[at - 1] > since

    def _break(self, since: int) -> None:
        breaks = self._breaks
        if len(breaks) >= _MOST_BREAKS:
            # Enough is enough: nothing from before the newest is known any more.
            self._tables, self._breaks, self._used = {}, (since,), 0
            self._pool, self._arrived = _Pool(), deque()
        elif not breaks or breaks[-1] < since:
            self._breaks = (*breaks, since)

    def _add(self, key: Key, since: int, chains: dict[str, Chain] | None, backend: str) -> None:
        history = self._tables.get(key, ())
        if history and since < history[-1].since:
            raise StreamError("rules in the stream are not in order")
        if history and history[-1].since == since:
            if chains is None:
                return
            self._forget(history[-1])
            history = history[:-1]
        elif chains is None and history and history[-1].chains is None:
            # Not known before, and not known now.
            return
        self._gone -= {key}
        kept = None if chains is None else self._pool.keep(chains)
        new = _Generation(since, kept, backend if backend in BACKENDS else BACKENDS[0])
        self._used += _GENERATION
        self._tables[key] = (*history, new)
        self._arrived.append((key, new))
        self._shrink()

    def _forget(self, generation: _Generation) -> None:
        self._used -= _GENERATION
        if generation.chains is not None:
            self._pool.drop(generation.chains)

    def _shrink(self) -> None:
        """Drops what is oldest until all fits: superseded rules first."""
        newest: deque[tuple[Key, _Generation]] = deque()
        while self._used + self._pool.size > self._room and (self._arrived or newest):
            key, oldest = (self._arrived or newest).popleft()
            history = self._tables.get(key, ())
            at = next((i for i, one in enumerate(history) if one is oldest), None)
            if at is None:
                continue
            if self._arrived and at == len(history) - 1:
                newest.append((key, oldest))
                continue
            # What is older still is not known either, so that nothing is left of it.
            for one in history[: at + 1]:
                self._forget(one)
            rest = history[at + 1 :]
            if rest:
                self._tables[key] = rest
            else:
                del self._tables[key]
        self._arrived.extendleft(reversed(newest))


class _Pool:
    """Each text once, however many generations have it."""

    def __init__(self) -> None:
        self.size = 0
        self._same: dict[str, str] = {}
        self._uses: dict[str, int] = {}

    def keep(self, chains: dict[str, Chain]) -> dict[str, Chain]:
        self.size += _CHAIN * len(chains)
        return {
            self._one(name): Chain(chain.policy, tuple(map(self._one, chain.rules)))
            for name, chain in chains.items()
        }

    def drop(self, chains: dict[str, Chain]) -> None:
        self.size -= _CHAIN * len(chains)
        for name, chain in chains.items():
            for text in (name, *chain.rules):
                self.size -= _PLACE
                self._uses[text] -= 1
                if not self._uses[text]:
                    del self._uses[text], self._same[text]
                    self.size -= len(text) + _EACH

    def _one(self, text: str) -> str:
        self.size += _PLACE
        same = self._same.setdefault(text, text)
        uses = self._uses.get(text, 0)
        if not uses:
            self.size += len(text) + _EACH
        self._uses[text] = uses + 1
        return same


def _since(generation: _Generation) -> int:
    return generation.since


def _order(item: tuple[Key, _History]) -> tuple[int, int, int, str]:
    netns, family, table = item[0]
    place = table_order(table)
    return netns, family, place, table


def _cleaned(chains: dict[str, Chain]) -> dict[str, Chain]:
    return {
        name: Chain(chain.policy, tuple(clean(rule, TEXT_LIMIT) for rule in chain.rules))
        for name, chain in chains.items()
    }


def _numbers(pair: tuple[Counters, Counters | None]) -> int:
    return sum(
        len(chain.rules) + 8
        for counters in pair
        if counters is not None
        for chain in counters.chains.values()
    )
