# SPDX-License-Identifier: GPL-2.0-only
"""Rules that iptables made read as in iptables-save; rules that it misprints as nft lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.netns.ruleset_namespace import IP, RulesetNamespace, ruleset_namespace


@pytest.fixture
def space() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def test_every_rule_that_iptables_made_has_the_words_of_iptables(space: RulesetNamespace) -> None:
    # GIVEN rules that iptables-nft makes of native expressions, in several ways
    ports = ["--sport 68 --dport 67", "! --sport 68 --dport 67", "--sport 68 ! --dport 67",
             "--sport 68:70 --dport 67", "--sport 68 --dport 67:80", "--dport :80", "--dport 80:",
             "! --sport 68:70 ! --dport 67:80"]  # fmt: skip
    rules = [f"-p {proto} {one}" for proto in ("udp", "tcp") for one in ports]
    rules += ["-p tcp --sport 5 --dport 6 --tcp-flags SYN,ACK SYN", "-p tcp ! --syn", "-f", "! -f",
              "-p icmp --icmp-type echo-request", "-p icmp ! --icmp-type 3", "! -p tcp",
              "-p icmp --icmp-type 3/4", "-i eth+", "! -i eth+", "-s 10.0.0.0/255.0.255.0",
              "! -s 10.0.0.0/9", "-m mark --mark 5", "-m mark ! --mark 5/7", "-m ttl --ttl-eq 5",
              "-m ttl --ttl-lt 5", "-m pkttype ! --pkt-type broadcast"]  # fmt: skip
    made = "".join(f"-A INPUT {one} -j ACCEPT\n" for one in rules)
    space.run("iptables-nft-restore", input=f"*filter\n{made}COMMIT\n")
    # THEN each row's rule reads as in iptables-save
    saved = re.findall(r"^-A INPUT (.*)$", space.run("iptables-nft-save"), re.MULTILINE)
    assert len(saved) == len(rules)
    assert space.chain(IP, "filter", "INPUT").rules == saved


@pytest.mark.parametrize("family", [4, 6])
def test_the_rules_of_all_chains_that_iptables_creates_have_its_words(
    space: RulesetNamespace, family: int
) -> None:
    hooks = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    chains = {
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": hooks,
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "filter": hooks[1:4],
        "security": hooks[1:4],
    }
    for table, names in chains.items():
        for name in names:
            space.iptables("-t", table, "-A", name, "-p", "udp", "-j", "ACCEPT", family=family)
    found = space.read()
    assert {
        (table, name): chain.rules
        for (_, table), text in found.items()
        for name, chain in text.chains.items()
    } == {(table, name): ["-p udp -j ACCEPT"] for table, names in chains.items() for name in names}


def test_a_foreign_base_chain_leaves_the_other_chains_the_words_of_iptables(
    space: RulesetNamespace,
) -> None:
    space.iptables("-A", "INPUT", "-s", "10.0.0.1", "-j", "DROP")
    space.nft("table ip filter { chain mine { type filter hook input priority 7;"
              " ip saddr 10.0.0.2 counter drop; }; }")  # fmt: skip
    chains = space.read()[IP, "filter"].chains
    assert chains["INPUT"].rules == ["-s 10.0.0.1/32 -j DROP"]
    assert chains["mine"].rules == ["ip saddr 10.0.0.2 counter drop"]


@pytest.mark.parametrize(
    ("native", "forged"),
    [
        ("ip saddr { 1.1.1.1, 2.2.2.2 } counter accept", "-j ACCEPT"),
        ("ip saddr 1.1.1.1 ip saddr != 2.2.2.2 accept", "! -s 2.2.2.2/32 -j ACCEPT"),
        ("ip saddr > 1.2.3.4 accept", "-s 1.2.3.4/32 -j ACCEPT"),
        ("tcp sequence 5 accept", "-p tcp -j ACCEPT"),
        ("udp length 8 accept", "-p udp -j ACCEPT"),
        ("meta l4proto { 6, 17 } accept", "-j ACCEPT"),
        ("icmp type != 8 accept", "-p icmp -m icmp --icmp-type 8 -j ACCEPT"),
        ("icmp code 3 accept", "-p icmp -m icmp --icmp-type any -j ACCEPT"),
        ("ip frag-off & 0x2000 != 0 accept", "-f -j ACCEPT"),
        ("ip frag-off & 0x1fff == 5 accept", "! -f -j ACCEPT"),
        ("meta l4proto 6 @th,0,8 5 accept", "-p tcp -j ACCEPT"),
        ("meta l4proto 17 @th,104,8 5 accept", "-p udp -j ACCEPT"),
        ("meta l4proto 6 @th,0,32 != 5 accept", "-p tcp -m tcp ! --sport 0 ! --dport 5 -j ACCEPT"),
    ],
)
def test_a_rule_that_iptables_misprints_has_the_text_of_nft(
    space: RulesetNamespace, native: str, forged: str
) -> None:
    # GIVEN a table of iptables with a rule added by nft, which iptables-nft-save misprints
    space.iptables("-A", "INPUT", "-s", "10.0.0.1", "-j", "DROP")
    space.nft(f"add rule ip filter INPUT {native}")
    space.iptables("-A", "INPUT", "-j", "RETURN")
    assert f"-A INPUT {forged}\n" in space.run("iptables-nft-save")
    table = space.read()[IP, "filter"]
    assert table.backend == "iptables-nft"
    first, middle, last = table.chains["INPUT"].rules
    assert (first, last) == ("-s 10.0.0.1/32 -j DROP", "-j RETURN")
    listed = space.run("nft", "-s", "list", "chain", "ip", "filter", "INPUT").splitlines()
    assert middle == listed[4].strip()
