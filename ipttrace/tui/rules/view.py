# SPDX-License-Identifier: GPL-2.0-only
"""The rules view: hits, rate, drops, cost and text of each rule of a namespace.

By number, chains are in the order of their table, and the line of a chain holds
the hits of its policy; in any other order, only rules with hits are listed.  Must
not count: it shows a `RulesTally`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import isnan
from typing import Any, ClassVar, Final, NamedTuple

from textual.binding import Binding, BindingType

from ipttrace.trace import query
from ipttrace.trace.rules import NFT, Rulesets, family_name
from ipttrace.trace.store import Names
from ipttrace.trace.tally.listing import (
    POLICY,
    ChainListing,
    Figures,
    Listing,
    Listings,
    RuleKey,
    TableListing,
    kernel_packets,
)
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.tui.cells import Cells, spread
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FilterRequested, Notice, WhyNotRequested
from ipttrace.tui.rows import filter_words
from ipttrace.tui.rules.words import NUMBER, TEXT, Words
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import REVERSE, SortedLedger
from ipttrace.tui.widgets.strips import NAMESPACE_KEYS

_EMPTY: Final = "  No rules yet, and no hits."


class _TableLine(NamedTuple):
    family: int
    table: str


class _ChainLine(NamedTuple):
    family: int
    table: str
    chain: str


class _Note(NamedTuple):
    text: str


class RulesView(SortedLedger):
    """The view.  The app chooses a namespace by `choose`."""

    SORTS = (NUMBER, "hits", "dropped", "p99")
    ASCENDING = (NUMBER, TEXT)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "filter", "Rows", key_display="⏎", tooltip="the rows that hit this rule"),
        Binding("s", "sort", "Sort", tooltip="by number, hits, drops or cost", id="sort"),
        REVERSE,
        Binding(
            "0",
            "hide",
            "Hide unhit",
            tooltip="hide rules without hits, or show them",
            id="hide_unhit",
        ),
        Binding(
            "Y",
            "why_not",
            "why the packet under the cursor among the rows does not meet this rule",
            show=False,
            id="why_not",
        ),
        *NAMESPACE_KEYS,
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tally: RulesTally | None = None
        self._listings: Listings | None = None
        self._rulesets: Mapping[int, Rulesets] = {}
        self._netns: Mapping[tuple[int, int], str] = {}
        self._hosts: Sequence[str] = ()
        self._now: int | None = None
        self._clocks: Mapping[int, tuple[int, int] | None] = {}
        self._version: Hashable = None
        self._namespace: tuple[int, int] | None = None
        self._order: list[tuple[int, int]] = []
        self._hidden = False
        self._listing: Listing | None = None
        self._chains: dict[tuple[int, str, str], ChainListing] = {}
        self._tables: dict[tuple[int, str], TableListing] = {}
        self._most = 0.0
        self._by_rate = False
        self._words = Words(80, flat=False)

    def show(
        self,
        tally: RulesTally,
        names: Names,
        rulesets: Mapping[int, Rulesets],
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str] = (),
        now: int | None = None,
    ) -> None:
        """Show the tally; does nothing if nothing has changed.

        `names` and `rulesets`: the store's; `netns`: names of namespaces by host and
        inode; `hosts`: names by number, if there are several; all safe for a terminal.
        `now`: ns since the epoch by the stream's clock, so that rates fall without
        new rows; None: the time of the newest row.
        """
        version = (
            tally.version,
            now,
            dict(netns),
            tuple(hosts),
            [(one.version, one.counted) for one in rulesets.values()],
        )
        if tally is not self._tally or self._listings is None:
            self._listings = Listings(tally, names)
        elif version == self._version:
            return
        self._tally, self._rulesets, self._version = tally, rulesets, version
        self._netns, self._hosts, self._now = netns, hosts, now
        self.changed()

    def note_clocks(self, clocks: Mapping[int, tuple[int, int] | None]) -> None:
        """The clocks of the streams by host: monotonic and wall clock at one moment, ns."""
        self._clocks = clocks

    def _kernel_age(self) -> float | None:
        """How much older the oldest of the kernel's counters are than the hits, s; None: unknown.

        0 if they are not older.
        """
        if self._tally is None or self._listing is None:
            return None
        host = self._listing.host
        clock, newest = self._clocks.get(host), self._tally.newest.get(host)
        read = [one.counters_mono for one in self._listing.tables if one.counters_mono is not None]
        if clock is None or newest is None or not read:
            return None
        mono, wall = clock
        return max(0.0, (newest - (min(read) + wall - mono)) / 1e9)

    def choose(self, host: int, netns: int) -> None:
        """Show this namespace, if it has rules or hits."""
        if (host, netns) in self._namespaces():
            self._choose((host, netns))

    # Keys.

    def action_hide(self) -> None:
        self._hidden = not self._hidden
        self.fill()

    def action_other(self, step: int) -> None:
        if self._order and self._namespace in self._order:
            at = self._order.index(self._namespace)
            self._choose(self._order[(at + step) % len(self._order)])

    def _choose(self, namespace: tuple[int, int]) -> None:
        self._namespace = namespace
        self._moved = False
        self.fill()

    def action_filter(self) -> None:
        key, listing = self.picked, self._listing
        if listing is None or not isinstance(key, RuleKey | _ChainLine):
            self.post_message(Notice("no rule under the cursor", error=True))
            return
        if isinstance(key, RuleKey):
            text = query.by_rule_on_path(
                key.table, key.chain, key.number, key.family, listing.netns
            )
            words = filter_words.rule(
                key.family,
                key.table,
                key.chain,
                key.number,
                "policy" if key.kind == POLICY else "rule",
            )
        else:
            text = query.by_chain_on_path(key.table, key.chain, key.family, listing.netns)
            words = f"chain {key.table} {key.chain}"
        if key.family <= NFT and any(family > NFT for family, _ in self._tables):
            text += f" and {query.LEGACY_TABLES}"
        if len(self._hosts) > 1 and listing.host < len(self._hosts):
            text += f" and host={query.quote(self._hosts[listing.host])}"
        self.post_message(FilterRequested(text, words, replace=True))

    def action_why_not(self) -> None:
        key = self.picked
        if not isinstance(key, RuleKey) or key.kind == POLICY:
            self.post_message(Notice("no rule under the cursor", error=True))
            return
        family = family_name(key.family) if key.family > NFT else "legacy"
        self.post_message(WhyNotRequested(f"{family} {key.table} {key.chain} {key.number}"))

    # Lines.

    def _namespaces(self) -> list[tuple[int, int]]:
        found = set() if self._tally is None else set(self._tally.namespaces())
        for host, rulesets in self._rulesets.items():
            found.update((host, netns) for netns in rulesets.namespaces())
        return sorted(found, key=lambda one: (one[0], self._name_of(*one), one[1]))

    def _name_of(self, host: int, netns: int) -> str:
        return self._netns.get((host, netns)) or f"netns {netns}"

    def refill(self) -> Sequence[Hashable]:
        self._order = self._namespaces()
        self._listing = None
        self._words = Words(self.width, self.sort != NUMBER, kernel=not self.about)
        if self._listings is None or self._tally is None or not self._order:
            return [_Note(_EMPTY)]
        if self._namespace not in self._order:
            self._namespace = self._busiest()
        host, netns = self._namespace
        listing = self._listings.of(host, netns, self._rulesets.get(host), self._now)
        self._listing = listing
        self._by_rate = any(one.rate > 0 for one in listing.figures.values())
        self._most = max(map(self._heat_of, listing.figures.values()), default=0.0)
        self._tables = {(one.family, one.table): one for one in listing.tables}
        self._chains = {
            (table.family, table.table, chain.chain): chain
            for table in listing.tables
            for chain in table.chains
        }
        lines = self._in_order(listing) if self.sort == NUMBER else self._sorted(listing)
        if self._tally.other:
            note = f"{self._tally.other:,} hits on rules without recent hits are not listed"
            lines.append(_Note("  " + note))
        return lines

    def _busiest(self) -> tuple[int, int]:
        assert self._tally is not None
        held, live = self._tally.slots.columns, self._tally.slots.live
        if not len(live):
            return self._order[0]
        slot = live[held["hits"][live].argmax()]
        busiest = int(held["host"][slot]), int(held["netns"][slot])
        return busiest if busiest in self._order else self._order[0]

    def _in_order(self, listing: Listing) -> list[Hashable]:
        lines: list[Hashable] = []
        hit = listing.figures
        for table in listing.tables:
            begins = len(lines)
            for chain in table.chains:
                policy = [key for key in chain.keys if key.kind == POLICY]
                rules = [
                    key
                    for key in chain.keys
                    if key.kind != POLICY and (not self._hidden or key in hit)
                ]
                if self._hidden and not rules and not any(key in hit for key in policy):
                    continue
                # The chain and its policy share a line.
                head = policy[0] if policy else None
                lines.append(head or _ChainLine(table.family, table.table, chain.chain))
                lines += rules[::-1] if self.reversed else rules
                lines += policy[1:]
            if len(lines) > begins or not self._hidden:
                lines.insert(begins, _TableLine(table.family, table.table))
        return lines

    def _sorted(self, listing: Listing) -> list[Hashable]:
        hit = listing.figures
        known = any(not isnan(of.p99_ns) for of in hit.values())
        if self.sort in ("p50", "p99") and hit and not known:
            return [_Note("  Cost is not known over netlink.")]
        value: Callable[[RuleKey], Any] = self._text_of if self.sort == TEXT else self._value_of
        keys: list[RuleKey] = [
            key
            for chain in self._chains.values()
            for key in chain.keys
            if value(key) and (self.sort == "kernel" or key in hit)
        ]
        # Among equals in the order of numbers, whichever way round.
        keys.sort(key=value, reverse=(self.sort == TEXT) == self.reversed)
        return list(keys) or [_Note(f"  Nothing to sort by {self._order_name} yet.")]

    def _value_of(self, key: RuleKey) -> float:
        """What the present order sorts a rule by; 0: it is not listed."""
        assert self._listing is not None
        of = self._listing.figures_of(key)
        if self.sort == "kernel":
            return kernel_packets(self._chains[key.family, key.table, key.chain], key) or 0.0
        name = {"p50": "p50_ns", "p99": "p99_ns", "dropped": "drops", "share": "drops"}
        value: float = getattr(of, name.get(self.sort, self.sort))
        return 0.0 if isnan(value) else value

    def _text_of(self, key: RuleKey) -> str:
        rules = self._chains[key.family, key.table, key.chain].rules
        return rules[key.number - 1] if 0 < key.number <= len(rules) else ""

    @property
    def _order_name(self) -> str:
        return {"dropped": "drops", "p99": "cost"}.get(self.sort, self.sort)

    def pickable(self, key: Hashable) -> bool:
        return isinstance(key, RuleKey | _ChainLine)

    # Text.

    def heading(self) -> list[Cells]:
        many = len(self._order)
        where = " Rules"
        if self._namespace is not None and self._order:
            host, netns = self._namespace
            where = f" {self._name_of(host, netns)}"
            if len(self._hosts) > 1 and host < len(self._hosts):
                where += f" on {self._hosts[host]}"
        order = self._order_name + (", reversed" if self.reversed else "")
        right = f"  {{sort}} by {order} "
        if self.sort == NUMBER:  # sorted by anything else, only rules with hits are listed
            right += f" {{hide_unhit}}: {'show' if self._hidden else 'hide'} unhit rules "
        right = with_keys(right, chosen(self))
        if many > 1 and self._namespace in self._order:
            right = f"  netns {self._order.index(self._namespace) + 1}/{many} [ ]" + right
        if "kernel" in self._words.columns and (age := self._kernel_age()) is not None:
            where += f"  kernel: {figures.span(age)} ago"
        title = spread(where + self.about, right, self.width)
        return [[(title, "title")], self._words.titles(self.sort, self.mark)]

    def orders(self) -> Sequence[str]:
        return self._words.orders()

    def cells(self, key: Hashable) -> Cells:
        if isinstance(key, _TableLine):
            return self._words.table(self._tables[key])
        if isinstance(key, _ChainLine):
            return self._words.chain(self._chains[key])
        if isinstance(key, RuleKey) and self._listing is not None:
            of = self._listing.figures_of(key)
            chain = self._chains[key.family, key.table, key.chain]
            heat = figures.heat(self._heat_of(of), self._most)
            return self._words.rule(key, of, self._listing.drop_share(key), heat, chain)
        return [(key.text if isinstance(key, _Note) else "", "dim")]

    def _heat_of(self, of: Figures) -> float:
        # As hits within the rate's window, so that the lowest rate is 1.
        return 2 * of.rate if self._by_rate else float(of.hits)
