# SPDX-License-Identifier: GPL-2.0-only
"""EXPR: packets that do not match are left alone, and so is the logging of others."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import addresses as at
from ipttrace.lab.network.ns import socket_in
from tests.lab import scenarios, stages
from tests.lab.scenarios import COUNT
from tests.vm.conftest import SHARED, captured, seen
from tests.vm.logged import Log, logged
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
THEIRS, OURS = 7001, 7002
FEW = 5

TRACE = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp -m multiport --dports 7001,7002 -j TRACE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 7001
-A INPUT -p udp -m udp --dport 7002
COMMIT
"""


@FAMILIES
def test_only_packets_that_match_are_recorded_and_flipped(network: Network, family: int) -> None:
    server = at.SERVER4 if family == 4 else at.SERVER6
    # GIVEN a filter for one port
    with captured("udp dst port 4444") as capture:
        # WHEN more packets are sent to others
        assert traffic.ping(network.client, server, COUNT).received == COUNT
        assert traffic.udp(network.client, server, 4444, COUNT).sent == COUNT
        assert traffic.udp(network.client, server, 5001, COUNT).sent == COUNT
        expected = scenarios.tally(
            [
                *stages.client_sends(COUNT),
                *stages.arrive(COUNT, COUNT),
                *stages.forward("FORWARD:1 SITE-RULES:1 BLOCKLIST:1", COUNT, "DROP"),
            ]
        )
        capture.wait_rows(expected.total())
    # THEN all rows are of that port, from all namespaces, and none is missing
    assert {row.dport for row in capture.rows} == {4444}
    assert seen(capture.rows, network) == expected
    # AND each was flipped in the client and again in the router: the kernel clears nf_trace
    # between namespaces
    books = capture.books
    assert books["flipped"] == 2 * COUNT
    assert books["followed"] == expected.total() - 2 * COUNT
    assert books["calls"] == expected.total() + books["refused"]
    assert books["refused"] > expected.total()
    assert books["unfollowed"] == 0
    # AND one log line was silenced for each step
    assert books["silenced"] == sum(len(row.path) for row in capture.rows)


@pytest.fixture
def traced() -> Iterator[Plain]:
    """A namespace in which -j TRACE rules of another user log two flows."""
    with logged("ipt-trace") as plain:
        for family in LOOPBACK:
            plain.load(TRACE, family)
        yield plain


def send(plain: Plain, family: int) -> Counter[int]:
    """Sends datagrams to both ports, all received; port → lines in the kernel's log."""
    log = Log()
    address = LOOPBACK[family]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    for port in (THEIRS, OURS):
        with socket_in(plain.name, kind, socket.SOCK_DGRAM) as sock:
            sock.bind((address, port))
            sock.settimeout(PATIENCE)
            assert traffic.udp(plain.name, address, port, FEW).sent == FEW
            for _ in range(FEW):
                assert sock.recv(100)
    return log.by_port()


@FAMILIES
def test_trace_rules_of_others_still_log_what_the_filter_does_not_match(
    traced: Plain, family: int
) -> None:
    # GIVEN -j TRACE rules in raw OUTPUT: logged are the policies of raw OUTPUT, raw
    # PREROUTING and filter OUTPUT, and two lines of filter INPUT
    alone = send(traced, family)
    assert alone == {THEIRS: 5 * FEW, OURS: 5 * FEW}
    # WHEN one of the two flows is traced
    with captured(f"udp dst port {OURS}") as capture:
        logged = send(traced, family)
        capture.wait_rows(4 * FEW)
    # THEN the other is logged as before, and this one is not
    assert logged == {THEIRS: 5 * FEW}
    # AND has rows, with the rule TRACE in their paths
    assert {row.dport for row in capture.rows} == {OURS}
    assert capture.books["flipped"] == FEW
    found = Counter((row.hook, row.table, row.path) for row in capture.rows)
    assert found == {
        ("OUTPUT", "raw", stages.path("OUTPUT:1 OUTPUT:2/policy")): FEW,
        ("OUTPUT", "filter", stages.path("OUTPUT:1/policy")): FEW,
        ("PREROUTING", "raw", stages.path("PREROUTING:1/policy")): FEW,
        ("INPUT", "filter", stages.path("INPUT:2 INPUT:3/policy")): FEW,
    }
    # AND after the capture both are logged again
    assert send(traced, family) == alone


def test_nothing_is_logged_while_everything_is_traced(traced: Plain) -> None:
    with captured() as capture:
        assert send(traced, 4) == {}
        capture.wait_rows(2 * 4 * FEW, {traced.inode})
    assert Counter(row.dport for row in capture.rows if row.netns == traced.inode) == {
        THEIRS: 4 * FEW,
        OURS: 4 * FEW,
    }
