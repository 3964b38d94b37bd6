# SPDX-License-Identifier: GPL-2.0-only
"""A recording does not tell where the kernel's memory is, unless it was asked to."""

from __future__ import annotations

from ipttrace.lab import traffic
from tests.vm.conftest import SHARED, Capture, captured
from tests.vm.plain import LOOPBACK, listening, raw_and_filter

pytestmark = SHARED

RULES = raw_and_filter("-A INPUT -p udp -m udp --dport 9 -j ACCEPT")
CALLS = 4  # of a datagram: raw OUTPUT and PREROUTING, filter OUTPUT and INPUT
SENT = 23
KERNEL_HALF = 0xFFFF << 48  # where x86-64 has its direct mapping


def skbs(*, raw: bool) -> Capture:
    """The capture of some datagrams."""
    with listening(RULES) as plain, captured(netns=plain.name, raw_addresses=raw) as capture:
        assert traffic.udp(plain.name, LOOPBACK[4], 9, SENT).sent == SENT
        capture.wait_rows(CALLS * SENT)
    return capture


def test_a_packet_is_recognised_by_a_number_that_is_no_address() -> None:
    capture = skbs(raw=False)
    # THEN each packet's calls are still one journey
    journeys = [row.journey for row in capture.rows]
    assert all(journeys.count(journey) == CALLS for journey in set(journeys))
    # AND its number is none of the kernel's half, but for chance
    inside = [row.skb for row in capture.rows if (row.skb or 0) >= KERNEL_HALF]
    assert len(inside) < len(capture.rows) / 2


def test_raw_addresses_are_kept_if_asked_for() -> None:
    capture = skbs(raw=True)
    assert all((row.skb or 0) >= KERNEL_HALF for row in capture.rows)
