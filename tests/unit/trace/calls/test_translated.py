# SPDX-License-Identifier: GPL-2.0-only
"""A flow is one flow before and after NAT, though nobody says what NAT does.

Over netlink many kernels do not report conntrack: packets show it on their way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from ipttrace.stream import record
from ipttrace.trace.calls import Aliases, Flows
from ipttrace.trace.decode import headers
from tests.data.records import entry, joined, tcp, udp, v4

CLIENT, OTHER, GATEWAY, SERVICE, SERVER = "10.1.0.2", "10.1.0.3", "10.2.0.1", "10.9.0.1", "10.2.0.2"

Packet = list[bytes]  # one packet, as the chains on its way see it


def segment(src: str, sport: int, dst: str, dport: int) -> bytes:
    return v4(6, src, dst, tcp(sport, dport, 2))


def echo(kind: int, src: str, dst: str, identifier: int) -> bytes:
    return v4(1, src, dst, struct.pack(">BBHHH", kind, 0, 0, identifier, 1))


def unreachable(router: str, to: str, quoted: bytes) -> bytes:
    return v4(1, router, to, struct.pack(">BBHI", 3, 1, 0, 0) + quoted[:28])


class Traced:
    """Packets that were traced over netlink, `size` rows at a time."""

    def __init__(self, packets: Iterable[Packet], size: int, netns: Sequence[int] = ()) -> None:
        aliases = Aliases()
        flows = Flows(aliases)
        of = [(at, data) for at, packet in enumerate(packets) for data in packet]
        found = []
        for start in range(0, len(of), size):
            some = of[start : start + size]
            entries = joined(*(entry(1, packet=data, source=record.SOURCE_NFT) for _, data in some))
            journeys = np.array([at + 1 for at, _ in some], np.uint64)
            entries["netns"] = [netns[at] if netns else 1 for at, _ in some]
            decoded = headers.decode(entries["packet"], entries["caplen"], entries["len"])
            found += flows.assign(entries, decoded, journeys, start + len(some)).tolist()
        times = np.arange(1, len(found) + 1)
        roots = aliases.roots(np.array(found, np.uint64), times)
        self.flows: list[set[int]] = [set() for _ in range(of[-1][0] + 1)]
        for (at, _), flow in zip(of, roots.tolist(), strict=True):
            self.flows[at].add(flow)

    def are_one(self, *packets: int) -> bool:
        return len(set().union(*(self.flows[at] for at in packets))) == 1


# Of a connection through MASQUERADE, DNAT or both: its first packet, and the answer.
MASQUERADED = [
    [segment(CLIENT, 1000, SERVER, 80)] * 4,
    [segment(SERVER, 80, GATEWAY, 1000)] * 2 + [segment(SERVER, 80, CLIENT, 1000)] * 3,
]
REDIRECTED = [
    [segment(CLIENT, 1001, SERVICE, 80)] * 2 + [segment(CLIENT, 1001, SERVER, 8080)] * 2,
    [segment(SERVER, 8080, CLIENT, 1001)] * 4 + [segment(SERVICE, 80, CLIENT, 1001)],
]
BOTH = [
    [segment(CLIENT, 1002, SERVICE, 80)] * 2 + [segment(CLIENT, 1002, SERVER, 8080)] * 2,
    [segment(SERVER, 8080, GATEWAY, 5002)] * 2 + [segment(SERVER, 8080, CLIENT, 1002)] * 2,
]
# A chain behind source NAT sees what it did.
SEEN_BEHIND = [
    [segment(CLIENT, 1003, SERVER, 80)] * 2 + [segment(GATEWAY, 5003, SERVER, 80)],
    [segment(SERVER, 80, GATEWAY, 5003)],
]
PING = [
    [echo(8, CLIENT, SERVER, 7)] * 2,
    [echo(0, SERVER, GATEWAY, 99), echo(0, SERVER, CLIENT, 7)],
]
KINDS = pytest.mark.parametrize(
    "connection", [MASQUERADED, REDIRECTED, BOTH, SEEN_BEHIND, PING], ids=lambda _: ""
)
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 100])


@KINDS
@SIZES
def test_both_directions_over_nat_are_one_flow_however_their_rows_come(
    connection: list[Packet], size: int
) -> None:
    stranger = [segment(OTHER, 4242, SERVER, 80)] * 3
    traced = Traced([*connection, stranger, *connection], size)
    assert traced.are_one(0, 1, 3, 4)
    assert not traced.are_one(0, 2)


@SIZES
def test_a_flow_is_one_in_each_namespace_that_it_passes(size: int) -> None:
    # GIVEN the server is traced, too: it sees the connection before any answer comes
    at_server = [segment(GATEWAY, 1000, SERVER, 80)] * 3
    back = [segment(SERVER, 80, GATEWAY, 1000)] * 2
    there, answer = MASQUERADED
    traced = Traced([there, at_server, back, answer, there, at_server], size, [1, 2, 2, 1, 1, 2])
    assert traced.are_one(0, 1, 2, 3, 4, 5)


@SIZES
def test_an_icmp_error_belongs_to_the_connection_behind_nat(size: int) -> None:
    there = [segment(CLIENT, 1000, SERVER, 80)] * 4
    translated = segment(GATEWAY, 1000, SERVER, 80)
    # WHEN nothing but an error comes back
    error = [
        unreachable("10.2.0.9", GATEWAY, translated),
        unreachable("10.2.0.9", CLIENT, there[0]),
    ]
    traced = Traced([there, error, there, error], size)
    assert traced.are_one(0, 1, 2, 3)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_a_port_of_the_gateway_is_used_again_for_another_flow(size: int) -> None:
    # GIVEN connections that have ended
    before = [*MASQUERADED, *SEEN_BEHIND]
    # WHEN the gateway gives their ports to another client's
    there = [segment(OTHER, 1000, SERVER, 80)] * 4
    answer = [segment(SERVER, 80, GATEWAY, 1000), *[segment(SERVER, 80, OTHER, 1000)] * 4]
    behind = [segment(OTHER, 1003, SERVER, 80), segment(GATEWAY, 5003, SERVER, 80)]
    traced = Traced([*before, there, answer, there, answer, behind, behind], size)
    # THEN all stay apart
    assert traced.are_one(0, 1)
    assert traced.are_one(2, 3)
    assert traced.are_one(4, 6)
    assert not traced.flows[0] & traced.flows[4]
    assert traced.are_one(8, 9)
    assert not traced.flows[2] & traced.flows[8]


@SIZES
def test_a_tunnel_and_what_it_carries_are_not_one_flow(size: int) -> None:
    inner, other = segment(CLIENT, 1000, SERVER, 80), segment(OTHER, 1001, SERVER, 80)
    outer = v4(4, "192.0.2.1", "192.0.2.2", inner)
    carried = v4(17, "192.0.2.1", "192.0.2.2", udp(4789, 4789, bytes(8)))
    datagram = v4(17, CLIENT, SERVER, udp(53, 53))
    traced = Traced([[outer, inner], [outer, other], [carried, datagram]], size)
    assert [len(flows) for flows in traced.flows] == [2, 2, 2]
    assert not traced.are_one(0, 1)
