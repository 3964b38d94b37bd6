# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine sees what the netlink engine sees, and who sent it, and what it cost.

Behind the other files by name: it loads nf_tables, and with that every later command would
trace nftables too, which takes time.
"""

from __future__ import annotations

import contextlib
import json
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

Counted = dict[tuple[str, str], list[int | None]]

COUNT = 23
HEARD = (53, 100, 200)
# Dropped, rejected, and sent on to port 53, before those that are heard.
PORTS = (99, 101, 103, 102, *HEARD)

IPTABLES_NFT = """*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:MINE -
-A INPUT -p udp -m udp --dport 53 -j MINE
-A INPUT -m conntrack --ctstate NEW,ESTABLISHED
-A MINE -p udp -j RETURN
COMMIT
"""
NATIVE = """table inet native {
    set known {
        type inet_service
        elements = { 53, 99 }
    }
    chain four {
        counter meta mark set 5
        counter return
    }
    chain three {
        counter jump four
        counter
    }
    chain away {
        counter
    }
    chain in {
        type filter hook input priority 10; policy accept;
        udp dport @known counter
        udp dport vmap { 53 : jump three, 99 : drop, 100 : goto away }
        udp dport 103 counter reject
    }
    chain judge {
        type filter hook input priority 20; policy drop;
        udp dport != 101 counter accept
        ip protocol icmp counter accept
    }
    chain out {
        type filter hook output priority 10; policy accept;
        counter
    }
    chain elsewhere {
        type nat hook output priority -100; policy accept;
        udp dport 102 counter dnat ip to 127.0.0.1:53
    }
}
"""


@contextlib.contextmanager
def ruled() -> Iterator[tuple[Plain, list[socket.socket]]]:
    """A namespace with both rulesets, and sockets bound to HEARD."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Plain())
        plain.run("sysctl", "-qw", "net.ipv4.icmp_ratemask=0")
        run_in(plain.name, ["iptables-nft-restore"], text=IPTABLES_NFT)
        run_in(plain.name, ["nft", "-f", "-"], text=NATIVE)
        heard = []
        for port in HEARD:
            one = stack.enter_context(socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM))
            one.bind((LOOPBACK[4], port))
            one.settimeout(PATIENCE)
            heard.append(one)
        yield plain, heard


def send(plain: Plain, heard: list[socket.socket]) -> None:
    """Sends COUNT packets to each port, and waits for those that arrive."""
    for port in PORTS:
        with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(COUNT):
                sender.sendto(b"x" * 29, (LOOPBACK[4], port))
    for one, count in zip(heard, (2 * COUNT, COUNT, COUNT), strict=True):
        for _ in range(count):
            one.recv(64)


def traced(engine: str, folder: Path) -> tuple[Live, list[Row], Counted]:
    """A trace of `send`, its rows, and of each chain its rules' packets as nft counted them."""
    with ruled() as (plain, heard):
        one = live(plain, folder / engine, engine=engine)
        send(plain, heard)
        rows = one.finish()
        listed = json.loads(plain.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    counted: Counted = defaultdict(list)
    for item in listed:
        if rule := item.get("rule"):
            counters = [each["counter"] for each in rule["expr"] if "counter" in each]
            packets = counters[0]["packets"] if counters else None
            counted[rule["table"], rule["chain"]].append(packets)
    return one, rows, counted


def told(row: Row) -> tuple[object, ...]:
    """What two engines must tell alike."""
    way = tuple((step.chain, step.rulenum, step.match) for step in row.path)
    return (row.hook, row.tables, row.table, way, row.verdict, row.rule, row.dport, row.len)


def journeys(rows: list[Row]) -> list[list[str | None]]:
    """The hooks that each packet met, in order."""
    found: dict[int | None, list[str | None]] = defaultdict(list)
    for row in rows:
        found[row.journey].append(row.hook)
    return list(found.values())


def test_bpf_tells_what_netlink_tells_and_who_and_at_what_cost(tmp_path: Path) -> None:
    # GIVEN the same rules and packets, traced over netlink
    _, over_netlink, _ = traced("netlink", tmp_path)
    # WHEN they are traced by BPF
    one, rows, counted = traced("bpf", tmp_path)
    # THEN each packet has the same path, verdict and rule texts
    assert Counter(map(told, rows)) == Counter(map(told, over_netlink))
    assert all(row.rule for row in rows if row.match == "rule")
    # AND each rule was hit as often as nft has counted
    steps = Counter(
        (row.table, step.chain, step.rulenum)
        for row in rows
        for step in row.path
        if step.match == "rule"
    )
    for (table, chain), packets in counted.items():
        for number, expected in enumerate(packets, 1):
            if expected is not None:
                assert steps[table, chain, number] == expected, (table, chain, number)
    # AND each packet, REJECT's answers too, has one journey, from OUTPUT to INPUT
    ways = journeys(rows)
    assert len(ways) == (len(PORTS) + 1) * COUNT
    assert {(way[0], way[-1]) for way in ways} == {("OUTPUT", "INPUT")}
    # AND all is known of each
    for row in rows:
        assert row.engine == "bpf"
        assert is_whole(row), row
        assert row.ct_state in ("NEW", "ESTABLISHED", "RELATED"), row
    by_us = [row for row in rows if row.hook == "OUTPUT" and row.dport in PORTS]
    assert len(by_us) >= len(PORTS) * COUNT
    assert {row.pid for row in by_us} == {os.getpid()}
    moved = [row for row in rows if row.ct_orig_dport == 102]
    assert {row.dport for row in moved} == {102, 53}
    assert one.trace.missed == one.trace.lost == 0


def test_a_flood_while_the_reader_is_stopped_is_partly_lost_and_accounted_for() -> None:
    # GIVEN a small ring, and a reader that stops
    with ruled() as (plain, _):
        with captured(engine="bpf", netns=plain.name, buffer=64 << 10) as capture:
            capture.paused.clear()
            # WHEN far more is sent than the ring can hold, and a little once it reads again
            traffic.flood(plain.name, LOOPBACK[4], 99, count=2003)
            capture.paused.set()
            traffic.flood(plain.name, LOOPBACK[4], 99, count=COUNT)
        listed = plain.run("nft", "list chain inet native out").stdout
    # THEN some was lost and some delivered (`captured` checks that it adds up)
    books = capture.books
    assert sum(books["lost"]) > 0
    assert sum(books["delivered"]) > 0
    # AND as many runs were due as packets went through each base chain
    packets = int(listed.split("packets ")[1].split()[0])
    assert packets == 2026
    # OUTPUT and INPUT of iptables-nft, out, in; elsewhere at each flood's first packet.
    assert books["due"][2] <= 4 * packets + 2 <= books["due"][0]
    assert books["due"][0] == books["due"][2] + books["missed"]
