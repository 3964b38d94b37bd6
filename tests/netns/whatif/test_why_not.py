# SPDX-License-Identifier: GPL-2.0-only
"""Which conditions of a rule a packet does not meet, each as the kernel answers it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipttrace.whatif.copy.running import Copy, running
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.packet.words import parse
from ipttrace.whatif.snapshot.model import Ruleset
from ipttrace.whatif.whynot import place
from ipttrace.whatif.whynot.explain import WhyNot, why_not
from ipttrace.whatif.whynot.words import lines
from tests.netns.whatif.copies import ROUTER, need_namespaces

P = "tcp 10.1.0.2:40000 > 10.2.0.2:443 in lan0 syn"
SETS = "create good hash:ip,port\nadd good 10.1.0.2,tcp:443\n"

# A rule; a packet that meets it; one that differs in one condition; that condition, its value.
CASES = [
    ("-p tcp", P, P.replace("tcp", "udp").removesuffix(" syn"), "-p tcp", "udp"),
    ("-s 10.1.0.0/24 -p tcp", P, P.replace("10.1.0.2", "10.3.0.2"), "-s 10.1.0.0/24", "10.3.0.2"),
    ("! -d 10.9.0.0/16", P, P.replace("10.2.0.2", "10.9.0.1"), "! -d 10.9.0.0/16", "10.9.0.1"),
    ("-p tcp -m tcp --sport 40000:40010 --dport 443", P, P.replace("40000", "5"),
     "--sport 40000:40010", "5"),
    ("-p tcp -m tcp ! --dport 22", P, P.replace("443", "22"), "! --dport 22", "22"),
    ("-i lan0 -p tcp -m multiport --dports 80,443", P, P.replace("443", "8443"),
     "--dports 80,443", "8443"),
    ("-i lan+ -p tcp", P, P.replace("lan0", "wan0"), "-i lan+", "wan0"),
    ("! -o lan0", P, "tcp 10.2.0.2:1 > 10.1.0.9:443 in wan0", "! -o lan0", "lan0"),
    ("-m conntrack --ctstate NEW -m tcp -p tcp --dport 443", P, P.replace("syn", "established"),
     "--ctstate NEW", "ESTABLISHED"),
    ("-m conntrack --ctproto 6 --ctdir ORIGINAL", P, "tcp 10.2.0.2:443 > 10.1.0.2:5 in wan0 reply",
     "--ctdir ORIGINAL", "REPLY"),
    ("-p tcp -m mark --mark 0x0/0xff", P, P.replace("443", "7777"), "-m mark --mark 0x0/0xff",
     "0x12"),
    ("-m connmark --mark 0x0", P, P.replace("syn", "established ctmark 5"),
     "-m connmark --mark 0x0", "0x5"),
    ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", P, P.replace("syn", "ack established"),
     "--tcp-flags FIN,SYN,RST,ACK SYN", "ACK"),
    ("-p icmp -m icmp --icmp-type 8", "icmp 10.1.0.2 > 10.2.0.2 in lan0",
     "icmp 10.1.0.2 > 10.2.0.2 in lan0 type 13", "--icmp-type 8", "13/0"),
    ("-m length --length 40:100", P, P + " len 500", "-m length --length 40:100", "500"),
    ("-m ttl --ttl-gt 10", P, P + " ttl 5", "--ttl-gt 10", "4"),
    ("-m dscp --dscp 0x02", P + " tos 8", P + " tos 16", "-m dscp --dscp 0x02", "4"),
    ('-m string --string "hello -j" --algo bm', P + " payload 0x68656c6c6f202d6a",
     P + " payload help", '--string "hello -j" --algo bm',
     "'help', 4 bytes of payload"),
    ("-m iprange --src-range 10.1.0.1-10.1.0.9 --dst-range 10.2.0.0-10.2.0.3", P,
     P.replace("10.2.0.2", "10.2.0.7"), "--dst-range 10.2.0.0-10.2.0.3", "10.2.0.7"),
    ("-m mac --mac-source 02:00:00:00:01:02", P, P + " from-mac 02:00:00:00:01:09",
     "-m mac --mac-source 02:00:00:00:01:02", "02:00:00:00:01:09"),
    ('-s 10.1.0.2/32 -m comment --comment "-s 1.2.3.4 \\" -j"', P,
     P.replace("10.1.0.2", "10.1.0.3"), "-s 10.1.0.2/32", "10.1.0.3"),
    ("-m set --match-set good src,dst", P, P.replace("443", "80"), "--match-set good src,dst",
     "10.1.0.2,10.2.0.2, tcp:40000 and tcp:80"),
]  # fmt: skip
BEFORE = ("-m addrtype --dst-type UNICAST --limit-iface-in", "-m addrtype --dst-type UNICAST")


def iptables(with_sets: bool) -> str:
    rules = [rule for rule, *_ in CASES if with_sets or "--match-set" not in rule]
    lines = "".join(f"-A FORWARD {rule}\n" for rule in rules)
    return f"""\
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 7777 -j MARK --set-xmark 0x12/0xffffffff
-A PREROUTING -m addrtype --dst-type UNICAST
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:inner - [0:0]
:empty - [0:0]
{lines}-A FORWARD -i lan0 -p udp -g inner
-A FORWARD -p tcp -m tcp --dport 25 -j DROP
-A FORWARD -p icmp
-A inner -s 10.1.0.2/32
COMMIT
"""


@pytest.fixture(scope="module", params=["iptables-legacy", "iptables-nft"])
def tables(request: pytest.FixtureRequest) -> Iterator[Copy]:
    need_namespaces()
    sets = (Ruleset("ipset", SETS, "sets"),) if shutil.which("ipset") else ()
    rules = Ruleset(request.param, iptables(bool(sets)), "rules")
    with running(replace(ROUTER, rulesets=(*sets, rules))) as copy:
        yield copy


def asked(copy: Copy, rule: str, packet: str) -> WhyNot:
    words, rest = place.parse(f"{rule} {packet}")
    what = parse(rest)
    assert isinstance(what, Packet)
    return why_not(copy, what, words)


def missed(found: WhyNot) -> list[tuple[str, str]]:
    assert found.apart is not None
    assert all(one.met is not None or one.value.startswith("asks for -p") for one in
               found.apart.conditions), found.apart  # fmt: skip
    return [(one.text, one.value) for one in found.apart.conditions if one.met is False]


def test_each_kind_of_condition_is_named_with_the_packets_value(tables: Copy) -> None:
    kind = tables.snapshot.rulesets[-1].kind
    saved = tables.run([f"{kind}-save"]).output
    # GIVEN a packet that meets most of the rules, WHEN one is asked for
    same = asked(tables, "filter FORWARD 6", P)
    met = {step.rulenum for row in same.answer.own if row.table == "filter" for step in row.path}
    # THEN it meets each condition, as the rule
    assert (same.matched, missed(same)) == (True, [])
    for number, (rule, meets, differs, condition, value) in enumerate(CASES, 1):
        if "--match-set" in rule and not shutil.which("ipset"):
            continue
        assert number in met or meets != P
        if kind == "iptables-nft" and number % 4:
            continue
        # AND one that differs in one thing does not meet the condition that is about it
        other = asked(tables, f"filter FORWARD {number}", differs)
        assert (other.matched, missed(other)) == (False, [(condition, value)]), rule
    found = asked(tables, "mangle PREROUTING 2", P.replace("10.2.0.2", "10.1.0.1"))
    assert missed(found) == [("-m addrtype --dst-type UNICAST", "LOCAL")]
    # AND the copy's rules are as before
    after = tables.run([f"{kind}-save"]).output
    assert rules_of(after) == rules_of(saved)


def rules_of(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith(("-A", "*"))]


def test_what_keeps_a_packet_from_a_rule_is_named(tables: Copy) -> None:
    last = len(rules_of(iptables(bool(shutil.which("ipset"))))) - 5
    # a verdict before
    found = asked(tables, f"filter FORWARD {last}", P.replace("443", "25"))
    assert not found.reached
    assert found.why.startswith(f"filter FORWARD rule {last - 1} took it before: DROP: ")
    # a goto
    found = asked(tables, f"filter FORWARD {last}", "udp 10.1.0.2:1 > 10.2.0.2:1 in lan0")
    assert found.why == f"filter FORWARD rule {last - 2} sent it away: -i lan0 -p udp -g inner"
    # a jump that was not taken, with what it asks for
    found = asked(tables, "filter inner 1", P)
    (jump,) = found.jumps
    assert [(one.text, one.met, one.value) for one in jump.conditions] == [
        ("-i lan0", True, ""),
        ("-p udp", False, "tcp"),
    ]
    # a hook that is not on its way
    found = asked(tables, "mangle PREROUTING 1", "tcp > 10.2.0.2:1 out")
    assert found.why.startswith("it did not come to mangle PREROUTING: accepted: leaves wan0")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("filter FORWARD 99", "filter FORWARD has .* rules"),
        ("filter NONE 1", "filter has no chain NONE: FORWARD"),
        ("inet filter FORWARD 1", "there is no table inet filter: "),
        ("FORWARD 3", "name a rule, then a packet: filter FORWARD 3"),
    ],
)
def test_a_rule_that_does_not_exist_is_one_clear_line(
    tables: Copy, rule: str, message: str
) -> None:
    with pytest.raises(WhatIfError, match=message):
        asked(tables, rule, P)


NFT_CASES = [
    ("meta l4proto tcp", P, "udp 10.1.0.2:1 > 10.2.0.2:443 in lan0", "meta l4proto tcp", "udp"),
    ("iifname lan0 ip saddr 10.1.0.0/24", P, P.replace("10.1.0.2", "10.3.0.2"),
     "ip saddr 10.1.0.0/24", "10.3.0.2"),
    ("ip daddr != 10.9.0.0/16", P, P.replace("10.2.0.2", "10.9.0.1"), "ip daddr != 10.9.0.0/16",
     "10.9.0.1"),
    ("tcp dport { 80, 443 } ct state new counter", P, P.replace("443", "8443"),
     "tcp dport { 80, 443 }", "8443"),
    ("tcp sport 40000-40010", P, P.replace("40000", "5"), "tcp sport 40000-40010", "5"),
    ("ct state new comment \"ip saddr 1.2.3.4\"", P, P.replace("syn", "established"),
     "ct state new", "established"),
    ("meta mark and 0xff == 0", P, P.replace("443", "7777"),
     "meta mark & 0x000000ff == 0x00000000", "0x00000012"),
    ("tcp flags & (fin | syn | rst | ack) == syn", P, P.replace("syn", "ack established"),
     "tcp flags syn / fin,syn,rst,ack", "ack"),
    ("icmp type echo-request", "icmp 10.1.0.2 > 10.2.0.2 in lan0",
     "icmp 10.1.0.2 > 10.2.0.2 in lan0 type 13", "icmp type echo-request", "timestamp-request"),
    ("meta length 40-100", P, P + " len 500", "meta length 40-100", "500"),
    ("ip ttl > 10", P, P + " ttl 5", "ip ttl > 10", "4"),
    ("oifname != lan0", P, "tcp 10.2.0.2:1 > 10.1.0.9:443 in wan0", 'oifname != "lan0"', '"lan0"'),
    ("ip saddr . tcp dport @good", P, P.replace("443", "80"), "ip saddr . tcp dport @good",
     "10.1.0.2 . 80"),
    ("tcp dport vmap @ways", P, P.replace("443", "80"), "tcp dport vmap @ways", "80"),
    ("meta mark set tcp dport map { 443 : 0x0, 7777 : 0x5 }", P, P.replace("443", "80"),
     "meta mark set tcp dport map { 443 : 0x00000000, 7777 : 0x00000005 }", ""),
    ("ip dscp cs1", P + " tos 32", P + " tos 16", "ip dscp cs1", "0x04"),
]  # fmt: skip


@pytest.fixture(scope="module")
def nftables() -> Iterator[Copy]:
    need_namespaces()
    rules = "\n".join(rule for rule, *_ in NFT_CASES)
    text = f"""\
table inet filter {{
    set good {{ type ipv4_addr . inet_service; elements = {{ 10.1.0.2 . 443 }} }}
    map ways {{ type inet_service : verdict; elements = {{ 443 : jump inner, 7777 : jump inner }} }}
    chain inner {{
        ip ttl 1
    }}
    chain marking {{
        type filter hook prerouting priority -150; policy accept;
        tcp dport 7777 meta mark set 0x12
        fib daddr type unicast
    }}
    chain forward {{
        type filter hook forward priority 0; policy accept;
{rules}
        tcp dport 25 drop
        counter
    }}
}}
"""
    with running(replace(ROUTER, rulesets=(Ruleset("nft", text, "rules"),))) as copy:
        yield copy


def test_each_kind_of_condition_of_nftables(nftables: Copy) -> None:
    saved = nftables.run(["nft", "-s", "list", "ruleset"]).output
    same = asked(nftables, "inet filter forward 4", P)
    met = {step.rulenum for row in same.answer.own for step in row.path if step.chain == "forward"}
    assert (same.matched, missed(same)) == (True, [])
    for number, (rule, meets, differs, condition, value) in enumerate(NFT_CASES, 1):
        assert number in met or meets != P
        name = f"inet filter forward {number}"
        other = asked(nftables, name, differs)
        assert (other.matched, missed(other)) == (False, [(condition, value)]), rule
    found = asked(nftables, "inet filter marking 2", P.replace("10.2.0.2", "10.1.0.1"))
    assert missed(found) == [("fib daddr type unicast", "local")]
    assert nftables.run(["nft", "-s", "list", "ruleset"]).output == saved


def test_what_keeps_a_packet_from_a_rule_of_nftables(nftables: Copy) -> None:
    last = len(NFT_CASES) + 2
    found = asked(nftables, f"inet filter forward {last}", P.replace("443", "25"))
    assert found.why == (
        f"inet filter forward rule {last - 1} took it before: DROP: tcp dport 25 drop"
    )
    found = asked(nftables, "inet filter inner 1", P.replace("443", "80"))
    (jump,) = found.jumps
    assert [(one.text, one.met, one.value) for one in jump.conditions] == [
        ("tcp dport vmap @ways", False, "80")
    ]
    # by its handle
    (handle,) = found.place.table.chains["inner"].handles
    found = asked(nftables, f"inet filter inner handle {handle}", P)
    assert (found.reached, missed(found)) == (True, [("ip ttl 1", "63")])


HOSTILE = """\
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m comment --comment "a\\" --modprobe=/bin/sh -j DROP" -p udp
-A FORWARD -i --modprobe=/b -p udp
-A FORWARD -p tcp -m string --string "--modprobe=/bin/sh" --algo bm
-A FORWARD -m comment --comment "\x1b[2J\u202e" -p udp
COMMIT
"""


@pytest.mark.parametrize("kind", ["iptables-legacy", "iptables-nft"])
def test_rules_that_look_like_options_stay_words(kind: str) -> None:
    need_namespaces()
    with running(replace(ROUTER, rulesets=(Ruleset(kind, HOSTILE, "rules"),))) as copy:
        found = [asked(copy, f"filter FORWARD {number}", P) for number in range(1, 5)]
        assert [[text for text, _ in missed(one)] for one in found] == [
            ["-p udp"],
            ["-i --modprobe=/b", "-p udp"],
            ['--string "--modprobe=/bin/sh" --algo bm'],
            ["-p udp"],
        ]
        assert all(line.isprintable() for one in found for line in lines(one, []))
