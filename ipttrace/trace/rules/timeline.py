# SPDX-License-Identifier: GPL-2.0-only
"""The versions of tables whose generations are counted together.

A version is valid from its generation until that of the next version, or until a
gap: a generation in which tables may have changed without a frame for each.  Readers
may be in other threads than the one that feeds.  Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import table_order
from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.rules.counters import CounterHistory, CounterPair
from ipttrace.trace.rules.frames import U32, Chain, Key, frame_chains, frame_key, frame_number
from ipttrace.trace.rules.texts import Texts

TEXT_LIMIT: Final = 4096  # characters of a rule
BACKENDS: Final = ("legacy", "iptables-nft", "nft")

_VERSION: Final = 400  # what Python needs for a version, in bytes
_MOST_GAPS: Final = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """The newest known rules of a table, safe for a terminal.

    `current` is false if it has changed since and the new rules are not known (yet).
    """

    netns: int
    family: int
    table: str
    since: int
    chains: dict[str, Chain]
    current: bool
    backend: str = "legacy"  # one of BACKENDS


@dataclass(slots=True)
class _Version:
    """A table's rules from generation `since` on; `chains` is None if they are unknown."""

    since: int
    chains: dict[str, Chain] | None
    backend: str
    shown: Table | None = field(default=None)


# Of one table, in order of `since`.  Replaced, never modified: readers need no lock.
_Versions = tuple[_Version, ...]


class Timeline:
    """Versions of tables, and their counters."""

    def __init__(self, room: int) -> None:
        """`room`: bytes that the texts may take."""
        self.version = 0  # increases whenever a text may have changed
        self.counted = 0  # increases with each COUNTERS frame
        self._room = room
        self._used = 0  # bytes of the versions, without their texts
        self._upto = 0  # every change up to this generation is known
        self._base = 0  # generation 0 of the current stream, as rows count
        self._highest = 0  # generation of any row
        self._gaps: tuple[int, ...] = ()
        self._tables: dict[Key, _Versions] = {}
        self._texts = Texts()
        self._gone: frozenset[Key] = frozenset()
        self._arrived: deque[tuple[Key, _Version]] = deque()
        self._counters = CounterHistory()

    @property
    def size(self) -> int:
        """Bytes of all versions, texts and counters, estimated."""
        return self._used + self._texts.size + self._counters.size

    def begin(self) -> None:
        """Begins another stream, which counts generations anew; none of its rules is known yet."""
        # The rules of the previous stream's last rows may have changed unreported.
        self._add_gap(self._upto + 1)
        self._base = self._highest = self._upto = max(self._highest, self._upto)
        self._gone = frozenset(self._tables)

    def renumber(self, generations: Array) -> Array:
        """Returns the stream's generations, uint32 (n,), unique over all streams; 0 stays 0."""
        numbers = generations.astype(np.uint64) + np.uint64(self._base)
        numbers[(generations == 0) | (numbers >= U32)] = 0
        self._highest = max(self._highest, int(numbers.max(initial=0)))
        return numbers.astype(np.uint32)

    def feed(self, rules: dict[str, Any]) -> None:
        """Adds a RULES frame.  Raises StreamError, one line, if it is malformed."""
        upto = 0
        if rules.get("gone") is True:
            key = frame_key(rules, "rules")
            if key in self._tables:
                self._gone |= {key}
        elif "table" in rules:
            key, since = frame_key(rules, "rules"), self._generation(rules, "since")
            chains = None
            if "chains" in rules:
                chains = frame_chains(rules["chains"], rules.get("unknown"), rules.get("handles"))
            self._add(key, since, chains, str(rules.get("backend")))
            upto = since
        elif "since" in rules:
            upto = self._generation(rules, "since")
            self._add_gap(upto)
        if "upto" in rules:
            upto = max(upto, self._generation(rules, "upto"))
        self._upto = max(self._upto, upto)
        self.version += 1

    def feed_counters(self, counters: dict[str, Any]) -> None:
        """Adds a COUNTERS frame.  Raises StreamError, one line, if it is malformed."""
        self._counters.feed(counters, self._base)
        self.counted += 1

    def text(self, key: Key, chain: str, rulenum: int, generation: int) -> str | None:
        """Returns a rule's text in a row's generation, clean; None if unknown.

        At most TEXT_LIMIT characters.  A policy or the end of a chain has no text.
        """
        found = self._at(key, generation)
        if found is None or found.chains is None:
            return None
        rules = found.chains.get(chain)
        if rules is None or not 0 < rulenum <= len(rules.rules) or rulenum in rules.unknown:
            return None
        return clean(rules.rules[rulenum - 1], TEXT_LIMIT)

    def handle(self, key: Key, chain: str, rulenum: int, generation: int) -> int | None:
        """Returns what nftables calls a rule in a row's generation; None if unknown."""
        found = self._at(key, generation)
        known = None if found is None or found.chains is None else found.chains.get(chain)
        if known is None or not 0 < rulenum <= len(known.handles):
            return None
        return known.handles[rulenum - 1]

    def tables(self, netns: int) -> list[Table]:
        """Returns the newest known rules of each table, by family, as packets meet them."""
        found = []
        for key, versions in sorted(self._tables.copy().items(), key=_order):
            known = next((one for one in reversed(versions) if one.chains is not None), None)
            if key[0] != netns or key in self._gone or known is None or not known.chains:
                continue
            current = known is versions[-1] and not self._gap_between(known.since, self._upto)
            if known.shown is None or known.shown.current != current:
                known.shown = Table(
                    *key, known.since, _cleaned(known.chains), current, known.backend
                )
            found.append(known.shown)
        return found

    def namespaces(self) -> list[int]:
        """Returns the inodes of the namespaces that have tables here."""
        return sorted({key[0] for key in list(self._tables) if key not in self._gone})

    def counters(self, key: Key) -> CounterPair | None:
        """Returns the newest counters, and those before if they belong to the same rules."""
        return self._counters.of(key)

    def _generation(self, rules: dict[str, Any], name: str) -> int:
        return self._base + frame_number(rules, name, U32, "rules")

    def _at(self, key: Key, generation: int) -> _Version | None:
        versions = self._tables.get(key)
        if versions is None or not 0 < generation <= self._upto:
            return None
        at = bisect_right(versions, generation, key=_since)
        if at == 0 or self._gap_between(versions[at - 1].since, generation):
            return None
        return versions[at - 1]

    def _gap_between(self, since: int, generation: int) -> bool:
        gaps = self._gaps
        at = bisect_right(gaps, generation)
        return at > 0 and gaps[at - 1] > since

    def _add_gap(self, since: int) -> None:
        gaps = self._gaps
        if len(gaps) >= _MOST_GAPS:
            # Forget everything before this gap rather than keep ever more of them.
            self._tables, self._gaps, self._used = {}, (since,), 0
            self._texts, self._arrived = Texts(), deque()
        elif not gaps or gaps[-1] < since:
            self._gaps = (*gaps, since)

    def _add(self, key: Key, since: int, chains: dict[str, Chain] | None, backend: str) -> None:
        versions = self._tables.get(key, ())
        if versions and since < versions[-1].since:
            raise StreamError("malformed rules in the stream: generations not in order")
        if versions and versions[-1].since == since:
            if chains is None:
                return
            self._forget(versions[-1])
            versions = versions[:-1]
        elif chains is None and versions and versions[-1].chains is None:
            return  # unknown before, and still unknown
        self._gone -= {key}
        kept = None if chains is None else self._texts.keep(chains)
        new = _Version(since, kept, backend if backend in BACKENDS else BACKENDS[0])
        self._used += _VERSION
        self._tables[key] = (*versions, new)
        self._arrived.append((key, new))
        self._shrink()

    def _forget(self, version: _Version) -> None:
        self._used -= _VERSION
        if version.chains is not None:
            self._texts.drop(version.chains)

    def _shrink(self) -> None:
        """Drops the oldest versions until the rest fits: replaced ones first."""
        newest: deque[tuple[Key, _Version]] = deque()
        while self._used + self._texts.size > self._room and (self._arrived or newest):
            key, oldest = (self._arrived or newest).popleft()
            versions = self._tables.get(key, ())
            at = next((i for i, one in enumerate(versions) if one is oldest), None)
            if at is None:
                continue
            if self._arrived and at == len(versions) - 1:
                newest.append((key, oldest))
                continue
            # Without the version after them, older ones would seem valid for longer.
            for one in versions[: at + 1]:
                self._forget(one)
            rest = versions[at + 1 :]
            if rest:
                self._tables[key] = rest
            else:
                del self._tables[key]
        self._arrived.extendleft(reversed(newest))


def _since(version: _Version) -> int:
    return version.since


def _order(item: tuple[Key, _Versions]) -> tuple[int, int, int, str]:
    netns, family, table = item[0]
    return netns, family, table_order(table), table


def _cleaned(chains: dict[str, Chain]) -> dict[str, Chain]:
    return {
        name: replace(chain, rules=tuple(clean(rule, TEXT_LIMIT) for rule in chain.rules))
        for name, chain in chains.items()
    }
