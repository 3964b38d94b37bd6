# SPDX-License-Identifier: GPL-2.0-only
"""A namespace's tables, chains and rules with the figures of each rule.

Figures count hits on the listed rules only.  Hits on earlier versions of the rules, or
on unknown versions, have numbers that may mean other rules by now: only their sum is
given.  If a table's rules are unknown, its hits are listed by number alone.  Must not
do I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from ipttrace import rule_words
from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, table_order
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.rules import Rulesets, Table
from ipttrace.trace.rules.frames import Counted
from ipttrace.trace.store import Names
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.rules import RulesTally

RULE: Final = "rule"
POLICY: Final = "policy"
END: Final = "end"  # of a user-defined chain: back to the calling one

_REMEMBERED: Final = 1000  # tables

# A quoted text may look like anything, and may lack its closing quote.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)')
# In nft's syntax.  A verdict map may have several targets; those of a named map are unknown.
_NFT_TARGET: Final = re.compile(r"(?:^|[\s{:,])(?:jump|goto)\s+([^\s,;}]+)")
_NAMED_MAP: Final = re.compile(r"\bvmap\s+@")


class RuleKey(NamedTuple):
    """Identifies one line of a namespace's rules."""

    family: int
    table: str
    chain: str
    number: int  # as iptables -L --line-numbers counts; a policy's is one past the last rule
    kind: str  # RULE, POLICY, END


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one rule.  Costs are those of the calls that it decided; NaN if none."""

    hits: int
    rate: float  # hits per second in the last seconds
    decided: int  # calls
    drops: int
    p50_ns: float
    p99_ns: float


NO_HITS: Final = Figures(0, 0.0, 0, 0, float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class ChainListing:
    """A chain and its lines."""

    chain: str
    policy: str | None
    references: int | None  # rules that call it; None: unknown, or a base chain
    keys: Sequence[RuleKey]
    rules: Sequence[str]  # texts of rules 1, 2, …; may be fewer than the keys
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class TableListing:
    """A table."""

    family: int
    table: str
    since: int | None  # generation of its rules; None: unknown rules
    current: bool  # False: the rules have changed since, and the new ones are unknown
    other_hits: int  # on versions of the rules other than the one listed
    chains: Sequence[ChainListing]
    counters_mono: int | None = None  # when the kernel's counters were read; None: unknown
    backend: str = "legacy"  # of the rules, if known: one of timeline.BACKENDS


@dataclass(frozen=True, slots=True)
class Listing:
    """A namespace's rules with their figures."""

    host: int
    netns: int
    tables: Sequence[TableListing]
    figures: Mapping[RuleKey, Figures]
    drops: int = 0  # of all rules

    def figures_of(self, key: RuleKey) -> Figures:
        """The figures of a line; all zero if it was never hit."""
        return self.figures.get(key, NO_HITS)

    def drop_share(self, key: RuleKey) -> float:
        """The line's share of all drops in the namespace, 0 to 1."""
        return self.figures_of(key).drops / self.drops if self.drops else 0.0


@dataclass(slots=True)
class _Layout:
    """The lines of a table's rules, valid as long as the rules stay the same."""

    table: Table
    chains: list[ChainListing] = field(default_factory=list)
    keys: set[RuleKey] = field(default_factory=set)


class Listings:
    """Makes listings from one tally; caches the layout of the rules."""

    def __init__(self, tally: RulesTally, names: Names) -> None:
        self._tally = tally
        self._names = names
        self._layouts: dict[tuple[int, int, int, str], _Layout] = {}

    def of(
        self, host: int, netns: int, rulesets: Rulesets | None = None, now: int | None = None
    ) -> Listing:
        """The listing of a namespace.  `now`: as for `RulesTally.rates`."""
        tables = (
            {} if rulesets is None else {(t.family, t.table): t for t in rulesets.tables(netns)}
        )
        figures, other_hits = self._figures(host, netns, tables, rulesets, now)
        by_table: dict[tuple[int, str], list[RuleKey]] = {}
        for key in figures:
            by_table.setdefault((key.family, key.table), []).append(key)
        listed = []
        for at in sorted({*tables, *by_table, *other_hits}, key=_table_order):
            hit = by_table.get(at, [])
            others = other_hits.get(at, 0)
            table = tables.get(at)
            if table is None:
                chains = list(_numbered(hit))
                listed.append(TableListing(*at, None, False, others, chains))
                continue
            chains, mono = self._chains(host, table, hit), None
            if rulesets is not None:
                chains, mono = _counted(chains, table, rulesets)
            listed.append(
                TableListing(*at, table.since, table.current, others, chains, mono, table.backend)
            )
        drops = sum(one.drops for one in figures.values())
        return Listing(host, netns, listed, figures, drops)

    def _figures(
        self,
        host: int,
        netns: int,
        tables: Mapping[tuple[int, str], Table],
        rulesets: Rulesets | None,
        now: int | None,
    ) -> tuple[dict[RuleKey, Figures], dict[tuple[int, str], int]]:
        held, live = self._tally.slots.columns, self._tally.slots.live
        slots = live[(held["netns"][live] == netns) & (held["host"][live] == host)]
        columns = (held[name][slots].tolist() for name in _FIELDS)
        lines: dict[RuleKey, int] = {}
        other_hits: dict[tuple[int, str], int] = {}
        listed: dict[tuple[int, str, int], bool] = {}
        groups = np.full(len(slots), -1, np.intp)
        for index, of in enumerate(zip(*columns, strict=True)):
            number, table_id, chain_id, rulenum, match, generation, hits = of
            family, name = IP_VERSIONS.get(number, number), self._names.text(table_id)
            table = tables.get((family, name))
            if table is not None:
                version = (family, name, generation)
                if version not in listed:
                    listed[version] = _is_listed(table, generation, rulesets)
                if not listed[version]:
                    other_hits[family, name] = other_hits.get((family, name), 0) + hits
                    continue
            chain = self._names.text(chain_id)
            kind = _kind(table, chain, rulenum, match)
            key = RuleKey(family, name, chain, rulenum, kind)
            groups[index] = lines.setdefault(key, len(lines))
        some = groups >= 0
        summed = self._summed(slots[some], groups[some], len(lines), now)
        return dict(zip(lines, summed, strict=True)), other_hits

    def _summed(
        self, slots: Array, groups: Array, count: int, now: int | None
    ) -> Iterator[Figures]:
        if not count:
            return iter(())
        # Sorted by line, so that one reduceat adds up each column.
        order = np.argsort(groups, kind="stable")
        slots = slots[order]
        starts = np.flatnonzero(np.append(True, np.diff(groups[order])))
        held = self._tally.slots.columns

        def total(each: Array) -> Array:
            return np.add.reduceat(each, starts, axis=0) if len(slots) > count else each

        hits, outcomes = total(held["hits"][slots]), total(held["outcomes"][slots])
        rates, costs = total(self._tally.rates(slots, now)), total(held["costs"][slots])
        columns = (
            hits,
            rates,
            outcomes.sum(axis=1),
            outcomes[:, DROP],
            tally_costs.quantiles(costs, 0.5),
            tally_costs.quantiles(costs, 0.99),
        )
        return (Figures(*of) for of in zip(*(one.tolist() for one in columns), strict=True))

    def _chains(self, host: int, table: Table, hit: list[RuleKey]) -> list[ChainListing]:
        at = (host, table.netns, table.family, table.table)
        layout = self._layouts.get(at)
        if layout is None or layout.table is not table:
            if len(self._layouts) >= _REMEMBERED:
                self._layouts.clear()
            layout = self._layouts[at] = _layout_of(table)
        beyond = [key for key in hit if key not in layout.keys]
        if not beyond:
            return layout.chains
        # Hits on numbers that the rules do not have, or on the end of a chain.
        more: dict[str, list[RuleKey]] = {}
        for key in sorted(beyond, key=lambda key: key.number):
            more.setdefault(key.chain, []).append(key)
        chains = [
            ChainListing(
                one.chain,
                one.policy,
                one.references,
                [*one.keys, *more.pop(one.chain, ())],
                one.rules,
            )
            for one in layout.chains
        ]
        return chains + list(_numbered([key for keys in more.values() for key in keys]))


_FIELDS: Final = ("family", "table", "chain", "rulenum", "match", "ruleset", "hits")


def _is_listed(table: Table, generation: int, rulesets: Rulesets | None) -> bool:
    """Whether the listed rules were in force in this generation."""
    if generation < max(table.since, 1):
        return False
    if table.current or rulesets is None:
        return True
    # The rules have changed since; a text exists while they were in force.
    for name, chain in table.chains.items():
        if chain.rules:
            found = rulesets.text(table.netns, table.family, table.table, name, 1, generation)
            return found is not None
    return generation == table.since


def _kind(table: Table | None, chain: str, number: int, match: int) -> str:
    if match == record.MATCH_POLICY:
        return POLICY
    rules = None if table is None else table.chains.get(chain)
    # Recordings of earlier versions have "return" for an unconditional -j RETURN, too.
    return END if rules is not None and number == len(rules.rules) + 1 else RULE


def _layout_of(table: Table) -> _Layout:
    layout = _Layout(table)
    calls: dict[str, int] = {}
    native, unknown = table.backend == "nft", False
    for chain in table.chains.values():
        for rule in chain.rules:
            targets: set[str] = set()
            if native:
                bare = _QUOTED.sub('""', rule)
                unknown |= _NAMED_MAP.search(bare) is not None
                targets.update(_NFT_TARGET.findall(bare))
            elif (found := rule_words.target(rule)) is not None:
                targets.add(found.name)
            for target in targets:
                calls[target] = calls.get(target, 0) + 1
    at = (table.family, table.table)
    # Base chains come first, as iptables prints them.
    for name, chain in sorted(table.chains.items(), key=lambda item: item[1].policy is None):
        keys = [RuleKey(*at, name, number, RULE) for number in range(1, len(chain.rules) + 1)]
        if chain.policy is not None:
            keys.append(RuleKey(*at, name, len(chain.rules) + 1, POLICY))
        references = None if chain.policy is not None or unknown else calls.get(name, 0)
        layout.chains.append(ChainListing(name, chain.policy, references, keys, chain.rules))
        layout.keys.update(keys)
    return layout


def _numbered(keys: list[RuleKey]) -> Iterator[ChainListing]:
    """Chains with unknown rules: their hits by number."""
    chains: dict[str, list[RuleKey]] = {}
    for key in sorted(keys, key=lambda key: (_chain_order(key.chain), key.number, key.kind)):
        chains.setdefault(key.chain, []).append(key)
    for name, mine in chains.items():
        yield ChainListing(name, None, None, mine, ())


def _counted(
    chains: list[ChainListing], table: Table, rulesets: Rulesets
) -> tuple[list[ChainListing], int | None]:
    """The chains with the kernel's own counters, if those belong to these rules.

    Also when these were read, ns of CLOCK_MONOTONIC.
    """
    found = rulesets.counters(table.netns, table.family, table.table)
    if found is None or found[0].since != table.since:
        return chains, None
    counters = found[0].chains
    return [
        ChainListing(
            one.chain, one.policy, one.references, one.keys, one.rules, counters.get(one.chain)
        )
        for one in chains
    ], found[0].mono


def kernel_packets(chain: ChainListing, key: RuleKey) -> int | None:
    """Packets by the kernel's own counter of a line; None if unknown."""
    counted = chain.counted
    if counted is None:
        return None
    if key.kind == POLICY:
        return None if counted.policy is None else counted.policy[0]
    if key.kind == RULE and 0 < key.number <= len(counted.rules):
        at = key.number - 1
        return int(counted.rules[at][0]) if counted.known[at] else None
    return None


def _table_order(at: tuple[int, str]) -> tuple[int, int, str]:
    family, table = at
    return family, table_order(table), table


def _chain_order(chain: str) -> tuple[int, str]:
    return HOOKS.index(chain) if chain in HOOKS else len(HOOKS), chain
