# SPDX-License-Identifier: GPL-2.0-only
"""The rules view's listing: hits beside the rules they hit, also after a change."""

from __future__ import annotations

from typing import Any

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.session import Trace
from ipttrace.trace.tally import Tallies
from ipttrace.trace.tally.listing import (
    END,
    POLICY,
    RULE,
    Listing,
    Listings,
    RuleKey,
    kernel_packets,
)
from tests.data.traces import feed_records

NETNS = 4026532456
FORWARD = {"policy": "DROP", "rules": ["-j WEB", "-p udp -j ACCEPT", "-j ACCEPT"]}
WEB = {"policy": None, "rules": ["-p tcp --dport 80 -j ACCEPT", "-j RETURN"]}
RULE_, RETURN_, POLICY_ = range(3)

Path_ = list[tuple[bytes, int, int]]


class Lab:
    """A trace to which a test adds calls and rules."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.tallies = Tallies()
        self._call = 0

    def call(
        self,
        path: Path_,
        *,
        generation: int = 0,
        verdict: int = 1,
        table: bytes = b"filter",
        **of: int,
    ) -> None:
        self._call += 1
        entry = np.zeros(1, record.ENTRY_DTYPE)
        entry["call"], entry["netns"], entry["family"] = self._call, NETNS, 2
        entry["skb"], entry["flags"] = self._call, record.F_FIRST
        entry["table"], entry["ruleset"], entry["hook"] = table, generation, 2
        for name, value in of.items():
            entry[name] = value
        rules = np.zeros(len(path), record.RULE_DTYPE)
        rules["call"], rules["table"] = self._call, table
        for at, (chain, number, match) in enumerate(path):
            rules[at]["seq"], rules[at]["chain"] = at, chain
            rules[at]["rulenum"], rules[at]["match"] = number, match
        end = np.zeros(1, record.EXIT_DTYPE)
        end["call"], end["cost"], end["verdict"], end["rules"] = (
            self._call,
            1000,
            verdict,
            len(path),
        )
        feed_records(self.trace, entry, rules, end)

    def rules(self, since: int, **changes: Any) -> None:
        frame: dict[str, Any] = {
            "netns": NETNS,
            "family": 4,
            "table": "filter",
            "backend": "legacy",
            "since": since,
            "mono": 1,
            "upto": since,
            "chains": {"WEB": WEB, "FORWARD": FORWARD},
            **changes,
        }
        if frame["chains"] is None:
            del frame["chains"]
        self.trace.rulesets.feed(frame)

    def listing(self) -> Listing:
        while self.tallies.pull(self.trace.store):
            pass
        listings = Listings(self.tallies.rules, self.trace.store.names)
        return listings.of(0, NETNS, self.trace.rulesets)


def key(chain: str, number: int, kind: str = RULE) -> RuleKey:
    return RuleKey(4, "filter", chain, number, kind)


def test_base_chains_come_first_and_the_others_count_their_references() -> None:
    lab = Lab()
    lab.rules(1)
    (table,) = lab.listing().tables
    assert (table.family, table.table, table.since, table.current) == (4, "filter", 1, True)
    forward, web = table.chains
    assert (forward.chain, forward.policy, forward.references) == ("FORWARD", "DROP", None)
    assert (web.chain, web.policy, web.references) == ("WEB", None, 1)
    assert forward.keys == [
        key("FORWARD", 1),
        key("FORWARD", 2),
        key("FORWARD", 3),
        key("FORWARD", 4, POLICY),
    ]
    assert forward.rules[1] == "-p udp -j ACCEPT"


def test_a_target_in_a_comment_is_no_reference() -> None:
    lab = Lab()
    chains = {
        "FORWARD": {
            "policy": "ACCEPT",
            "rules": ['-m comment --comment "x -j WEB \\" -g WEB" -j ACCEPT', '-j WEB "-j WEB'],
        },
        "WEB": WEB,
    }
    lab.rules(1, chains=chains)
    assert lab.listing().tables[0].chains[1].references == 1


def test_policy_return_and_the_end_of_a_chain_have_lines_of_their_own() -> None:
    lab = Lab()
    lab.rules(1)
    # GIVEN packets that return at rule 2, at the end of the chain, and reach the policy
    lab.call(
        [(b"FORWARD", 1, RULE_), (b"WEB", 2, RETURN_), (b"FORWARD", 4, POLICY_)],
        generation=1,
        verdict=0,
    )
    lab.call([(b"FORWARD", 1, RULE_), (b"WEB", 3, RETURN_), (b"FORWARD", 3, RULE_)], generation=1)
    listing = lab.listing()
    hits = {key: of.hits for key, of in listing.figures.items()}
    assert hits == {
        key("FORWARD", 1): 2,
        key("WEB", 2): 1,
        key("WEB", 3, END): 1,
        key("FORWARD", 3): 1,
        key("FORWARD", 4, POLICY): 1,
    }
    # THEN the policy has the only drop
    assert listing.drop_share(key("FORWARD", 4, POLICY)) == 1.0
    assert listing.drop_share(key("FORWARD", 1)) == 0.0
    web = listing.tables[0].chains[1]
    assert web.keys == [key("WEB", 1), key("WEB", 2), key("WEB", 3, END)]


def test_a_change_of_the_rules_resets_their_hits() -> None:
    lab = Lab()
    lab.rules(1)
    for _ in range(5):
        lab.call([(b"FORWARD", 2, RULE_)], generation=1)
    assert lab.listing().figures_of(key("FORWARD", 2)).hits == 5
    # WHEN rule 2 changes in generation 4, and packets arrive before its new text
    lab.call([(b"FORWARD", 2, RULE_)], generation=3)
    lab.call([(b"FORWARD", 2, RULE_)], generation=4)
    lab.call([(b"FORWARD", 2, RULE_)], generation=6)
    lab.rules(4, chains={"FORWARD": {"policy": "DROP", "rules": ["-j ACCEPT", "-j DROP"]}})
    # THEN only packets of the new generations count as its hits, the others as a sum
    listing = lab.listing()
    assert listing.figures_of(key("FORWARD", 2)).hits == 2
    assert listing.tables[0].other_hits == 6


def test_hits_on_unknown_rules_do_not_count_for_the_listed_ones() -> None:
    lab = Lab()
    lab.rules(1)
    lab.call([(b"FORWARD", 2, RULE_)], generation=0)
    # AND the table changed in generation 3 and could not be read since
    lab.call([(b"FORWARD", 2, RULE_)], generation=2)
    lab.call([(b"FORWARD", 2, RULE_)], generation=3)
    lab.rules(3, chains=None)
    listing = lab.listing()
    assert listing.tables[0].current is False
    assert listing.figures_of(key("FORWARD", 2)).hits == 1
    assert listing.tables[0].other_hits == 2


def test_hits_on_unknown_rules_are_listed_by_number() -> None:
    lab = Lab()
    lab.call([(b"WEB", 2, RULE_), (b"FORWARD", 4, POLICY_)])
    lab.call([(b"FORWARD", 10, RULE_)], generation=7)
    lab.call([(b"PREROUTING", 1, RULE_)], table=b"raw")
    raw, table = lab.listing().tables
    assert (raw.table, table.table, table.since, table.other_hits) == ("raw", "filter", None, 0)
    assert [chain.chain for chain in table.chains] == ["FORWARD", "WEB"]
    assert table.chains[0].keys == [key("FORWARD", 4, POLICY), key("FORWARD", 10)]


def test_hits_on_numbers_that_the_rules_lack_are_listed_after_them() -> None:
    lab = Lab()
    lab.rules(1)
    lab.call([(b"FORWARD", 9, RULE_)], generation=1)
    lab.call([(b"NEW", 1, RULE_)], generation=1)
    forward, _, new = lab.listing().tables[0].chains
    assert forward.keys[-1] == key("FORWARD", 9)
    assert new.keys == [key("NEW", 1)]


def test_the_kernels_counters_stand_beside_their_own_rules() -> None:
    lab = Lab()
    lab.rules(2)
    counters = {
        "netns": NETNS,
        "family": 4,
        "table": "filter",
        "mono": 5,
        "since": 2,
        "chains": {"FORWARD": {"policy": [7, 1], "rules": [[5, 1], [6, 1], [0, 0]]}},
    }
    lab.trace.rulesets.feed_counters(counters)
    forward, web = lab.listing().tables[0].chains
    assert [kernel_packets(forward, key) for key in forward.keys] == [5, 6, 0, 7]
    assert [kernel_packets(web, key) for key in web.keys] == [None, None]
    # WHEN a rule and the policy do not count THEN they have no counter, not 0
    chains = {"FORWARD": {"policy": None, "rules": [[5, 1], None, [0, 0]]}}
    lab.trace.rulesets.feed_counters({**counters, "chains": chains})
    forward, _ = lab.listing().tables[0].chains
    assert [kernel_packets(forward, key) for key in forward.keys] == [5, None, 0, None]
    # WHEN the counters belong to earlier rules THEN they are not shown
    lab.trace.rulesets.feed_counters({**counters, "since": 1})
    forward, _ = lab.listing().tables[0].chains
    assert kernel_packets(forward, forward.keys[0]) is None


def nft(lab: Lab, family: str, table: str, chains: dict[str, Any], backend: str = "nft") -> None:
    lab.rules(1, family=family, table=table, chains=chains, backend=backend)


def test_tables_of_one_name_are_listed_apart_with_their_backends() -> None:
    # GIVEN filter of legacy, of iptables-nft and of nftables' inet family
    lab = Lab()
    chains = {"INPUT": {"policy": "ACCEPT", "rules": ["-j ACCEPT"]}}
    lab.rules(1, chains=chains)
    nft(lab, "ip", "filter", chains, "iptables-nft")
    nft(lab, "inet", "filter", {"in": {"policy": "drop", "rules": ["accept"]}})
    # WHEN packets hit a rule in each
    for tables, chain in ((0, b"INPUT"), (2, b"INPUT"), (2, b"INPUT"), (1, b"in")):
        source = record.SOURCE_NFT if tables else record.SOURCE_KERNEL
        lab.call([(chain, 1, RULE_)], generation=1, tables=tables, source=source)
    listing = lab.listing()
    assert [(one.family, one.backend) for one in listing.tables] == [
        (4, "legacy"),
        (17, "nft"),
        (18, "iptables-nft"),
    ]
    hits = {key.family: of.hits for key, of in listing.figures.items()}
    assert hits == {4: 1, 17: 1, 18: 2}
    # THEN only rows of the kernel engine have costs
    assert {key.family for key, of in listing.figures.items() if of.p50_ns > 0} == {4}


def test_references_are_counted_in_nft_syntax() -> None:
    lab = Lab()
    rules = [
        "ip saddr 10.0.0.1 jump ssh",
        'tcp dport vmap { 22 : jump ssh, 80 : goto web, 443 : goto web } comment "jump off"',
    ]
    chains: dict[str, Any] = {"in": {"policy": "accept", "rules": rules}}
    chains |= {name: {"policy": None, "rules": []} for name in ("ssh", "web", "off")}
    nft(lab, "inet", "t", chains)
    (table,) = lab.listing().tables
    counted = {chain.chain: chain.references for chain in table.chains}
    assert counted == {"in": None, "ssh": 2, "web": 1, "off": 0}
    # WHEN a named verdict map may call any of them
    rules.append("ip daddr vmap @where")
    lab = Lab()
    nft(lab, "inet", "t", chains)
    (table,) = lab.listing().tables
    # THEN their references are unknown
    assert {chain.references for chain in table.chains} == {None}
