# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of nftables are complete, of one generation, and taken quickly."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.netlink.nft.dump import Dump
from ipttrace.capture.netlink.nft.table import FlipTable
from ipttrace.netfilter import ACCEPT, DROP
from tests.netns.ruleset_namespace import (
    ARP,
    BRIDGE,
    INET,
    IP,
    IP6,
    NETDEV,
    RulesetNamespace,
    ruleset_namespace,
)
from tests.paths import PROJECT

ROOT = PROJECT

FAMILIES = """
table inet t {
  chain other { comment "one\ntwo"; }
  chain in { type filter hook input priority -150; policy drop; accept; drop; }
}
table ip t { chain out { type nat hook output priority -100; }; }
table ip6 t { chain f { type filter hook forward priority 5; }; }
table arp t { chain i { type filter hook input priority 0; }; }
table bridge t { chain p { type filter hook prerouting priority -300; }; }
table netdev t { chain n { type filter hook ingress device lo priority 7; }; }
"""


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def test_every_family_is_listed_with_its_hooks_and_policies(namespace: RulesetNamespace) -> None:
    namespace.nft(FAMILIES)
    found = namespace.snapshot()
    assert set(found.tables) == {(family, "t") for family in (INET, IP, IP6, ARP, BRIDGE, NETDEV)}
    assert all(info.handle > 0 and info.owner is None for info in found.tables.values())
    bases = {
        (family, chain): (info.hook, info.priority, info.type, info.policy, info.devices)
        for (family, _, chain), info in found.chains.items()
    }
    assert bases == {
        (INET, "other"): (None, None, "", None, ()),
        (INET, "in"): (1, -150, "filter", 0, ()),
        (IP, "out"): (3, -100, "nat", 1, ()),
        (IP6, "f"): (2, 5, "filter", 1, ()),
        (ARP, "i"): (0, 0, "filter", 1, ()),
        (BRIDGE, "p"): (0, -300, "filter", 1, ()),
        (NETDEV, "n"): (0, 7, "filter", 1, ((1, b"lo"),)),
    }
    assert found.chains[INET, "t", "other"].comment == "one\ntwo"
    assert len(found.chains[INET, "t", "in"].handles) == 2
    assert found.chains[INET, "t", "in"].verdicts == [ACCEPT, DROP]


def test_the_verdict_of_a_rule_that_has_only_one_is_known(namespace: RulesetNamespace) -> None:
    for words in (
        "-p udp --dport 22 -j ACCEPT",
        "-j DROP",
        "-p tcp -j REJECT",
        "-j LOG",
        "-p udp -m multiport --dports 1,2",
    ):
        namespace.iptables("-A", "INPUT", *words.split())
    namespace.nft("""
table ip t {
  chain c { }
  chain d { jump c; goto c; return; reject; ip saddr vmap { 192.0.2.1 : drop }; }
}
""")
    found = namespace.snapshot().chains
    assert found[IP, "filter", "INPUT"].verdicts == [ACCEPT, DROP, DROP, -1, None]
    assert found[IP, "t", "d"].verdicts == [-3, -4, -5, DROP, None]


def test_handles_are_in_the_order_of_the_rules(namespace: RulesetNamespace) -> None:
    namespace.nft("table ip t { chain c { accept; drop; return; }; }")
    handles = namespace.snapshot().chains[IP, "t", "c"].handles
    # WHEN one is inserted first, one in the middle, and one is deleted
    namespace.nft(f"insert rule ip t c continue\nadd rule ip t c position {handles[0]} counter\n"
              f"delete rule ip t c handle {handles[1]}")  # fmt: skip
    found = namespace.snapshot().chains[IP, "t", "c"].handles
    assert [one for one in found if one in handles] == [handles[0], handles[2]]
    assert found.index(handles[0]) == 1
    assert found.index(handles[2]) == 3
    listed = namespace.run("nft", "-a", "list", "chain", "ip", "t", "c")
    assert [f"# handle {one}" for one in found] == [
        line[line.index("# handle") :] for line in listed.splitlines() if line.startswith("\t\t")
    ]


def test_a_table_made_again_has_another_handle_and_each_change_a_generation(
    namespace: RulesetNamespace,
) -> None:
    namespace.nft("table ip t { chain c { accept; }; }")
    before = namespace.snapshot()
    namespace.nft("delete table ip t\ntable ip t { chain c { accept; }; }")
    after = namespace.snapshot()
    assert before.chains == after.chains
    assert before.tables[IP, "t"].handle != after.tables[IP, "t"].handle
    assert after.genid == before.genid + 1
    assert namespace.snapshot() == after


def test_a_snapshot_has_the_owner_of_a_table(namespace: RulesetNamespace) -> None:
    with namespace.enter(), FlipTable() as table:
        table.install(nft_filter.compile(pcapfilter.compile("")))
        found = namespace.snapshot().tables[INET, table.name.decode()]
        if table.owned:
            assert found.owner == table.portid
    assert namespace.snapshot().tables == {}


def test_a_namespace_without_rules_is_empty(namespace: RulesetNamespace) -> None:
    found = namespace.snapshot()
    assert (found.tables, found.chains) == ({}, {})


def test_a_snapshot_taken_while_rules_change_is_of_one_generation(
    namespace: RulesetNamespace,
) -> None:
    # GIVEN rulesets that have as many rules in one chain as in the other
    def rules(number: int) -> str:
        some = "accept; " * number
        return f"flush ruleset\ntable ip t {{ chain a {{ {some} }}; chain b {{ {some} }}; }}\n"

    namespace.nft(rules(1))
    done = threading.Event()

    def change() -> None:
        for turn in range(50):
            namespace.nft(rules(1 + turn % 7 * 20))
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    try:
        with namespace.enter(), contextlib.closing(Dump()) as dump:
            while not done.is_set():
                try:
                    found = dump.snapshot()
                except CaptureError:
                    continue  # they change faster than they can be listed
                # THEN a snapshot is never of two generations
                sizes = {len(chain.handles) for chain in found.chains.values()}
                assert len(sizes) == 1, found
                seen |= sizes
    finally:
        thread.join()
    assert len(seen) > 1


def test_ten_thousand_rules_are_listed(namespace: RulesetNamespace) -> None:
    namespace.nft(
        "table ip t {\n chain c {\n" + "  ip saddr 10.0.0.1 counter accept\n" * 10_000 + "}\n}\n"
    )
    with namespace.enter(), contextlib.closing(Dump()) as dump:
        found = dump.snapshot().chains[IP, "t", "c"].handles
        assert len(found) == len(set(found)) == 10_000
        assert [rule.handle for rule in dump.rules()] == found


def test_without_the_capability_one_line_says_so(namespace: RulesetNamespace) -> None:
    code = (
        "from ipttrace.capture.netlink.nft.dump import Dump\n"
        "from ipttrace.capture.errors import CaptureError\n"
        "try: Dump()\nexcept CaptureError as error: print(error)"
    )
    printed = namespace.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
                     "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", code)  # fmt: skip
    assert printed == (
        "tracing with nf_tables needs CAP_NET_ADMIN in the network namespace: run with sudo\n"
    )
