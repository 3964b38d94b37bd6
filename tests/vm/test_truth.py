# SPDX-License-Identifier: GPL-2.0-only
"""Compares rows with the counters of iptables, without expectations written by hand."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import ROLES, Counters, Network
from ipttrace.lab.network.ns import socket_in
from ipttrace.trace.row import Row, Step
from tests.lab import scenarios
from tests.lab.scenarios import COUNT, path
from tests.vm.conftest import captured
from tests.vm.plain import LOOPBACK, Plain

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
MIXED = (
    "ping",
    "dropped by source in raw",
    "dropped by port in a chain below a chain",
    "dropped by policy",
    "logged and dropped",
    "rejected with a reset",
    "rejected with an ICMP error",
    "rejected by the sender with a reset",
    "rejected by the sender with an ICMP error",
    "TCP through DNAT and MASQUERADE",
    "SCTP",
    "fragments",
    "ICMP errors for a closed port",
    "untracked",
)


def counted_by_rows(rows: Iterable[Row], family: int) -> dict[int, Counters]:
    """netns → the counters that its rules must have if there were only these rows.

    0 is the number of a policy, as in Network.counters(); no counter contains the end of a
    user chain.
    """
    found: dict[int, dict[tuple[str, str, int], tuple[int, int]]] = {}
    for row in rows:
        if row.family != family:
            continue
        counters = found.setdefault(row.netns, {})
        for step in row.path:
            rule = (row.table, step.chain, 0 if step.match == "policy" else step.rulenum)
            packets, size = counters.get(rule, (0, 0))
            counters[rule] = (packets + 1, size + (row.len or 0))
    return found


def grown(before: Counters, after: Counters) -> Counters:
    """How much each counter has grown."""
    return {
        rule: (packets - before[rule][0], size - before[rule][1])
        for rule, (packets, size) in after.items()
    }


def listed(
    network: Network, role: str, family: int, table: str
) -> dict[tuple[str, int], tuple[int, str]]:
    """(chain, number) → (packets, target) of `iptables -L --line-numbers`; policy: 0."""
    command = {4: "iptables-legacy", 6: "ip6tables-legacy"}[family]
    text = network.run(role, [command, "-t", table, "-L", "-v", "-x", "-n", "--line-numbers"])
    found: dict[tuple[str, int], tuple[int, str]] = {}
    chain = ""
    for line in text.stdout.splitlines():
        if head := re.match(r"Chain (\S+) \((?:policy (\S+) (\d+) packets)?", line):
            chain = head[1]
            if head[2]:
                found[chain, 0] = int(head[3]), head[2]
        elif rule := re.match(r"(\d+)\s+(\d+)\s+\d+\s+(\S+)", line):
            found[chain, int(rule[1])] = int(rule[2]), rule[3]
    return found


@FAMILIES
def test_every_counter_grows_by_the_rows_with_that_rule_in_their_path(
    network: Network, family: int
) -> None:
    mix = [one for one in scenarios.scenarios(family) if one.name in MIXED]
    assert len(mix) == len(MIXED)
    expected = sum(scenarios.tally(t for one in mix for t in one.expected).values())
    tables = ("raw", "mangle", "nat", "filter")
    lists = {table: listed(network, "router", family, table) for table in tables}
    before = {role: network.counters(role, family) for role in ROLES}

    # WHEN all kinds of traffic pass in one capture
    with captured() as capture:
        for one in mix:
            assert one.run(network) == one.sent
        capture.wait_rows(expected, set(network.inodes().values()))
    after = {role: network.counters(role, family) for role in ROLES}
    rows = capture.rows

    # THEN each rule and policy has counted the packets and bytes of the rows with it
    by_rows = counted_by_rows(rows, family)
    for role, inode in network.inodes().items():
        mine = by_rows[inode]
        wanted = grown(before[role], after[role])
        assert {rule: mine.get(rule, (0, 0)) for rule in wanted} == wanted
        # AND only the ends of user chains are in a path without a counter: they are "return"
        ends = {
            (row.table, step.chain, step.rulenum)
            for row in rows
            if row.netns == inode and row.family == family
            for step in row.path
            if step.match == "return"
        }
        assert set(mine) - set(wanted) == ends

    # AND rules have the numbers of iptables -L --line-numbers: the rule with that number
    # there has grown by as many packets
    router = by_rows[network.inodes()["router"]]
    for table in tables:
        now = listed(network, "router", family, table)
        assert now.keys() == lists[table].keys()
        for (chain, number), (packets, target) in now.items():
            seen = router.get((table, chain, number), (0, 0))[0]
            assert packets - lists[table][chain, number][0] == seen, (table, chain, number, target)

    # AND the row's verdict is that of the target there
    targets = {t: listed(network, "router", family, t) for t in tables}
    verdicts: Counter[tuple[str, str | None]] = Counter()
    for row in rows:
        if row.netns == network.inodes()["router"] and row.family == family:
            assert row.chain is not None
            assert row.rulenum is not None
            number = 0 if row.match == "policy" else row.rulenum
            verdicts[targets[row.table][row.chain, number][1], row.verdict] += 1
    assert set(verdicts) <= {
        ("ACCEPT", "ACCEPT"),
        ("DROP", "DROP"),
        ("REJECT", "DROP"),
        ("DNAT", "ACCEPT"),
        ("MASQUERADE", "ACCEPT"),
    }


# Chains with all possible ends; a datagram over lo passes all of them.
ENDS = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p tcp -j DROP
-A PREROUTING -j ACCEPT
-A OUTPUT -j RETURN
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:BACK - [0:0]
:DEEP - [0:0]
-A PREROUTING -j ACCEPT
-A PREROUTING -p tcp -j DROP
-A INPUT -j BACK
-A BACK -p tcp -j DROP
-A BACK -j RETURN
-A POSTROUTING -j DEEP
-A DEEP -j ACCEPT
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:AWAY - [0:0]
:JUNK - [0:0]
-A INPUT -p udp -m udp --dport 7002 -j JUNK
-A INPUT -p udp -m udp --dport 7003 -j DROP
-A OUTPUT -p udp -m udp --dport 7003 -g AWAY
-A AWAY -p tcp -j DROP
-A JUNK -j DROP
COMMIT
"""


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as one:
        yield one


@FAMILIES
def test_a_policy_a_return_and_an_unconditional_rule_are_distinguished(
    plain: Plain, family: int
) -> None:
    # GIVEN chains with all possible ends
    plain.load(ENDS, family)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket_in(plain.name, kind, socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK[family], 7001))
        with captured(netns=plain.name) as capture:
            # WHEN datagrams go to three ports
            for port in (7001, 7002, 7003):
                sent = traffic.udp(plain.name, LOOPBACK[family], port, COUNT)
                assert sent == traffic.Counts(COUNT)
            capture.wait_rows(3 * COUNT * 8)
    # THEN each hook has the path of its chain
    found = Counter((row.dport, row.hook, row.table, row.path, row.verdict) for row in capture.rows)
    wanted: Counter[tuple[int | None, str, str, tuple[Step, ...], str | None]] = Counter()
    for port in (7001, 7002, 7003):
        for hook, table, steps in (
            # -A OUTPUT -j RETURN ends at the policy
            ("OUTPUT", "raw", "OUTPUT:1 OUTPUT:2/policy"),
            ("OUTPUT", "mangle", "OUTPUT:1/policy"),
            # a chain entered by -g returns to the policy
            (
                "OUTPUT",
                "filter",
                "OUTPUT:1 AWAY:2/return OUTPUT:2/policy" if port == 7003 else "OUTPUT:2/policy",
            ),
            ("POSTROUTING", "mangle", "POSTROUTING:1 DEEP:1"),
            ("PREROUTING", "raw", "PREROUTING:2"),
            ("PREROUTING", "mangle", "PREROUTING:1"),
            ("INPUT", "mangle", "INPUT:1 BACK:2 INPUT:2/policy"),
        ):
            wanted[port, hook, table, path(steps), "ACCEPT"] = COUNT
        last = {7001: "INPUT:3/policy", 7002: "INPUT:1 JUNK:1", 7003: "INPUT:2"}[port]
        verdict = "ACCEPT" if port == 7001 else "DROP"
        wanted[port, "INPUT", "filter", path(last), verdict] = COUNT
    assert found == wanted
    # AND the counters of iptables agree, including policies
    counters = plain.counters(family)
    by_rows = counted_by_rows(capture.rows, family)[plain.inode]
    assert {rule: by_rows.get(rule, (0, 0)) for rule in counters} == counters
