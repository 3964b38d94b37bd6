# SPDX-License-Identifier: GPL-2.0-only
"""Packets that come by a VLAN, a device of a VRF or a port of a bridge, live and in a copy."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.trace.row import Row
from ipttrace.whatif.answer.ask import ask
from ipttrace.whatif.copy.running import running
from ipttrace.whatif.packet import words
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.snapshot import here
from ipttrace.whatif.snapshot.model import Ruleset
from tests.lab.wire import ipv4, lay_wires, udp
from tests.netns.whatif.copies import LAN, ROUTER, WAN
from tests.vm.conftest import SHARED
from tests.vm.live import live
from tests.vm.modules import loaded
from tests.vm.plain import Plain

pytestmark = SHARED

# A VLAN on `near`, which receives what `far` sends; a VRF and a bridge with a port each.
LINKS = """\
link add link near name near.7 type vlan id 7
address add 10.5.7.1/24 dev near.7
link set near.7 up
link add red type vrf table 100
link set red up
link add r0 address 02:00:00:00:00:11 type veth peer name r1
link set r0 master red
address add 10.5.8.1/24 dev r0
link set r0 multicast off up
link set r1 multicast off up
link add br0 address 02:00:00:00:00:21 type bridge
link add b0 type veth peer name b1
link set b0 master br0
link set b0 multicast off up
link set b1 multicast off up
address add 10.5.9.1/24 dev br0
link set br0 multicast off up
"""
RULES = """
table inet t {
    chain pre { type filter hook prerouting priority 0; policy accept;
        iifname "near.7" udp dport 9 counter
        iifname "r0" udp dport 9 counter
        iifname "red" udp dport 9 counter
        iifname "br0" udp dport 9 counter
    }
    chain in { type filter hook input priority 0; policy drop;
        iifname "red" udp dport 9 counter accept
        iifname { "near.7", "br0" } udp dport 9 counter accept
    }
}
"""
CASES = [
    ("near.7", "far", "020000000001", "81000007", "10.5.7.1"),
    ("r0", "r1", "020000000011", "", "10.5.8.1"),
    ("br0", "b1", "020000000021", "", "10.5.9.1"),
]


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as one:
        lay_wires(lambda argv, text: run_in(one.name, argv, text=text), LINKS)
        run_in(one.name, ["nft", "-f", "-"], text=RULES)
        yield one


def way(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.hook, row.in_, row.table, row.path, row.verdict) for row in rows]


def test_the_way_is_the_same_in_a_copy(plain: Plain, tmp_path: Path) -> None:
    # WHEN a packet comes by each such device
    one = live(plain, tmp_path / "ready", engine="netlink")
    with socket_in(plain.name, socket.AF_PACKET, socket.SOCK_RAW) as sender:
        for _, outside, to, tag, address in CASES:
            sender.bind((outside, 0))
            head = bytes.fromhex(f"{to} 020000000002 {tag} 0800")
            sender.send(head + ipv4(17, address, udp(9)))
    rows = [row for row in one.finish() if row.dport == 9]
    with running(here.read(plain.name)) as copy:
        assert copy.notes == []
        for device, *_, address in CASES:
            # AND is sent through a copy of the rules
            packet = words.parse(f"udp 10.5.0.5:1000 > {address}:9 in {device}")
            assert isinstance(packet, Packet)
            answer = ask(copy, packet)
            # THEN its way is the same; behind a VRF, netlink takes it for another packet
            own = [row for row in copy.trace.store.rows(answer.rows) if row.dst == address]
            assert way(own) == way([row for row in rows if row.dst == address]), device
            assert (own[-1].hook, own[-1].verdict) == ("INPUT", "ACCEPT"), device
            assert answer.fate.verdict == "ACCEPT", answer.fate


def test_a_kernel_that_makes_devices_of_its_own_leaves_room_for_the_copys(tmp_path: Path) -> None:
    # GIVEN modules that make devices in each new namespace, which nobody can remove
    text = "*filter\n-A FORWARD -i gre0 -j DROP\n-A FORWARD\nCOMMIT\n"
    tunnel = replace(LAN, name="gre0", kind="gre", mac="")
    # WHEN devices of the copy have their numbers, and one the name
    rules = (Ruleset("iptables-legacy", text, "a file"),)
    router = replace(ROUTER, devices=(tunnel, WAN), neighbours=(), rulesets=rules)
    with loaded("ip_gre", "ipip"), running(router) as copy:
        packet = words.parse("udp 10.1.0.2:40000 > 10.2.0.2:443 in gre0")
        assert isinstance(packet, Packet)
        answer = ask(copy, packet)
        # THEN the packet comes by it, and the other numbers are told
        (row,) = copy.trace.store.rows(answer.rows)
        assert (row.in_, row.table, row.rulenum, row.verdict) == ("gre0", "filter", 1, "DROP")
        listed = copy.run(["ip", "-o", "link"]).output
        numbers = {name: number for number, name in re.findall(r"(?m)^(\d+): ([^:@]+)", listed)}
        assert [note.split(" instead of")[0] for note in copy.notes] == [
            f"{name} has the number {numbers[name]}" for name in ("gre0", "wan0")
        ]
