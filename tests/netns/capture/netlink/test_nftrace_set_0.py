# SPDX-License-Identifier: GPL-2.0-only
"""Rules of others that end the tracing of packets are named, once each."""

from __future__ import annotations

from contextlib import closing

import pytest

from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from tests.netns.loopback import LoopbackNamespace, until

BLIND = """
table inet blind {
  chain hide { type filter hook input priority -10; udp dport 9 meta nftrace set 0; }
  chain hide2 { meta nftrace set 0; tcp dport 1 counter meta nftrace set 0 accept; }
}
"""


def warnings(engine: NetlinkEngine) -> list[str]:
    return [text for level, text in engine.notes if level == "warn" and "nftrace" in text]


def load(namespace: LoopbackNamespace, rules: str) -> None:
    namespace.run("nft", "-f", "-", text=rules.replace("; }", ";\n }"))


def test_a_rule_that_sets_nftrace_to_0_is_named_at_the_start(namespace: LoopbackNamespace) -> None:
    load(namespace, BLIND)
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        found = warnings(engine)
    assert len(found) == 2
    assert found[0].startswith("table inet blind, chain hide of network namespace")
    assert found[1].startswith("table inet blind, chain hide2 of network namespace")


def test_a_rule_that_sets_nftrace_to_0_is_named_when_it_appears(
    namespace: LoopbackNamespace,
) -> None:
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        assert warnings(engine) == []
        # WHEN such a rule is added, and later others
        load(namespace, BLIND)
        until(lambda: bool(engine.take()) and len(warnings(engine)) == 2, "the warning")
        load(namespace, "table inet blind { chain other { counter; }\n}")
        namespace.wait_read()
        engine.take()
        engine.take()
        # THEN there is still one warning for each chain
        assert len(warnings(engine)) == 2


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("meta nftrace set 1", False),
        ("meta nftrace set 0", True),
        ("meta mark set 0 meta nftrace set 1", False),
        ("meta mark set 0", False),
        ("ip ttl 7 counter meta nftrace set 0 accept", True),
        ("meta nftrace set numgen inc mod 2 map { 0 : 0, 1 : 1 }", True),
    ],
)
def test_only_rules_that_may_set_0_are_named(
    namespace: LoopbackNamespace, rule: str, named: bool
) -> None:
    namespace.run("nft", "add", "rule", "ip", "t", "in", *rule.split())
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        assert bool(warnings(engine)) == named


def test_a_dormant_table_is_not_named_until_it_is_awake(namespace: LoopbackNamespace) -> None:
    load(namespace, BLIND.replace("blind {", "blind { flags dormant;\n"))
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        assert warnings(engine) == []
        namespace.run("nft", "add", "table", "inet", "blind", "{", "}", ";")
        until(lambda: bool(engine.take()) and len(warnings(engine)) == 2, "the warning")
