# SPDX-License-Identifier: GPL-2.0-only
"""EXPR takes a stage if it takes a packet between its ends, in either direction."""

from __future__ import annotations

import pytest

from ipttrace.capture.filter import pcap
from ipttrace.capture.sockets.expr import taken
from ipttrace.stream import record
from tests.data.stages import put, stage


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [
        ("", True),
        ("tcp port 80", True),
        ("tcp dst port 40000", True),
        ("tcp port 81", False),
        ("udp", False),
        ("host 10.0.0.2", True),
        ("net 192.0.2.0/24", True),  # whom the client has called
        ("port 8080", True),
        ("host 10.0.0.9", False),
        ("ip6", False),
        ("tcp[tcpflags] & tcp-syn != 0", True),  # a stage has no flags
        ("port 81 and tcp[tcpflags] & tcp-syn != 0", False),
    ],
)
def test_of_ipv4(expr: str, wanted: bool) -> None:
    one = stage(record.SYN_TAKEN, flags=record.SK_F_ORIGINAL, orig_dport=8080)
    put(one, "orig_dst", "192.0.2.7")
    assert taken(pcap.compile(expr), one).tolist() == [wanted]


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [("udp port 53", True), ("host 2001:db8::1", True), ("ip", False), ("port 54", False)],
)
def test_of_ipv6(expr: str, wanted: bool) -> None:
    local, remote = ("2001:db8::1", 53), ("2001:db8::2", 4000)
    one = stage(record.BOUND, local=local, remote=remote, protocol=17)
    assert taken(pcap.compile(expr), one).tolist() == [wanted]


def test_who_answers_a_client_counts_too() -> None:
    one = stage(record.CONNECTED, flags=record.SK_F_TRANSLATED, reply_sport=9000)
    put(one, "reply_src", "10.3.3.3")
    assert taken(pcap.compile("host 10.3.3.3 and port 9000"), one).tolist() == [True]
