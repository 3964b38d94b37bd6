# SPDX-License-Identifier: GPL-2.0-only
"""Counts of rules beside the rules: a namespace's tables and chains with what hit them.

Hits are those of the rules that are listed.  What was hit under earlier rules,
or when it is not known which rules there were, has numbers that may mean other
rules by now: only its sum is told.  Where no rules are known, all hits are
listed by number alone.  Must not do I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, table_order
from ipttrace.stream import record
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.rules.frames import Counted
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.rules.timeline import Table
from ipttrace.trace.store.names import Names
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.rules import RulesTally

RULE: Final = "rule"
POLICY: Final = "policy"
END: Final = "end"  # of a chain that is not built in: back to where it was called

_POLICY: Final = record.MATCHES.index("policy")
_REMEMBERED: Final = 1000  # tables

# What stands in quotes may look like anything; quotes may never end.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)')
_TARGET: Final = re.compile(r"(?:^|\s)(?:-[jg]|--jump|--goto)\s+(\S+)")
# In the words of nft: in a verdict map there may be several, in a named one they are not told.
_NFT_TARGET: Final = re.compile(r"(?:^|[\s{:,])(?:jump|goto)\s+([^\s,;}]+)")
_NAMED_MAP: Final = re.compile(r"\bvmap\s+@")


class RuleKey(NamedTuple):
    """One line of a namespace's rules."""

    family: int
    table: str
    chain: str
    number: int  # as iptables -L --line-numbers counts; a policy's is one past the last rule's
    kind: str  # RULE, POLICY, END


@dataclass(frozen=True, slots=True)
class Figures:
    """What hit a rule.  The costs are of the calls that it decided; NaN where it did not."""

    hits: int
    rate: float  # hits per second, of late
    decided: int
    drops: int
    p50_ns: float
    p99_ns: float


NOTHING: Final = Figures(0, 0.0, 0, 0, float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class ChainListing:
    """A chain and its lines.  `references`: rules that call it; None: not known."""

    chain: str
    policy: str | None
    references: int | None
    keys: Sequence[RuleKey]
    rules: Sequence[str]  # texts by number, from 1 on; may be fewer than the keys
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class TableListing:
    """A table.  `since`: generation of its rules, None where they are not known."""

    family: int
    table: str
    since: int | None
    current: bool  # False: they were changed since, and the new ones are not known
    elsewhere: int  # hits under other rules than those listed
    chains: Sequence[ChainListing]
    backend: str = "legacy"  # of the rules, where they are known: see timeline.BACKENDS


@dataclass(frozen=True, slots=True)
class Listing:
    """The rules of a namespace with what hit them."""

    host: int
    netns: int
    tables: Sequence[TableListing]
    figures: Mapping[RuleKey, Figures]
    drops: int = 0  # of all of them

    def figures_of(self, key: RuleKey) -> Figures:
        """All zero where it was never hit."""
        return self.figures.get(key, NOTHING)

    def share(self, key: RuleKey) -> float:
        """Its part of all drops in the namespace, 0 to 1."""
        return self.figures_of(key).drops / self.drops if self.drops else 0.0


@dataclass(slots=True)
class _Known:
    """A table's rules laid out, as long as they stay the same."""

    table: Table
    chains: list[ChainListing] = field(default_factory=list)
    keys: set[RuleKey] = field(default_factory=set)


class Listings:
    """Makes listings of one tally; remembers how the rules are laid out."""

    def __init__(self, tally: RulesTally, names: Names) -> None:
        self._tally = tally
        self._names = names
        self._known: dict[tuple[int, int, int, str], _Known] = {}

    def of(
        self, host: int, netns: int, rulesets: Rulesets | None = None, now: int | None = None
    ) -> Listing:
        """The rules of a namespace.  `now`: ns since the epoch, as for `RulesTally.rates`."""
        tables = (
            {} if rulesets is None else {(t.family, t.table): t for t in rulesets.tables(netns)}
        )
        figures, elsewhere = self._figures(host, netns, tables, rulesets, now)
        by_table: dict[tuple[int, str], list[RuleKey]] = {}
        for key in figures:
            by_table.setdefault((key.family, key.table), []).append(key)
        listed = []
        for at in sorted({*tables, *by_table, *elsewhere}, key=_table_order):
            hit = by_table.get(at, [])
            aside = elsewhere.get(at, 0)
            table = tables.get(at)
            if table is None:
                chains = list(_numbered(hit))
                listed.append(TableListing(*at, None, False, aside, chains))
                continue
            chains = self._chains(host, table, hit)
            if rulesets is not None:
                chains = _counted(chains, table, rulesets)
            listed.append(
                TableListing(*at, table.since, table.current, aside, chains, table.backend)
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
        place: dict[RuleKey, int] = {}
        elsewhere: dict[tuple[int, str], int] = {}
        belongs: dict[tuple[int, str, int], bool] = {}
        groups = np.full(len(slots), -1, np.intp)
        for index, of in enumerate(zip(*columns, strict=True)):
            number, table_id, chain_id, rulenum, match, generation, hits = of
            family, name = IP_VERSIONS.get(number, number), self._names.text(table_id)
            table = tables.get((family, name))
            if table is not None:
                asked = (family, name, generation)
                if asked not in belongs:
                    belongs[asked] = _belongs(table, generation, rulesets)
                if not belongs[asked]:
                    elsewhere[family, name] = elsewhere.get((family, name), 0) + hits
                    continue
            chain = self._names.text(chain_id)
            kind = _kind(table, chain, rulenum, match)
            key = RuleKey(family, name, chain, rulenum, kind)
            groups[index] = place.setdefault(key, len(place))
        some = groups >= 0
        summed = self._summed(slots[some], groups[some], len(place), now)
        return dict(zip(place, summed, strict=True)), elsewhere

    def _summed(
        self, slots: Array, groups: Array, count: int, now: int | None
    ) -> Iterator[Figures]:
        if not count:
            return iter(())
        # Slots of one line stand together, so that they can be added up in one go.
        order = np.argsort(groups, kind="stable")
        slots = slots[order]
        starts = np.flatnonzero(np.append(True, np.diff(groups[order])))
        held = self._tally.slots.columns

        def total(each: Array) -> Array:
            return np.add.reduceat(each, starts, axis=0) if len(slots) > count else each

        hits, ends = total(held["hits"][slots]), total(held["ends"][slots])
        rates, costs = total(self._tally.rates(slots, now)), total(held["costs"][slots])
        columns = (
            hits,
            rates,
            ends.sum(axis=1),
            ends[:, DROP],
            tally_costs.quantiles(costs, 0.5),
            tally_costs.quantiles(costs, 0.99),
        )
        return (Figures(*of) for of in zip(*(one.tolist() for one in columns), strict=True))

    def _chains(self, host: int, table: Table, hit: list[RuleKey]) -> list[ChainListing]:
        at = (host, table.netns, table.family, table.table)
        known = self._known.get(at)
        if known is None or known.table is not table:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[at] = _laid_out(table)
        beyond = [key for key in hit if key not in known.keys]
        if not beyond:
            return known.chains
        # Packets hit what the rules do not have, or the end of a chain.
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
            for one in known.chains
        ]
        return chains + list(_numbered([key for keys in more.values() for key in keys]))


_FIELDS: Final = ("family", "table", "chain", "rulenum", "match", "ruleset", "hits")


def _belongs(table: Table, generation: int, rulesets: Rulesets | None) -> bool:
    """Whether a packet of this generation met the rules that are listed."""
    if generation < max(table.since, 1):
        return False
    if table.current or rulesets is None:
        return True
    # They were changed since: it is known up to when they were in force.
    for name, chain in table.chains.items():
        if chain.rules:
            found = rulesets.text(table.netns, table.family, table.table, name, 1, generation)
            return found is not None
    return generation == table.since


def _kind(table: Table | None, chain: str, number: int, match: int) -> str:
    if match == _POLICY:
        return POLICY
    rules = None if table is None else table.chains.get(chain)
    # An unconditional -j RETURN and a chain's end are both told as "return".
    return END if rules is not None and number == len(rules.rules) + 1 else RULE


def _laid_out(table: Table) -> _Known:
    known = _Known(table)
    calls: dict[str, int] = {}
    native, untold = table.backend == "nft", False
    for chain in table.chains.values():
        for rule in chain.rules:
            bare = _QUOTED.sub('""', rule)
            untold |= native and _NAMED_MAP.search(bare) is not None
            for target in set(_NFT_TARGET.findall(bare)) if native else _TARGET.findall(bare)[:1]:
                calls[target] = calls.get(target, 0) + 1
    at = (table.family, table.table)
    # Those that packets enter by come first, as iptables prints them.
    for name, chain in sorted(table.chains.items(), key=lambda item: item[1].policy is None):
        keys = [RuleKey(*at, name, number, RULE) for number in range(1, len(chain.rules) + 1)]
        if chain.policy is not None:
            keys.append(RuleKey(*at, name, len(chain.rules) + 1, POLICY))
        references = None if chain.policy is not None or untold else calls.get(name, 0)
        known.chains.append(ChainListing(name, chain.policy, references, keys, chain.rules))
        known.keys.update(keys)
    return known


def _numbered(keys: list[RuleKey]) -> Iterator[ChainListing]:
    """Chains of which no rules are known: what was hit, by number."""
    chains: dict[str, list[RuleKey]] = {}
    for key in sorted(keys, key=lambda key: (_chain_order(key.chain), key.number, key.kind)):
        chains.setdefault(key.chain, []).append(key)
    for name, mine in chains.items():
        yield ChainListing(name, None, None, mine, ())


def _counted(chains: list[ChainListing], table: Table, rulesets: Rulesets) -> list[ChainListing]:
    """With the kernel's own counters, where they are of these rules."""
    found = rulesets.counters(table.netns, table.family, table.table)
    if found is None or found[0].since != table.since:
        return chains
    counters = found[0].chains
    return [
        ChainListing(
            one.chain, one.policy, one.references, one.keys, one.rules, counters.get(one.chain)
        )
        for one in chains
    ]


def kernel_packets(chain: ChainListing, key: RuleKey) -> int | None:
    """What the kernel's counter says of a line; None where it is not known."""
    counted = chain.counted
    if counted is None:
        return None
    if key.kind == POLICY:
        return None if counted.policy is None else counted.policy[0]
    if key.kind == RULE and 0 < key.number <= len(counted.rules):
        return int(counted.rules[key.number - 1][0])
    return None


def _table_order(at: tuple[int, str]) -> tuple[int, int, str]:
    family, table = at
    return family, table_order(table), table


def _chain_order(chain: str) -> tuple[int, str]:
    return HOOKS.index(chain) if chain in HOOKS else len(HOOKS), chain
