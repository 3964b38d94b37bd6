# SPDX-License-Identifier: GPL-2.0-only
"""A rule with -j IPTTRACE begins a trace of each packet that hits it, there and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.lab.network import read_counters
from ipttrace.lab.network.ns import run_in
from tests.vm.breakpoints import breakable, extension, module, send, way, ways
from tests.vm.conftest import SHARED, captured
from tests.vm.logged import Log, logged
from tests.vm.plain import COMMANDS, Plain
from tests.vm.texts import live

pytestmark = SHARED

FEW, SHORT, OTHER = 23, 17, 11
NOTE = 'web "one"'
# Long packets to port 53 hit the breakpoint, in the middle of their way through filter.
RULES = """\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -p udp -j MARK --set-xmark 0x5/0xffffffff
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
-A INPUT -p udp -m udp --dport 53 -j ACCEPT
-A OUTPUT -p udp -j WEB
-A OUTPUT -p udp
-A WEB -p udp -m mark --mark 0x5
-A WEB -p udp -m udp --dport 53 -m length --length 100:65535 -j IPTTRACE --note "web \\"one\\""
-A WEB -p udp -m udp --dport 53
COMMIT
"""
# The run of the breakpoint from there on, and all that follow.
EXPECTED = {
    ("OUTPUT", "filter", "WEB:2 WEB:3 WEB:4/return OUTPUT:2 OUTPUT:3/policy", "ACCEPT"): FEW,
    ("POSTROUTING", "mangle", "POSTROUTING:1/policy", "ACCEPT"): FEW,
    ("PREROUTING", "mangle", "PREROUTING:1/policy", "ACCEPT"): FEW,
    ("INPUT", "mangle", "INPUT:1/policy", "ACCEPT"): FEW,
    ("INPUT", "filter", "INPUT:1", "ACCEPT"): FEW,
}
# A breakpoint in each table and chain that a packet of this host meets, by its port.
PLACES = {
    7001: ("raw", "OUTPUT"),
    7002: ("mangle", "OUTPUT"),
    7003: ("nat", "OUTPUT"),
    7004: ("filter", "OUTPUT"),
    7005: ("security", "OUTPUT"),
    7006: ("mangle", "POSTROUTING"),
    7007: ("nat", "POSTROUTING"),
    7008: ("raw", "PREROUTING"),
    7009: ("mangle", "PREROUTING"),
    7010: ("mangle", "INPUT"),
    7011: ("filter", "INPUT"),
    7012: ("security", "INPUT"),
}
ENGINES = ["kernel", "bpf", "netlink"]


def send_all(plain: Plain, family: int) -> None:
    """Packets that hit the breakpoint, and others that hit only rules before it."""
    send(plain, family, 53, FEW, size=100)
    send(plain, family, 53, SHORT)
    send(plain, family, 99, OTHER, size=100)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("engine", ENGINES)
def test_packets_that_hit_the_rule_are_traced_from_there_on(
    engine: str, family: int, tmp_path: Path
) -> None:
    with breakable() as plain:
        plain.load(RULES, family)
        # WHEN packets are sent, of which some hit the breakpoint
        with live(tmp_path / "ready", engine=engine, netns=plain.name, from_rules=True) as one:
            one.wait(lambda: bool(one.text(plain, family, "filter", "WEB", 2)), "the text")
            text = one.text(plain, family, "filter", "WEB", 2)
            send_all(plain, family)
            one.wait_rows(5 * FEW)
            rows = one.finish()
        # THEN each of these has a row of that run, from the breakpoint on, and of the next ones
        assert ways(rows) == EXPECTED
        # AND as many as iptables has counted
        assert plain.counters(family)["filter", "WEB", 2][0] == FEW
        assert {row.dport for row in rows} == {53}
        # Over netlink a packet of lo that comes back is another one.
        assert len({row.journey for row in rows}) == FEW * (1 + (engine == "netlink"))
        # AND its text has the note
        assert text.endswith('-j IPTTRACE --note "web \\"one\\""')
        assert {row.mark for row in rows} == {5}


def test_the_breakpoint_may_be_in_any_table() -> None:
    with breakable() as plain:
        # A NAT target makes packets go through conntrack, and so through the table nat.
        plain.run(COMMANDS[4], "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT")
        for port, (table, chain) in PLACES.items():
            rule = f"-A {chain} -p udp --dport {port} -j IPTTRACE"
            plain.run(COMMANDS[4], "-t", table, *rule.split())
        # WHEN a packet is sent to each port
        with captured(netns=plain.name, engine="kernel", from_rules=True) as capture:
            for port in PLACES:
                send(plain, 4, port, 1)
        # THEN its first row is that of the table and chain of its breakpoint
        firsts: dict[int | None, tuple[str, str | None]] = {}
        for row in sorted(capture.rows, key=lambda one: one.time):
            firsts.setdefault(row.dport, (row.table, row.path[0].chain))
        assert firsts == PLACES
        # AND others follow, in one journey with it
        assert all(
            len({row.journey for row in capture.rows if row.dport == port}) == 1 for port in PLACES
        )
        lasts = {row.dport: row.table for row in capture.rows if row.hook == "INPUT"}
        assert lasts == dict.fromkeys(PLACES, "security")


@pytest.mark.parametrize("engine", ["bpf", "netlink"])
def test_the_rule_works_in_iptables_nft(engine: str, tmp_path: Path) -> None:
    rules = RULES.replace("-m length --length 100:65535", "-m mark --mark 0x5")
    with breakable() as plain:
        run_in(plain.name, ["iptables-nft-restore"], text=rules)
        with live(tmp_path / "ready", engine=engine, netns=plain.name, from_rules=True) as one:
            send(plain, 4, 53, FEW)
            send(plain, 4, 99, OTHER)
            one.wait_rows(5 * FEW)
            rows = one.finish()
        assert ways(rows) == EXPECTED
        saved = plain.run("iptables-nft-save", "-c").stdout
        assert read_counters(saved)["filter", "WEB", 2][0] == FEW
        assert all(row.tables for row in rows)


@pytest.mark.parametrize(
    "command", ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"]
)
def test_iptables_lists_saves_and_restores_the_rule(command: str) -> None:
    with breakable() as plain:

        def saved() -> list[str]:
            text = plain.run(f"{command}-save").stdout
            return [line for line in text.splitlines() if not line.startswith("#")]

        run_in(plain.name, [f"{command}-restore"], text=RULES)
        before = saved()
        assert [line for line in before if "IPTTRACE" in line] == [
            line for line in RULES.splitlines() if "IPTTRACE" in line
        ]
        # WHEN what was saved is restored
        run_in(plain.name, [f"{command}-restore"], text="\n".join([*before, ""]))
        # THEN it is the same, and listed with its note
        assert saved() == before
        assert 'note "web \\"one\\""' in plain.run(command, "-nL", "WEB").stdout
        # AND a note that is too long, or has control characters, is refused in one line
        for note, why in (("x" * 32, "31 characters"), ("a\nb", "control characters")):
            argv = [command, "-A", "INPUT", "-j", "IPTTRACE", "--note", note]
            refused = plain.run("sh", "-c", '"$@" 2>&1; echo $?', "sh", *argv).stdout
            assert refused.splitlines()[-1] == "2", refused
            assert why in refused.splitlines()[0]


def test_without_an_ipttrace_that_wants_it_the_rule_does_nothing() -> None:
    with module(), extension(), logged() as plain, Plain("ipt-elsewhere") as other:
        for one in (plain, other):
            one.load(RULES, 4)
        log = Log()
        # WHEN nobody traces
        send(plain, 4, 53, FEW, size=100)
        # OR somebody does with a filter, or in another namespace
        with captured("udp port 1", netns=plain.name, engine="kernel") as capture:
            send(plain, 4, 53, FEW, size=100)
        assert capture.rows == []
        with captured(netns=other.name, engine="kernel", from_rules=True) as capture:
            send(plain, 4, 53, FEW, size=100)
        assert capture.rows == []
        # THEN packets that hit it are not marked: nothing is logged
        assert log.lines() == []
        # AND neither while they are traced, nor afterwards
        with captured(netns=plain.name, engine="kernel", from_rules=True) as capture:
            send(plain, 4, 53, FEW, size=100)
        assert ways(capture.rows) == EXPECTED
        assert capture.books["silenced"] >= len(capture.rows)
        send(plain, 4, 53, FEW, size=100)
        assert log.lines() == []
        assert plain.counters(4)["filter", "WEB", 2][0] == 5 * FEW


def test_runs_without_a_breakpoint_hit_are_counted_but_have_no_row() -> None:
    with breakable() as plain:
        # GIVEN a REJECT before the breakpoint: the ICMP error passes the same table inside
        plain.load(
            RULES.replace(
                "-A INPUT",
                "-A INPUT -p udp -m udp --dport 99 -j REJECT\n-A INPUT",
            ),
            4,
        )
        plain.run(COMMANDS[4], "-A", "OUTPUT", "-p", "icmp", "-j", "IPTTRACE")
        with captured(netns=plain.name, engine="kernel", from_rules=True) as capture:
            plain.run("sh", "-c", "for n in 1 2 3; do echo >/dev/udp/127.0.0.1/99; done || true")
            plain.run("bash", "-c", "for n in 1 2 3; do echo >/dev/udp/127.0.0.1/99; done || true")
            capture.wait_rows(3)
        errors = [row for row in capture.rows if row.hook == "OUTPUT"]
        # THEN the errors have rows, which are inside no other row
        assert [way(row) for row in errors] == ["OUTPUT:3 OUTPUT:4/policy"] * len(errors)
        assert {(row.proto, row.parent) for row in errors} == {("ICMP", None)}
        books = capture.books
        assert books["matched"] == len(capture.rows)
        assert books["calls"] == books["matched"] + books["refused"]
        assert books["refused"] > 0
