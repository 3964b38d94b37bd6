# SPDX-License-Identifier: GPL-2.0-only
"""Rows traced over netlink are of one flow if, and only if, conntrack lists them as one.

Through a router that forwards a port (DNAT) and masquerades, so that a connection's
packets have up to three pairs of ends.  The truth is /proc/net/nf_conntrack.
"""

from __future__ import annotations

import platform
import re
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipttrace.capture.netlink.conntrack import is_reported
from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import addresses as at
from ipttrace.lab.network.ns import netns_inode, run_in, socket_in
from ipttrace.lab.traffic.server import DNS, SINK, WEB, Server
from ipttrace.trace.row import Row
from tests.netns.labs import lab_network
from tests.netns.netlink_lab import HANG, Stream

FORWARDED = 8080  # of the router, to the server's port 80
# The client's source ports.
SHARED, OWN = 40001, 40002
End = tuple[str, int]


@dataclass(frozen=True)
class Entry:
    """A connection as conntrack lists it: source and destination of both directions."""

    proto: str
    orig: tuple[End, End]
    reply: tuple[End, End]

    def pairs(self) -> set[frozenset[End]]:
        """The ends that its packets have on their way: as sent, behind DNAT, masqueraded."""
        return {
            frozenset(self.orig),
            frozenset((self.orig[0], self.reply[0])),
            frozenset(self.reply),
        }


def entries(ns: str) -> list[Entry]:
    """The namespace's connections of TCP and UDP over IPv4."""
    found = []
    for line in run_in(ns, ["cat", "/proc/net/nf_conntrack"]).stdout.splitlines():
        words = line.split()
        if words[0] == "ipv4" and words[2] in ("tcp", "udp"):
            tuples = re.findall(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)", line)
            orig, reply = (((s, int(x)), (d, int(y))) for s, d, x, y in tuples)
            found.append(Entry(words[2].upper(), orig, reply))
    return found


def connect(network: Network, source: int, port: int, to: str) -> None:
    """Makes a connection of TCP, which both sides close."""
    with socket_in(network.client, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((at.CLIENT4, source))
        sock.settimeout(HANG)
        sock.connect((to, port))
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


def ends(row: Row) -> frozenset[End]:
    return frozenset(((row.src, row.sport or 0), (row.dst, row.dport or 0)))


def has_ended(rows: list[Row], router: int, source: int, port: int) -> bool:
    """Whether the client's FIN to that port has passed the router, and the answer to it too."""
    passed = [one for one in rows if one.netns == router and one.hook == "POSTROUTING"]
    fins = [one for one in passed if "FIN" in (one.flags or "")]
    return {(source, port), (port, source)} <= {(one.sport, one.dport) for one in fins}


@pytest.mark.alone
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rows_are_of_one_flow_if_conntrack_lists_one(
    prefix: str, backend: str, tmp_path: Path
) -> None:
    with lab_network(backend) as network, Server(network.server):
        _check(network, tmp_path, clash=backend == "nft" and is_reported(platform.release()))


def _check(network: Network, folder: Path, clash: bool) -> None:
    """`clash`: two connections are alike behind DNAT, so that conntrack alone tells them apart."""
    router = netns_inode(network.router)
    # Source port, destination, and the port that the server has.
    connections = [
        (SHARED, at.ROUTER4, FORWARDED, WEB),
        *([(SHARED, at.SERVER4, WEB, WEB)] if clash else []),
        (OWN, at.ROUTER4, FORWARDED, WEB),
        (OWN, at.SERVER4, SINK, SINK),
    ]
    stream = Stream(folder, "--netns", "all", "-", "tcp or udp")
    with stream.command as command:
        command.wait_ready()
        assert traffic.ask(network.client, at.SERVER4, DNS, 23).received == 23
        for source, to, port, _ in connections:
            connect(network, source, port, to)
        for source, _, _, port in connections:
            while not has_ended(stream.rows(), router, source, port):
                assert stream.read(), command.stderr()
        listed = entries(network.router)
        command.interrupt()
        while stream.read():
            pass
    # GIVEN the kernel's list has each of them, masqueraded, under another port if that was taken
    assert len(listed) == len(connections) + 1
    masqueraded = [one for one in listed if one.reply[1][0] == at.UPLINK4]
    assert len(masqueraded) == len(listed)
    assert sum(one.reply[1][1] != one.orig[0][1] for one in listed) == int(clash)
    # A packet begins with the ends of its connection in one direction, which no other has.
    by_ends = {(one.proto, frozenset(way)): one for one in listed for way in (one.orig, one.reply)}
    packets: dict[int, list[Row]] = defaultdict(list)
    for row in stream.rows():
        packets[row.journey].append(row)
    of_flow: dict[int, set[Entry]] = defaultdict(set)
    of_entry: dict[Entry, set[int]] = defaultdict(set)
    seen: dict[Entry, set[frozenset[End]]] = defaultdict(set)
    for rows in packets.values():
        entry = by_ends[rows[0].proto, ends(rows[0])]
        for row in rows:
            seen[entry].add(ends(row))
            of_flow[row.flow].add(entry)
            of_entry[entry].add(row.flow)
    # THEN rows show all ends that its packets have, and no others, in three namespaces
    assert {entry: entry.pairs() for entry in listed} == seen
    assert len({row.netns for row in stream.rows()}) == 3
    # AND each flow is one connection, and each connection one flow
    assert all(len(found) == 1 for found in of_flow.values()), of_flow
    assert all(len(found) == 1 for found in of_entry.values()), of_entry
