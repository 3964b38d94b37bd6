# SPDX-License-Identifier: GPL-2.0-only
"""Where routed packets are between the tables, from the sender's socket to the receiver's.

The truth: what the devices have counted, and what the receiver got.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import call_in, run_in, socket_in
from ipttrace.stream.record import STATION_F_NEIGHBOUR, STATION_F_ROUTE
from tests.vm.conftest import SHARED
from tests.vm.drops.routed import CLIENT, ROUTER, SERVER, SERVER_ADDRESS, Routed, sysctl
from tests.vm.drops.watched import Seen, Watched
from tests.vm.patience import PATIENCE
from tests.vm.refused import refuse_fentry

COUNT = 23
FAILED_NEVER = 0x01  # NUD_INCOMPLETE
DEVICES = ((CLIENT, "c0"), (ROUTER, "r0"), (ROUTER, "r1"), (SERVER, "s0"))
# Of a router with addresses of IPv6 on both sides.
SIX = {"c0": "fd08::2", "r0": "fd08::1", "r1": "fd09::1", "s0": "fd09::2"}


@pytest.fixture(scope="module")
def routed() -> Iterator[Routed]:
    with Routed() as one:
        sysctl(ROUTER, "net.ipv6.conf.all.forwarding", 1)
        for ns, device in DEVICES:
            sysctl(ns, f"net.ipv6.conf.{device}.accept_dad", 0)
            sysctl(ns, f"net.ipv6.conf.{device}.disable_ipv6", 0)
            run_in(ns, ["ip", "address", "add", f"{SIX[device]}/64", "dev", device, "nodad"])
        for ns, via in ((CLIENT, "fd08::1"), (SERVER, "fd09::1")):
            run_in(ns, ["ip", "-6", "route", "add", "default", "via", via])
        run_in(CLIENT, ["ping", "-6", "-c", "1", "-W", "20", SIX["s0"]])
        yield one


def counted(ns: str, device: str) -> tuple[int, int]:
    """Packets that a device has received and sent."""

    def read() -> tuple[int, int]:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        fields = next(line for line in lines if line.strip().startswith(f"{device}:")).split()
        return int(fields[2]), int(fields[10])

    return call_in(ns, read)


def step(one: Seen, names: dict[int, str]) -> tuple[str, str, str, str]:
    return (names.get(one.netns, ""), one.what, *one.devices)


@pytest.mark.parametrize("hook", ["fentry", pytest.param("kprobes", marks=SHARED)])
@pytest.mark.parametrize("family", [4, 6])
def test_a_forwarded_packet_has_each_station_from_socket_to_socket(
    routed: Routed, family: int, hook: str
) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    address, gateway = (SERVER_ADDRESS, "10.8.0.1") if family == 4 else (SIX["s0"], "fd08::1")
    names, comm = routed.inodes, Path("/proc/self/comm").read_text().strip()
    with contextlib.ExitStack() as stack:
        if hook == "kprobes":
            stack.enter_context(refuse_fentry())
        # GIVEN a client that does not know its gateway's address on the wire
        watched = stack.enter_context(Watched(f"udp dst port 9 and host {address}", stations=True))
        receiver = stack.enter_context(socket_in(SERVER, kind, socket.SOCK_DGRAM))
        receiver.settimeout(PATIENCE)
        receiver.bind((address, 9))
        run_in(CLIENT, ["ip", "neighbour", "flush", "dev", "c0"])
        before = [counted(*one) for one in DEVICES]
        # WHEN it sends, one packet at a time
        with socket_in(CLIENT, kind, socket.SOCK_DGRAM) as sender:
            for _ in range(COUNT):
                sender.sendto(b"there", (address, 9))
                assert receiver.recv(64) == b"there"
        seen = watched.settle(1)
        books = watched.balanced()
        after = [counted(*one) for one in DEVICES]
    assert (books["lost"], books["missed"]) == (0, 0)
    # THEN each packet has the same way, through all namespaces
    ways: dict[int, list[Seen]] = defaultdict(list)
    for one in sorted(seen, key=lambda one: int(one.fields["time"])):
        if one.what == "routed" and names[one.netns] == CLIENT:
            number = len(ways)
        ways[number].append(one)
    expected = [
        (CLIENT, "routed", "", "c0"),
        (CLIENT, "sent", "", "c0"),
        (ROUTER, "received", "r0", ""),
        (ROUTER, "routed", "r0", "r1"),
        (ROUTER, "forwarded", "r0", "r1"),
        (ROUTER, "sent", "r0", "r1"),
        (SERVER, "received", "s0", ""),
        (SERVER, "routed", "s0", ""),
        (SERVER, "delivered", "s0", ""),
    ]
    # AND the first one waits for its neighbour
    waits = [*expected[:1], (CLIENT, "queued", "", "c0"), *expected[1:]]
    found = [[step(one, names) for one in way] for way in ways.values()]
    assert found == [waits] + [expected] * (COUNT - 1)
    (queued,) = [one for one in seen if one.what == "queued"]
    assert queued.fields["station_flags"] & STATION_F_NEIGHBOUR
    assert queued.fields["neighbour_state"] in (0, FAILED_NEVER)
    # AND its route is the one over the gateway
    width = 4 if family == 4 else 16
    for way in ways.values():
        assert way[0].fields["station_flags"] & STATION_F_ROUTE
        assert way[0].fields["gateway"].tobytes()[:width] == socket.inet_pton(kind, gateway)
    # AND the process that got it is this one
    (owner,) = {int(way[-1].fields["owner"]) for way in ways.values()}
    assert watched.sentence(ways[1][-1]).startswith(f"delivered to {comm} (pid {os.getpid()})")
    assert owner
    # AND the devices have counted as many, and what finds the neighbour
    grown = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
    assert all(grown[at][which] >= COUNT for at, which in ((0, 1), (1, 0), (2, 1), (3, 0))), grown
