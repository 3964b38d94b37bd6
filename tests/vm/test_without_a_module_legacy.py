# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine sees legacy tables as the module does, without one.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.trace.row import Row
from tests.vm.conftest import captured
from tests.vm.live import Live, is_whole, live
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

COUNT = 23
HEARD = (53, 200)
# Dropped, rejected, and sent on to port 53, before those that are heard.
PORTS = (99, 101, 102, *HEARD)
LOGGERS = ("net.netfilter.nf_log.2", "net.netfilter.nf_log.10")

RULES = """*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
-A OUTPUT -p udp --dport 200 -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:ONE -
:TWO -
:THREE -
-A OUTPUT -p udp -j ONE
-A OUTPUT -m mark --mark 5
-A ONE -j TWO
-A ONE
-A TWO -j THREE
-A TWO -m comment --comment "two, second"
-A THREE -p udp --dport 53 -j RETURN
-A THREE -j MARK --set-mark 5
-A THREE -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
-A OUTPUT -p udp --dport 102 -j {redirect}
COMMIT
*filter
:INPUT DROP
:FORWARD ACCEPT
:OUTPUT ACCEPT
:MANY -
-A INPUT -p udp --dport 99 -j DROP
-A INPUT -p udp --dport 101 -j REJECT
-A INPUT -p udp -m conntrack --ctstate NEW,ESTABLISHED,UNTRACKED -j MANY
-A INPUT -p {icmp} -j ACCEPT
{many}
-A MANY -j ACCEPT
COMMIT
"""
# More hits than fit into one piece.
MANY = "\n".join(f'-A MANY -m comment --comment "number {number}"' for number in range(1, 20))
NATIVE = """table inet native {
    chain out {
        type filter hook output priority 10; policy accept;
        counter
    }
}
"""
Steps = Counter[tuple[int, str, str, int]]


@contextlib.contextmanager
def ruled() -> Iterator[tuple[Plain, list[socket.socket]]]:
    """A namespace with these rules of both families, and sockets bound to HEARD."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Plain())
        plain.run("sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0")
        run_in(plain.name, ["nft", "-f", "-"], text=NATIVE)
        heard = []
        for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            icmp = {4: "icmp", 6: "ipv6-icmp"}[family]
            redirect = "REDIRECT --to-ports 53"
            plain.load(RULES.format(icmp=icmp, redirect=redirect, many=MANY), family)
            for port in HEARD:
                one = stack.enter_context(socket_in(plain.name, kind, socket.SOCK_DGRAM))
                one.bind((LOOPBACK[family], port))
                one.settimeout(PATIENCE)
                heard.append(one)
        yield plain, heard


def send(plain: Plain, heard: list[socket.socket]) -> None:
    """Sends COUNT packets to each port, of both families, and waits for those that arrive."""
    for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        for port in PORTS:
            with socket_in(plain.name, kind, socket.SOCK_DGRAM) as sender:
                for _ in range(COUNT):
                    sender.sendto(b"x" * 29, (LOOPBACK[family], port))
    for one, count in zip(heard, (2 * COUNT, COUNT) * 2, strict=True):
        for _ in range(count):
            one.recv(64)


def traced(engine: str, folder: Path) -> tuple[Live, list[Row], Steps]:
    """A trace of `send`, its rows, and the hits of each rule as iptables counted them.

    Steps: IP version, table, chain, rule number.
    """
    with ruled() as (plain, heard):
        loggers = plain.run("sysctl", *LOGGERS).stdout
        one = live(plain, folder / engine, engine=engine)
        send(plain, heard)
        rows = one.finish()
        assert plain.run("sysctl", *LOGGERS).stdout == loggers
        counted: Steps = Counter()
        for family in (4, 6):
            for (table, chain, number), (packets, _) in plain.counters(family).items():
                if number and packets:
                    counted[family, table, chain, number] = packets
    return one, rows, counted


def told(row: Row) -> tuple[object, ...]:
    """What the module and BPF must tell alike."""
    way = tuple((step.chain, step.rulenum, step.match) for step in row.path)
    packet = (row.family, row.proto, row.dport, row.len, row.mark, row.in_, row.out)
    connection = (row.ct_state, row.ct_orig_dport, row.ct_mark, row.ct_zone)
    nested = row.parent is not None
    return (row.hook, row.table, way, row.verdict, row.rule, nested, *packet, *connection)


def test_bpf_tells_of_legacy_tables_what_the_module_tells(tmp_path: Path) -> None:
    # GIVEN the same rules and packets, traced by the module
    _, by_module, _ = traced("kernel", tmp_path)
    # WHEN they are traced by BPF
    one, rows, counted = traced("bpf", tmp_path)
    legacy = [row for row in rows if not row.tables]
    # THEN each packet has the same path, verdict, rule texts and connection
    assert Counter(map(told, legacy)) == Counter(map(told, by_module))
    assert all(row.rule for row in legacy if row.match == "rule")
    # AND each rule was hit as often as iptables has counted
    steps: Steps = Counter(
        (row.family, row.table, step.chain, step.rulenum or 0)
        for row in legacy
        for step in row.path
        if step.match == "rule"
    )
    assert steps == counted
    # AND all is known of each
    for row in legacy:
        assert row.engine == "bpf"
        assert is_whole(row), row
    by_us = [row for row in legacy if row.hook == "OUTPUT" and row.dport in PORTS]
    assert {row.pid for row in by_us} == {os.getpid()}
    assert one.trace.missed == one.trace.lost == 0
    # AND the packet that REJECT sends has the parent that sent it
    calls = {row.call: row for row in legacy}
    answers = [row for row in legacy if row.parent is not None and row.hook == "OUTPUT"]
    assert answers
    for row in answers:
        assert (calls[row.parent or 0].dport, calls[row.parent or 0].rulenum) == (101, 2)
        assert row.proto in ("ICMP", "ICMPv6")
    # AND each packet has one journey through the tables of both kinds
    ways: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        ways[row.journey].append(row)
    assert len(ways) == 2 * (len(PORTS) + 1) * COUNT
    for way in ways.values():
        assert (way[0].table, way[0].hook, way[-1].hook) == ("raw", "OUTPUT", "INPUT")
        assert [row.hook for row in way if row.tables] == ["OUTPUT"]


def test_a_flood_of_legacy_tables_while_the_reader_is_stopped_is_accounted_for() -> None:
    # GIVEN a small ring, and a reader that stops
    with ruled() as (plain, _):
        with captured(engine="bpf", netns=plain.name, buffer=64 << 10) as capture:
            capture.paused.clear()
            # WHEN far more is sent than the ring can hold, and a little once it reads again
            traffic.flood(plain.name, LOOPBACK[4], 99, count=503)
            capture.paused.set()
            traffic.flood(plain.name, LOOPBACK[4], 99, count=COUNT)
        packets = 503 + COUNT
        assert plain.counters(4)["filter", "INPUT", 1][0] == packets
    # THEN some was lost and some delivered (`captured` checks that it adds up)
    books = capture.books
    assert sum(books["lost"]) > 0
    assert sum(books["delivered"]) > 0
    # AND as many runs were due as tables were met: nine, and nat by the first packets only
    assert 9 * packets <= books["due"][0] <= 9 * packets + 4
    assert books["due"][0] == books["due"][2] + books["missed"]
