# SPDX-License-Identifier: GPL-2.0-only
"""Several network namespaces at once, or one of them."""

from __future__ import annotations

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.lab import traffic
from ipttrace.lab.network import ROLES, Network
from ipttrace.lab.network import addresses as at
from tests.lab import scenarios
from tests.lab.scenarios import COUNT
from tests.vm.conftest import SHARED, captured, kprobes, seen
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

PING = next(one for one in scenarios.scenarios(4) if one.name == "ping")


def test_each_row_has_its_namespace_when_several_are_traced(network: Network) -> None:
    # GIVEN the lab's three namespaces, and one more with rules of its own
    with Plain() as plain:
        plain.load("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n", 4)
        roles = network.inodes()
        expected = scenarios.tally(PING.expected)
        with captured() as capture:
            # WHEN there is traffic in all four
            assert traffic.ping(plain.name, LOOPBACK[4], COUNT).received == COUNT
            assert PING.run(network) == PING.sent
            capture.wait_rows(expected.total(), set(roles.values()))
            capture.wait_rows(4 * COUNT, {plain.inode})
        # THEN each row names the namespace of its packet
        assert seen(capture.rows, network) == expected
        own = [row for row in capture.rows if row.netns == plain.inode]
        assert len(own) == 4 * COUNT
        assert {(row.src, row.dst) for row in own} == {(LOOPBACK[4], LOOPBACK[4])}
        # AND the stream contains their names
        names = capture.trace.hello["netns"]
        assert names[str(plain.inode)] == plain.name
        assert {names[str(inode)] for inode in roles.values()} == set(map(network.ns, ROLES))


@pytest.mark.parametrize("role", ROLES)
def test_only_the_namespace_given_by_name_is_traced(network: Network, role: str) -> None:
    with captured(netns=network.ns(role)) as capture:
        assert PING.run(network) == PING.sent
        expected = scenarios.tally(one for one in PING.expected if one.role == role)
        capture.wait_rows(expected.total())
    assert seen(capture.rows, network) == expected
    assert {row.netns for row in capture.rows} == {network.inodes()[role]}
    # Each of the 46 packets is flipped once there, and not in any other.
    assert capture.books["flipped"] == 2 * COUNT
    assert capture.books["refused"] > 0


def test_a_namespace_and_a_filter_apply_together(network: Network) -> None:
    expr = f"icmp[icmptype] == icmp-echo and dst host {at.SERVER4}"
    with captured(expr, netns=network.router) as capture:
        assert PING.run(network) == PING.sent
        rows = scenarios.tally(one for one in PING.expected if one.role == "router").total()
        # Half of the router's calls are of the answers, except the two in nat.
        capture.wait_rows((rows - 2) // 2 + 2)
    assert capture.books["flipped"] == COUNT
    assert {row.icmp for row in capture.rows} == {"8/0"}
    assert len(capture.rows) == (rows - 2) // 2 + 2


def test_a_missing_namespace_is_reported_in_one_line(network: Network) -> None:
    with (
        pytest.raises(CaptureError, match=r"there is no network namespace 'nosuch': \S.*$"),
        captured(netns="nosuch"),
    ):
        pass
    assert not kprobes()
