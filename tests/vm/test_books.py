# SPDX-License-Identifier: GPL-2.0-only
"""The books balance and agree with the counters of iptables."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import Counters
from ipttrace.lab.network.ns import run_in, socket_in
from tests.vm.conftest import captured
from tests.vm.forked import fork
from tests.vm.plain import Plain

# No user chains, as iptables-save does not count their returns.
RULES = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp -m udp --dport 9
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 9 -j ACCEPT
-A OUTPUT -p udp -m udp --dport 99 -j REJECT
COMMIT
"""
ENDS = (("filter", "INPUT", 1), ("filter", "OUTPUT", 1))


@pytest.fixture
def plain() -> Iterator[Plain]:
    """A namespace with known tables and a listener, so that no packet is answered."""
    with Plain() as namespace, socket_in(namespace.name, socket.AF_INET, socket.SOCK_DGRAM) as sink:
        # Every REJECT is answered, without a rate limit.
        run_in(namespace.name, ["sysctl", "-qw", "net.ipv4.icmp_ratemask=0"])
        sink.bind(("127.0.0.1", 9))
        namespace.load(RULES, 4)
        yield namespace


def calls(counters: Counters) -> int:
    """Runs of tables: each ends with a policy, or with a rule that decides."""
    return sum(
        packets
        for (table, chain, number), (packets, _) in counters.items()
        if number == 0 or (table, chain, number) in ENDS
    )


def hits(counters: Counters) -> int:
    """Log lines that -j TRACE would have made."""
    return sum(packets for packets, _ in counters.values())


def test_every_call_that_iptables_counted_is_a_row_if_there_is_room(plain: Plain) -> None:
    # GIVEN a capture with the usual buffers
    with captured(netns=plain.name) as capture:
        # WHEN a flood is sent for which they have room
        sent = traffic.flood(plain.name, "127.0.0.1", 9, count=499).sent
    # THEN nothing is lost, and as much was due as iptables counted
    books, counted = capture.books, plain.counters(4)
    assert counted["raw", "OUTPUT", 0][0] == sent == 499
    assert sum(books["lost"]) == 0
    # A softirq that interrupts a handler is missed: one in thousands.
    assert books["matched"] <= calls(counted) <= books["matched"] + books["missed"]
    assert books["missed"] < 23
    if not books["missed"]:
        assert books["due"] == [calls(counted), hits(counted), calls(counted)]
        assert len(capture.rows) == calls(counted)


def test_a_flood_while_the_reader_is_stopped_is_partly_lost_and_accounted_for(plain: Plain) -> None:
    # GIVEN the smallest buffers, and a reader that stops
    with captured(netns=plain.name, buffer=64 << 10) as capture:
        capture.paused.clear()
        # WHEN far more is sent than the buffers can hold, and a little once it reads again
        traffic.flood(plain.name, "127.0.0.1", 9, count=2003)
        capture.paused.set()
        traffic.flood(plain.name, "127.0.0.1", 9, count=23)
    # THEN some was lost and some delivered (`captured` checks that it adds up)
    books, counted = capture.books, plain.counters(4)
    assert sum(books["lost"]) > 0
    assert sum(books["delivered"]) > 0
    # AND as much was due as iptables counted
    in_probes = books["missed"]
    assert books["matched"] <= calls(counted) <= books["matched"] + in_probes
    assert hits(counted) - in_probes * 2 <= books["due"][1] <= hits(counted)
    assert counted["raw", "OUTPUT", 0][0] == 2026


def test_nested_calls_beyond_maxactive_are_missed_and_counted(plain: Plain) -> None:
    # GIVEN room for one call at a time
    with captured(netns=plain.name, maxactive=1) as capture:
        # WHEN 23 packets are rejected, each with an answer sent from inside the call
        sent = traffic.udp(plain.name, "127.0.0.1", 99, 23)
        assert sent.sent == 23
    # THEN the two calls of each answer in OUTPUT are missed, and nothing else
    books, counted = capture.books, plain.counters(4)
    assert counted["filter", "OUTPUT", 1][0] == 23
    assert counted["raw", "OUTPUT", 0][0] == 46
    assert books["missed"] >= 46
    assert books["due"][0] >= calls(counted)
    assert books["depth"] == 1
    assert len(capture.rows) == books["due"][0] - books["missed"]


def test_every_miss_is_counted_on_all_cpus_at_once(plain: Plain) -> None:
    # GIVEN room for one call at a time, and a flood on each CPU
    def flood(cpu: int) -> int:
        os.sched_setaffinity(0, {cpu})
        port = 99 if cpu % 2 else 9
        return traffic.flood(plain.name, "127.0.0.1", port, count=1999).sent * 0

    with captured(netns=plain.name, maxactive=1) as capture:
        # WHEN they compete for it
        pids = [fork(partial(flood, cpu)) for cpu in os.sched_getaffinity(0)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)
    # THEN there were misses, and the books balance (checked by `captured`)
    assert capture.books["missed"] > 0
    assert capture.books["matched"] <= calls(plain.counters(4))
