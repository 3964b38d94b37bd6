# SPDX-License-Identifier: GPL-2.0-only
"""Queries on rows of the netlink engine: unknown values match none only."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from ipttrace.trace import query
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.netlink_rows import INET, IP, POLICY, RULE, RecordedCalls, input_from_every_source

KERNEL, LEGACY, NFT, INET_ROW = range(4)


@cache
def trace() -> Trace:
    return input_from_every_source().trace()


def matched(text: str, of: Trace | None = None) -> list[int]:
    store = (of or trace()).store
    context = query.context_of(store)
    asked = query.compile(text)
    return [
        part.first + int(at)
        for part in store.parts()
        for at in np.flatnonzero(asked.mask(part, context))
    ]


def row(seq: int) -> Row:
    return trace().store.row(seq)


@pytest.mark.parametrize(
    ("text", "seqs"),
    [
        ("engine=kernel", [KERNEL]),
        ("engine=netlink", [LEGACY, NFT, INET_ROW]),
        # Unknown values do not match zero, inequality or order
        ("pid=0", [KERNEL]),
        ("pid!=7", [KERNEL]),
        ("cpu<9", [KERNEL]),
        ("comm!=ping", [KERNEL]),
        ("cost<1us", [KERNEL]),
        ("cost=0", []),
        ("skb!=none", [KERNEL]),
        # but none
        ("pid=none and cpu=none and comm=none and cost=none", [LEGACY, NFT, INET_ROW]),
        ("verdict=none", [LEGACY]),
        ("verdict!=DROP", [KERNEL, NFT]),
        ("verdict=255", []),
        ("rulenum=none", [INET_ROW]),
        ("rulenum=0", []),
        ("rulenum<9", [KERNEL, LEGACY, NFT]),
        ('path="jail:?"', [INET_ROW]),
        ("path=jail:0", []),
        ("path=in:2", [INET_ROW]),
        ("tables=legacy", [KERNEL, LEGACY]),
        ("tables in ip,ip6", [NFT]),
        ("tables=inet", [INET_ROW]),
        ("tables!=legacy", [NFT, INET_ROW]),
        ("trace_id=1f2e3d4c", [NFT, INET_ROW]),
        ("trace_id=0x1F2E3D4C", [NFT, INET_ROW]),
        ("trace_id=none", [KERNEL, LEGACY]),
        ("trace_id!=1f2e3d4d", [NFT, INET_ROW]),
    ],
)
def test_unknown_values_match_none_only(text: str, seqs: list[int]) -> None:
    assert matched(text) == seqs
    assert matched(query.compile(text).text) == seqs


def test_the_error_for_an_invalid_trace_id_shows_a_valid_one() -> None:
    with pytest.raises(query.QueryError, match="1f2e3d4c"):
        query.compile("trace_id=jail")


@pytest.mark.parametrize("seq", [KERNEL, LEGACY, NFT, INET_ROW])
def test_the_keys_distinguish_tables_of_one_name(seq: int) -> None:
    # GIVEN filter of legacy and of iptables-nft, both with a rule INPUT 1
    legacy = [KERNEL, LEGACY]
    alike = legacy if seq in legacy else [seq]
    here = row(seq)
    step = here.path[-1]
    texts = [
        query.by_rule(here),
        query.by_chain(here),
        query.by_rule_on_path(here.table, step.chain, step.rulenum, here.rules_family, here.netns),
        query.by_chain_on_path(here.table, step.chain, here.rules_family, here.netns),
    ]
    # THEN each key matches only rows of the same table
    for text in texts:
        assert (
            matched(text if here.tables else query.conjunction(text, query.LEGACY_TABLES)) == alike
        )
    assert seq in matched(query.by_process(here))
    assert seq in matched(query.by_verdict(here))


def test_an_inet_rule_matches_packets_of_both_families() -> None:
    calls = RecordedCalls()
    calls.nft(b"t", INET, [(b"in", 2, RULE)], first=True)
    calls.nft(b"t", INET, [(b"in", 2, RULE)], first=True, family=10)
    calls.nft(b"t", IP, [(b"in", 2, RULE)], first=True)
    made = calls.trace("netlink")
    text = query.by_rule(made.store.row(0))
    assert text == "table=t and chain=in and rulenum=2 and tables=inet and netns=4026532456"
    assert matched(text, made) == [0, 1]


def test_an_unknown_hook_is_none() -> None:
    calls = RecordedCalls()
    calls.nft(b"t", INET, [(b"in", 2, POLICY)], hook=255, first=True)
    made = calls.trace("netlink")
    assert made.store.row(0).hook == ""
    assert matched("hook=none", made) == [0]
    assert matched("hook!=INPUT", made) == []


def test_a_rule_is_found_by_its_text_in_the_tables_of_its_own_family() -> None:
    # GIVEN two tables of one name with different rules
    calls = RecordedCalls()
    calls.legacy(b"filter", [(b"INPUT", 1, RULE)], first=True, ruleset=1)
    calls.nft(b"filter", IP, [(b"INPUT", 1, RULE)], ruleset=1)
    made = calls.trace("netlink")
    for family, text in ((4, "-p udp -j ACCEPT"), ("ip", "-p udp -j DROP")):
        chains = {"INPUT": {"policy": "ACCEPT", "rules": [text]}}
        rules = {"netns": 4026532456, "family": family, "table": "filter", "since": 1, "upto": 1}
        made.rulesets.feed({**rules, "chains": chains})
    assert matched("rule~ACCEPT", made) == [0]
    assert matched("rule~DROP", made) == [1]


def test_tables_and_trace_id_are_offered_as_completions() -> None:
    offered = [one.text for one in query.complete("tables=", 7, query.context_of(trace().store))]
    assert offered[:3] == ["legacy", "ip", "ip6"]
    assert [one.text for one in query.complete("trace", 5, query.context_of(trace().store))]
