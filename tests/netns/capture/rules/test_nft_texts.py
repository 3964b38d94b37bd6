# SPDX-License-Identifier: GPL-2.0-only
"""Each rule has the text of the tool that made it, under the number in that tool's listing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.netlink.nft.dump import Dump
from ipttrace.capture.netlink.nft.table import FlipTable
from ipttrace.capture.rules import nft_expressions, nft_texts
from ipttrace.capture.rules.nft_texts import Changed
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


@pytest.fixture
def space() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


NATIVE = r"""
table inet t {
  comment "a table { # handle 3"
  set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 }; }
  map m { type ipv4_addr : verdict; elements = { 10.0.0.1 : jump other, 10.0.0.2 : drop }; }
  counter named { }
  chain other {
    comment "no base # handle 3"
    counter packets 3 bytes 99 comment "evil } { # handle 3 \\"
    ip saddr @s return
    ip saddr { 1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 10.2.3.4 } drop
  }
  chain last { }
  chain in {
    comment "two lines
	}"
    type filter hook input priority -5; policy drop;
    ip saddr vmap @m
    tcp dport vmap { 22 : accept, 23 : goto last, 1000-2000 : jump other }
    ip6 saddr ::1 accept comment "a
b"
    log prefix "x } # handle 9" level info
    ct state established,related counter name named accept
    limit rate 5/second counter packets 7 bytes 700 goto last
  }
}
table arp t { chain i { type filter hook input priority 0; arp operation request counter drop; }; }
table bridge t { chain p { type filter hook forward priority 0; ether type ip drop; }; }
table netdev t { chain n { type filter hook ingress device lo priority 0; counter; }; }
table ip6 t { chain f { type filter hook forward priority 5; policy accept; }; }
"""


def test_native_rules_have_the_text_that_nft_lists(space: RulesetNamespace) -> None:
    space.nft(NATIVE)
    found = space.read()
    assert {table.backend for table in found.values()} == {"nft"}
    assert set(found) == {(family, "t") for family in (INET, ARP, BRIDGE, NETDEV, IP6)}
    chains = found[INET, "t"].chains
    assert chains["other"].rules == [
        r'counter comment "evil } { # handle 3 \\"',
        "ip saddr @s return",
        "ip saddr { 1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 10.2.3.4 } drop",
    ]
    assert chains["in"].rules == [
        "ip saddr vmap @m",
        "tcp dport vmap { 22 : accept, 23 : goto last, 1000-2000 : jump other }",
        'ip6 saddr ::1 accept comment "a\nb"',
        'log prefix "x } # handle 9" level info',
        'ct state established,related counter name "named" accept',
        "limit rate 5/second counter goto last",
    ]
    assert chains["last"].rules == []
    # AND so are policies and counters
    assert {name: chain.policy for name, chain in chains.items()} == {
        "other": None, "last": None, "in": "drop",
    }  # fmt: skip
    assert chains["other"].counters == [(3, 99), None, None]
    assert chains["in"].counters == [None] * 5 + [(7, 700)]
    assert found[ARP, "t"].chains["i"].rules == ["arp operation request counter drop"]
    assert found[BRIDGE, "t"].chains["p"].rules == ["ether type ip drop"]
    assert found[NETDEV, "t"].chains["n"].counters == [(0, 0)]
    assert found[IP6, "t"].chains["f"].policy == "accept"


@pytest.mark.parametrize("family", [4, 6])
def test_rules_of_iptables_nft_have_the_text_that_iptables_saves(
    space: RulesetNamespace, family: int
) -> None:
    rules = [
        "-i lo -j ACCEPT",
        "-s ADDRESS -p udp -m udp ! --sport 53 -j services",
        "-i eth+ ! -o lo -p tcp -m tcp --dport 22:25 --tcp-flags SYN,ACK SYN -j DROP",
        "-p tcp -m multiport --dports 22,80,1000:2000 -m conntrack --ctstate NEW -j ACCEPT",
        '-m limit --limit 5/sec -m comment --comment "a \\"test\\" } # handle 3" -g services',
        "-m mark --mark 0x1/0x3 -j LOG --log-prefix \"x # handle 4\"",
        "",
        "-m pkttype --pkt-type broadcast -j NFLOG --nflog-group 5",
        "-p ICMP -j RETURN",
    ]  # fmt: skip
    address = {4: "10.0.0.0/8", 6: "2001:db8::/32"}[family]
    icmp = {4: "icmp -m icmp --icmp-type 8", 6: "ipv6-icmp -m icmp6 --icmpv6-type 128"}[family]
    rules = [one.replace("ADDRESS", address).replace("ICMP", icmp) for one in rules]
    text = "*filter\n:FORWARD DROP [0:0]\n:services - [0:0]\n"
    text += "".join(f"[{n}:{n * 10}] -A FORWARD {one}\n" for n, one in enumerate(rules, 1))
    text += (
        "[1:2] -A services -p tcp -j RETURN\nCOMMIT\n*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    )
    six = "6" if family == 6 else ""
    space.run(f"ip{six}tables-nft-restore", "-c", input=text)
    # THEN each has its own text, and all tables of iptables are recognised
    proto = IP6 if family == 6 else IP
    found = space.read()
    assert {key: table.backend for key, table in found.items()} == {
        (proto, "filter"): "iptables-nft",
        (proto, "nat"): "iptables-nft",
    }
    chains = found[proto, "filter"].chains
    assert chains["FORWARD"].rules == rules
    assert chains["FORWARD"].policy == "DROP"
    assert (chains["services"].policy, chains["services"].rules) == (None, ["-p tcp -j RETURN"])
    assert found[proto, "nat"].chains["POSTROUTING"].rules == ["-j MASQUERADE"]
    # AND the numbers are those of iptables' own listing
    listed = space.run(f"ip{six}tables-nft", "-L", "FORWARD", "--line-numbers", "-v", "-n", "-x")
    numbers = [tuple(map(int, line.split()[:3])) for line in listed.splitlines()[2:]]
    counters = chains["FORWARD"].counters
    assert numbers == [(n, *(pair or ())) for n, pair in enumerate(counters, 1)]
    # ip6tables-nft-restore ignores the counters of rules.
    assert counters == [(n, n * 10) if family == 4 else (0, 0) for n, *_ in numbers]
    # AND iptables prints all of each rule, so that nft is not needed
    with space.enter():
        dump = Dump()
        assert all(
            nft_expressions.iptables_prints_all(proto, rule.expressions) for rule in dump.rules()
        )
        dump.close()


def test_native_rules_and_those_of_iptables_side_by_side_have_their_own_texts(
    space: RulesetNamespace,
) -> None:
    space.nft(NATIVE)
    space.iptables("-A", "INPUT", "-s", "10.0.0.1", "-j", "DROP")
    space.iptables("-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT", family=6)
    found = space.read()
    assert found[INET, "t"].chains["in"].rules[0] == "ip saddr vmap @m"
    assert found[IP, "filter"].chains["INPUT"].rules == ["-s 10.0.0.1/32 -j DROP"]
    assert found[IP6, "filter"].chains["INPUT"].rules == ["-p tcp -m tcp --dport 22 -j ACCEPT"]


@pytest.mark.parametrize(
    "table",
    [
        "table ip filter { chain input { type filter hook input priority 0; RULE }; }",
        "table ip filter { chain INPUT { type filter hook input priority 5; RULE }; }",
        "table ip filter { chain INPUT { type filter hook forward priority 0; RULE }; }",
        "table ip filter { chain INPUT { RULE }; }",
        "table ip other { chain INPUT { type filter hook input priority 0; RULE }; }",
        "table inet filter { chain INPUT { type filter hook input priority 0; RULE }; }",
        "table ip filter { chain INPUT { type filter hook input priority 0; RULE ct state 1; }; }",
    ],
)
def test_a_table_unlike_those_of_iptables_is_native(space: RulesetNamespace, table: str) -> None:
    space.nft(table.replace("RULE", "ip saddr 10.0.0.1 counter drop;"))
    ((_, found),) = space.read().items()
    assert found.backend == "nft"
    ((_, chain),) = found.chains.items()
    assert chain.rules[0] == "ip saddr 10.0.0.1 counter drop"


@pytest.mark.parametrize(
    "comment",
    [
        'x" # handle 4',
        'x" # handle 3\n\t\tdrop # handle 4',
        'x" # handle 3\n\t\tdrop # handle 4\n\t\tlog prefix "',
        "x\n\t}\n",
        'x" # handle 3\n\t}\n\tchain d { # handle 2\n\t\tdrop # handle 6\n\t}\n',
        'x" # handle 3\n\t}\n}\ntable ip k { # handle 1\n\tchain d { # handle 2\n\t\tx # handle 6',
        "\x1b[2J\u202e",
    ],
)
def test_comments_that_look_like_rules_never_cause_a_wrong_text(
    space: RulesetNamespace, comment: str
) -> None:
    # GIVEN a comment that only the JSON interface of nft accepts
    rule: dict[str, object] = {"family": "ip", "table": "k", "chain": "c"}
    add: list[dict[str, dict[str, object]]] = [{"table": {"family": "ip", "name": "k"}}]
    add += [{"chain": {"family": "ip", "table": "k", "name": name}} for name in "cd"]
    add += [{"rule": {**rule, "expr": [{"accept": None}], "comment": comment}},
            {"rule": {**rule, "expr": [{"return": None}]}},
            {"rule": {**rule, "chain": "d", "expr": [{"continue": None}]}}]  # fmt: skip
    space.json(json.dumps({"nftables": [{"add": one} for one in add]}))
    chains = space.read()[IP, "k"].chains
    right = [f'accept comment "{comment}"', "return"]
    assert len(chains["c"].rules) == 2
    for text, expected in zip(chains["c"].rules, right, strict=True):
        assert text is None or text.split() == expected.split()
    assert chains["d"].rules in (["continue"], [None])
    if "\n" not in comment:
        assert chains["c"].rules == right


def test_rule_numbers_match_nfts_listing_after_insertions_and_deletions(
    space: RulesetNamespace,
) -> None:
    space.nft("table inet t { chain c { tcp dport 1; tcp dport 2; tcp dport 3; }; }")
    handles = space.snapshot().chains[INET, "t", "c"].handles
    space.nft(f"insert rule inet t c tcp dport 4\ndelete rule inet t c handle {handles[1]}\n"
              f"add rule inet t c position {handles[0]} tcp dport 5")  # fmt: skip
    listed = space.run("nft", "-a", "list", "chain", "inet", "t", "c")
    expected = re.findall(r"\t\t(.*) # handle \d+", listed)
    assert space.chain(INET, "t", "c").rules == expected
    assert sorted(expected) == [f"tcp dport {port}" for port in (1, 3, 4, 5)]


def test_counters_are_those_of_the_kernel(space: RulesetNamespace) -> None:
    space.nft("table ip t { chain o { type filter hook output priority 0;\n"
              "icmp type echo-request counter\nudp dport 9 counter; }; }")  # fmt: skip
    space.run("ping", "-c", "23", "-i", "0.002", "-q", "127.0.0.1")
    before = space.chain(IP, "t", "o")
    assert before.counters == [(23, 23 * 84), (0, 0)]
    assert before.rules == ["icmp type echo-request counter", "udp dport 9 counter"]


def test_tables_that_flip_are_omitted_and_do_no_harm(space: RulesetNamespace) -> None:
    space.nft("table inet t { chain c { accept; }; }")
    with space.enter(), FlipTable() as table:
        table.install(nft_filter.compile(pcapfilter.compile("port 53")))
        snapshot = space.snapshot()
        assert (INET, table.name.decode()) in snapshot.tables
        found = nft_texts.read(snapshot)
    assert set(found) == {(INET, "t")}
    assert found[INET, "t"].chains["c"].rules == ["accept"]


def test_reading_changes_nothing(space: RulesetNamespace) -> None:
    space.nft("table ip filter { }; table ip6 nat { }; table inet t { chain c { }; }")
    before = space.snapshot()
    space.read()
    assert space.snapshot() == before


def test_a_ruleset_that_differs_from_the_snapshot_raises_changed(space: RulesetNamespace) -> None:
    space.nft("table ip t { chain c { accept; }; }")
    snapshot = space.snapshot()
    space.nft("add rule ip t c drop")
    with space.enter(), pytest.raises(Changed):
        nft_texts.read(snapshot)


def test_rules_that_change_during_a_read_are_consistent_or_raise_changed(
    space: RulesetNamespace,
) -> None:
    # GIVEN rules whose comment is their generation
    def replace(number: int) -> None:
        rules = f"-A INPUT -m comment --comment {number} -j DROP\n" * 9
        space.run("iptables-nft-restore", input=f"*filter\n:INPUT ACCEPT\n{rules}COMMIT\n")
        rules = f'accept comment "{number}"\n' * 9
        space.nft(f"table ip t\ndelete table ip t\ntable ip t {{ chain c {{ {rules} }}; }}")

    replace(0)
    done = threading.Event()

    def change() -> None:
        for number in range(1, 51):
            replace(number)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    right = changed = 0
    try:
        while not done.is_set():
            try:
                found = space.read()
            except (Changed, CaptureError):
                changed += 1
                continue
            right += 1
            # THEN all texts of a table are of one generation
            for key, chain, text in (
                ((IP, "filter"), "INPUT", "-m comment --comment {} -j DROP"),
                ((IP, "t"), "c", 'accept comment "{}"'),
            ):
                rules = found[key].chains[chain].rules
                assert len(rules) == 9
                assert len(set(rules)) == 1
                number = re.findall(r"\d+", rules[0] or "")[0]
                assert rules[0] == text.format(number)
    finally:
        thread.join()
    assert changed
    # AND once the changes end, the rules are read
    assert space.chain(IP, "t", "c").rules == ['accept comment "50"'] * 9


def test_five_thousand_rules_have_their_texts(space: RulesetNamespace) -> None:
    space.nft("table inet t {\n set s { type ipv4_addr; elements = { "
              + ", ".join(f"10.1.{n >> 8}.{n & 255}" for n in range(20_000))
              + " }; }\n chain c {\n"
              + "".join(f'tcp dport {n} counter packets {n} bytes 1 accept comment "no {n}"\n'
                        for n in range(1, 2501)) + "}\n}\n")  # fmt: skip
    space.run("iptables-nft-restore", input="*filter\n" + "".join(
        f"-A INPUT -p tcp -m tcp --dport {n} -j ACCEPT\n" for n in range(1, 2501)) + "COMMIT\n",
    )  # fmt: skip
    found = space.read()
    chain = found[INET, "t"].chains["c"]
    assert chain.rules == [f'tcp dport {n} counter accept comment "no {n}"' for n in range(1, 2501)]
    assert chain.counters == [(n, 1) for n in range(1, 2501)]
    assert found[IP, "filter"].chains["INPUT"].rules == [
        f"-p tcp -m tcp --dport {n} -j ACCEPT" for n in range(1, 2501)
    ]


def test_without_nft_iptables_rules_have_texts_and_a_note_names_what_is_missing(
    space: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.nft("table inet t { chain c { counter accept; }; }")
    space.iptables("-A", "INPUT", "-j", "DROP")
    which = nft_texts._command
    monkeypatch.setattr(nft_texts, "_command", lambda name: None if name == "nft" else which(name))
    notes: list[str] = []
    snapshot = space.snapshot()
    with space.enter():
        found = nft_texts.read(snapshot, notes.append)
    assert notes == ["nft is missing (apt install nftables): nftables' rules have no texts"]
    assert found[IP, "filter"].chains["INPUT"].rules == ["-j DROP"]
    assert found[INET, "t"].chains["c"].rules == [None]
    assert found[INET, "t"].chains["c"].counters == [(0, 0)]
    # AND without a function for notes that is an error
    with space.enter(), pytest.raises(CaptureError, match=r"^nft is missing"):
        nft_texts.read(snapshot)


def test_without_iptables_its_rules_have_the_texts_of_nft(
    space: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.iptables("-A", "INPUT", "-s", "10.0.0.1", "-j", "DROP")
    which = nft_texts._command
    monkeypatch.setattr(nft_texts, "_command", lambda name: which(name) if name == "nft" else None)
    found = space.read()[IP, "filter"]
    assert found.backend == "nft"
    assert found.chains["INPUT"].rules == ["ip saddr 10.0.0.1 counter drop"]


def test_a_command_that_fails_is_reported_in_one_line(
    space: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.nft("table inet t { chain c { accept; }; }")
    monkeypatch.setattr(nft_texts, "_command", lambda name: "/bin/false")
    with pytest.raises(CaptureError, match=r"^false fails: status 1$"):
        space.read()
