# SPDX-License-Identifier: GPL-2.0-only
"""What rows say of conntrack and of a bridge's ports is what rules match at the same place."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import read_counters
from ipttrace.lab.network.ns import socket_in
from ipttrace.trace.row import Row
from tests.lab.bridge import ADDRESSES, PORTS, Bridge
from tests.vm.conftest import SHARED, captured
from tests.vm.modules import loaded
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

COUNT = 23
RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
# What conntrack finds invalid: SYN and RST at once, which nobody answers.
SYN_RST = 0x06


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as namespace, socket_in(namespace.name, socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((LOOPBACK[4], 9))
        yield namespace


def send_tcp(plain: Plain, flags: int, count: int = COUNT) -> None:
    """Sends TCP segments with these flags to port 7, which nobody listens on."""
    source = socket.inet_aton(LOOPBACK[4])
    head = struct.pack(">HHIIBBHHH", 4000, 7, 1, 0, 5 << 4, flags, 1024, 0, 0)
    words = struct.unpack(">16H", source + source + struct.pack(">HH", 6, len(head)) + head)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:16] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]
    with socket_in(plain.name, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        for _ in range(count):
            sock.sendto(head, (LOOPBACK[4], 0))


def states(rows: list[Row]) -> Counter[tuple[str, str, str | None]]:
    return Counter((row.hook, row.table, row.ct_state) for row in rows)


def test_invalid_is_what_ctstate_invalid_counts_and_nothing_that_conntrack_has_not_seen(
    plain: Plain,
) -> None:
    # GIVEN rules that count INVALID in raw, where conntrack has not seen a packet, and in filter
    invalid = "-p tcp -m tcp --dport 7 -m conntrack --ctstate INVALID"
    plain.load(
        f"{RAW}-A PREROUTING {invalid}\nCOMMIT\n{FILTER}-A INPUT {invalid}\nCOMMIT\n",
        4,
    )
    with captured("tcp dst port 7", netns=plain.name) as capture:
        send_tcp(plain, SYN_RST)
        capture.wait_rows(4 * COUNT)
    # THEN iptables counts them at both places, for a packet without an entry is all it sees
    counters = plain.counters(4)
    assert sorted(packets for packets, _ in counters.values())[-2:] == [COUNT, COUNT]
    # AND rows say INVALID only where conntrack has looked
    assert states(capture.rows) == {
        ("OUTPUT", "raw", None): COUNT,
        ("OUTPUT", "filter", "INVALID"): COUNT,
        ("PREROUTING", "raw", None): COUNT,
        ("INPUT", "filter", "INVALID"): COUNT,
    }


def test_without_conntrack_in_the_namespace_no_packet_is_invalid(plain: Plain) -> None:
    plain.load(f"{FILTER}-A INPUT -p tcp -m tcp --dport 7\nCOMMIT\n", 4)
    with captured("tcp dst port 7", netns=plain.name) as capture:
        send_tcp(plain, SYN_RST)
        capture.wait_rows(2 * COUNT)
    assert {row.ct_state for row in capture.rows} == {None}


def test_a_packet_under_notrack_is_untracked_and_not_invalid(plain: Plain) -> None:
    plain.load(
        f"{RAW}-A OUTPUT -p tcp -m tcp --dport 7 -j CT --notrack\nCOMMIT\n"
        f"{FILTER}-A INPUT -p tcp -m tcp --dport 7 -m conntrack --ctstate UNTRACKED\nCOMMIT\n",
        4,
    )
    with captured("tcp dst port 7", netns=plain.name) as capture:
        send_tcp(plain, SYN_RST)
        capture.wait_rows(4 * COUNT)
    assert {packets for packets, _ in plain.counters(4).values()} >= {COUNT}
    assert states(capture.rows)["INPUT", "filter", "UNTRACKED"] == COUNT
    assert "INVALID" not in {row.ct_state for row in capture.rows}


@pytest.mark.parametrize("engine", ["kernel", "netlink"])
def test_mark_and_zone_of_a_connection_are_those_that_rules_give_it(
    plain: Plain, engine: str
) -> None:
    udp = "-p udp -m udp --dport 9"
    plain.load(
        f"{RAW}-A OUTPUT {udp} -j CT --zone 7\n-A PREROUTING {udp} -j CT --zone 7\nCOMMIT\n"
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
        f":OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        f"-A OUTPUT {udp} -j CONNMARK --set-xmark 0xcafe/0xffffffff\nCOMMIT\n"
        f"{FILTER}-A INPUT {udp} -m connmark --mark 0xcafe\nCOMMIT\n",
        4,
    )
    with captured("udp dst port 9", netns=plain.name, engine=engine) as capture:
        assert traffic.udp(plain.name, LOOPBACK[4], 9, COUNT).sent == COUNT
        capture.wait_rows(8 * COUNT)
    counters = plain.counters(4)
    assert counters["filter", "INPUT", 1][0] == COUNT, counters
    found = {(row.hook, row.table, row.ct_mark, row.ct_zone) for row in capture.rows}
    # The first packet came to OUTPUT's mangle without the mark, and to raw without an entry.
    assert ("OUTPUT", "raw", None, None) in found
    assert ("OUTPUT", "mangle", 0, 7) in found
    assert ("OUTPUT", "filter", 0xCAFE, 7) in found
    assert ("INPUT", "filter", 0xCAFE, 7) in found
    assert {zone for _, table, _, zone in found if table != "raw"} == {7}


def test_a_bridged_packet_has_the_ports_that_physdev_matches() -> None:
    physdev = "-m physdev --physdev-in {} --physdev-out {} --physdev-is-bridged".format(*PORTS)
    rules = f"{FILTER}-A FORWARD -p udp -m udp --dport 9 {physdev}\nCOMMIT\n"
    nat = "*mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    with loaded("br_netfilter"), Bridge() as bridge:
        bridge.run("iptables-legacy-restore", text=rules + nat)
        with captured("udp dst port 9", netns=bridge.name) as capture:
            sent = traffic.udp(bridge.hosts[0], ADDRESSES[1], 9, COUNT).sent
            assert sent == COUNT
            capture.wait_rows(4 * COUNT)
        counters = read_counters(bridge.run("iptables-legacy-save", "-c").stdout)
    assert counters["filter", "FORWARD", 1][0] == COUNT, counters
    ports = Counter((row.hook, row.table, row.physin, row.physout) for row in capture.rows)
    assert ports == {
        ("PREROUTING", "mangle", PORTS[0], None): COUNT,
        ("FORWARD", "mangle", *PORTS): COUNT,
        ("FORWARD", "filter", *PORTS): COUNT,
        ("POSTROUTING", "mangle", *PORTS): COUNT,
    }
    assert {(row.in_, row.out) for row in capture.rows if row.hook == "FORWARD"} == {("br0", "br0")}
