# SPDX-License-Identifier: GPL-2.0-only
"""Senders return exactly what they sent; the background traffic starts and stops."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from ipttrace.checksums import checksum
from ipttrace.lab import traffic
from ipttrace.lab.network import Network, NetworkError
from ipttrace.lab.network import addresses as at
from ipttrace.lab.traffic.mix import Mix, steps
from ipttrace.lab.traffic.packets import crc32c, inner_ipv4, tcp_syn
from ipttrace.lab.traffic.server import DNS, SINK, WEB, Server

SERVERS = [(4, at.SERVER4), (6, at.SERVER6)]


@pytest.mark.parametrize(("family", "server"), SERVERS)
def test_a_flood_is_counted_exactly(network: Network, family: int, server: str) -> None:
    with Server(network.server):
        assert traffic.flood(network.client, server, SINK, count=10007).sent == 10007
        assert network.counters("client", family)["filter", "OUTPUT", 1][0] == 10007


@pytest.mark.parametrize(("family", "server"), SERVERS)
def test_a_flood_dropped_by_the_senders_rules_is_counted_too(
    network: Network, family: int, server: str
) -> None:
    counts = traffic.flood(network.client, server, 69, count=101)
    assert counts == traffic.Counts(101, 0, 101)
    assert network.counters("client", family)["filter", "POLICY-OUT", 2][0] == 101


def test_a_flood_without_an_end_is_an_error(network: Network) -> None:
    with pytest.raises(NetworkError, match="needs a count or a duration"):
        traffic.flood(network.client, at.SERVER4, SINK)


@pytest.mark.parametrize(("family", "server"), SERVERS)
def test_connections_end_as_the_rules_decide(network: Network, family: int, server: str) -> None:
    router = at.ROUTER4 if family == 4 else at.ROUTER6
    with Server(network.server) as servers:
        page = traffic.web(network.client, router, 8080)
        assert page.outcome == "open"
        assert page.received > 1000
        assert page == traffic.web(network.client, server, WEB)
        assert traffic.tcp(network.client, server, 25).outcome == "refused"
        assert traffic.tcp(network.client, server, 23).outcome == "refused"
        assert traffic.tcp(network.client, server, 445, timeout=0.2).outcome == "filtered"
        assert traffic.tcp(network.client, server, SINK, send=bytes(1 << 20)).sent == 1 << 20
        assert servers.wait_received("tcp", SINK, 1 << 20) == 1 << 20


@pytest.mark.parametrize(("family", "server"), SERVERS)
def test_all_packets_sent_arrive(network: Network, family: int, server: str) -> None:
    with Server(network.server) as servers:
        assert traffic.ask(network.client, server, DNS, 23) == traffic.Counts(23, 23)
        traffic.udp(network.client, server, SINK, 23)
        traffic.udp(network.client, server, SINK, 23, payload=bytes(4000))
        traffic.gre(network.client, server, 23)
        traffic.esp(network.client, server, 23)
        traffic.sctp(network.client, server, 9, 23)
        assert servers.wait_received("udp", DNS, 23) == 23
        assert servers.wait_received("udp", SINK, 46) == 46
        for proto in ("47", "50", "132"):
            assert servers.wait_received(proto, 0, 23) == 23


def test_an_unanswered_ping_receives_nothing(network: Network) -> None:
    counts = traffic.ping(network.client, at.SERVER4, 3, source=at.GUEST4, timeout=0.1)
    assert counts == traffic.Counts(3, 0)


def test_the_background_traffic_hits_every_table_and_stops(network: Network) -> None:
    with Mix(network.prefix, rate=400) as mix:
        child = mix.pid
        assert child is not None
        _wait_for(lambda: network.counters("router")["filter", "SERVICES", 10][0] > 0)
        for family in (4, 6):
            counted = network.counters("router", family)
            assert counted["nat", "PORTFORWARD", 1][0] > 0
            assert counted["filter", "SERVICES", 3][0] > 0
    assert not os.path.exists(f"/proc/{child}")
    assert network.call("server", _listening_ports) == set()


def test_every_step_of_the_background_traffic_works(network: Network) -> None:
    with Server(network.server):
        for _, step in steps(network.client):
            step()


def test_the_background_traffic_dies_with_its_parent(network: Network) -> None:
    code = (
        "import sys, time\nfrom ipttrace.lab.traffic.mix import Mix\n"
        "mix = Mix(sys.argv[1])\nmix.start()\nprint(mix.pid, flush=True)\nsys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, network.prefix]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([child], [], [], 0)[0]
            parent.kill()
            parent.wait()
            assert select.select([child], [], [], 60)[0], "still running"
        finally:
            os.close(child)


def test_background_traffic_without_a_network_is_a_one_line_error(prefix: str) -> None:
    with pytest.raises(NetworkError, match=f"no network namespace {prefix}-server"):
        Mix(prefix).start()


def test_senders_work_from_a_shell(network: Network) -> None:
    argv = [sys.executable, "-m", "ipttrace.lab.traffic", "ping", network.client, at.SERVER6]
    done = subprocess.run([*argv, "--count", "23"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == {"sent": 23, "received": 23, "blocked": 0}
    assert (done.returncode, done.stderr) == (0, "")
    argv[3:] = ["udp", "no-such-namespace", at.SERVER4]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "no network namespace no-such-namespace: No such file or directory\n"


def test_checksums_are_those_of_the_standards() -> None:
    # RFC 1071, 3; RFC 3720, B.4 (the same polynomial)
    assert checksum(bytes((0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7))) == 0xFFFF - 0xDDF2
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert checksum(inner_ipv4()[:20]) == 0
    pseudo = bytes((10, 1, 0, 2, 10, 2, 0, 2, 0, 6, 0, 24))
    assert checksum(pseudo + tcp_syn("10.1.0.2", 1, "10.2.0.2", 2, 3)) == 0


def _listening_ports() -> set[int]:
    """Returns the TCP ports with a listening socket in this thread's namespace."""
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        found |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    return found


def _wait_for(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Polls, as counters send no events."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        select.select([], [], [], 0.05)
