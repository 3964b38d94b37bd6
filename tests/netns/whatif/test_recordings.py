# SPDX-License-Identifier: GPL-2.0-only
"""Every distinct packet of a recording takes the same way through a copy as it took live."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.demo import network as demo
from ipttrace.lab.network import Network
from ipttrace.lab.traffic import mix
from ipttrace.lab.traffic.server import Server
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.whatif.answer.ask import Answer, ask
from ipttrace.whatif.copy.running import Copy, running
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.recorded import of_row, read_trace
from ipttrace.whatif.snapshot import here
from ipttrace.whatif.snapshot.model import Snapshot
from tests.netns.labs import lab_network
from tests.netns.whatif.copies import need_namespaces
from tests.program import Command

ERRORS = ("3/3", "3/0", "3/1", "11/0", "1/4", "1/0", "3/0")
CPUS = os.cpu_count() or 1
ROLES = ("client", "router", "server")


def way(rows: list[Row] | tuple[Row, ...]) -> list[tuple[Any, ...]]:
    """What must be the same: hook, table, path, verdict, and the addresses at each table."""
    return [
        (one.hook, one.table, one.path, one.verdict, one.src, one.sport, one.dst, one.dport)
        for one in rows
    ]


def recorded(network: Network, folder: Path, steps: list[mix.Step]) -> Trace:
    """The recording of one round of traffic, in all namespaces of the network."""
    file = folder / "trace.iptr"
    arguments = ["record", str(file), "--engine", "netlink", "--netns", "all"]
    with (
        Command(folder, [*arguments, "--ready-file", str(folder / "ready")]) as command,
        Server(network.server),
    ):
        command.wait_ready()
        for _, step in steps:
            step()
        command.process.send_signal(signal.SIGINT)
        command.finish()
    return read_trace(str(file))


def distinct(trace: Trace, inode: int) -> Iterator[list[Row]]:
    """The rows of one packet of each kind, in order; none comes in through lo from outside."""
    journeys: dict[int, list[Row]] = {}
    here = [
        row
        for row in trace.store.rows(range(trace.store.first, trace.store.end))
        if row.netns == inode
    ]
    for row in here:
        if row.in_ != "lo":
            journeys.setdefault(row.journey, []).append(row)
    # The end of the recording cuts off the packets that were under way on a CPU.
    for row in here[-CPUS:]:
        rows = journeys.get(row.journey, [])
        if rows and rows[-1].hook not in ("INPUT", "POSTROUTING") and rows[-1].verdict == "ACCEPT":
            del journeys[row.journey]
    seen = set()
    for rows in journeys.values():
        if rows[0].hook not in ("PREROUTING", "OUTPUT"):
            continue
        first = rows[0]
        states = tuple(one.ct_state for one in rows)
        if not first.in_ and (first.flags == "RST,ACK" or "RST" in (first.flags or "")):
            continue  # the answer of a REJECT belongs to the packet that it is about
        if not first.in_ and first.icmp in ERRORS:
            continue
        key = (first.in_, first.out, first.proto, first.flags, first.icmp, first.dport, states)
        if (kind := (key, tuple(way(rows)))) not in seen:
            seen.add(kind)
            yield rows


def compare(copy: Copy, trace: Trace, rows: list[Row]) -> tuple[Answer, bool]:
    answer = ask(copy, of_row(trace.store, rows[0].index))
    return answer, way(answer.own) == way(rows)


def check(trace: Trace, snapshots: dict[str, Snapshot], inodes: dict[str, int]) -> None:
    for role, snapshot in snapshots.items():
        same, named, cut, other = 0, 0, 0, []
        with running(snapshot) as copy:
            assert copy.notes == []
            for rows in distinct(trace, inodes[role]):
                try:
                    answer, equal = compare(copy, trace, rows)
                except WhatIfError as error:
                    if "does not have all headers" not in str(error):
                        raise
                    cut += 1
                    continue
                if rows[0].proto == "ICMPv6" and rows[-1].hook == "PREROUTING":
                    # NAT has changed its address, and nothing else shows that it is the same.
                    equal = way(answer.own)[: len(rows)] == way(rows)
                if equal:
                    same += 1
                elif answer.differs:
                    named += 1
                else:
                    other.append((way(rows), way(answer.own), answer.packet))
        print(
            f"{role}: {same} distinct packets took the same way, {named} met named rules,"
            f" {cut} were not recorded with all headers"
        )
        for live, copied, packet in other:
            at = [a == b for a, b in zip(live, copied, strict=False)].count(True)
            print(
                len(live),
                len(copied),
                live[at : at + 1],
                copied[at : at + 1],
                packet.raw.hex()[:120],
            )
            print(packet.state, packet.connection, packet.notes)
        assert not other
        assert same > 10


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_the_packets_of_the_lab_take_the_same_way_again(folder: Path, backend: str) -> None:
    need_namespaces()
    with lab_network(backend) as network:
        snapshots = {role: here.read(network.ns(role)) for role in ROLES}
        trace = recorded(network, folder, mix.steps(network.client, bulk=1 << 16))
        check(trace, snapshots, network.inodes())


@pytest.mark.alone
def test_the_packets_of_the_demo_take_the_same_way_again(folder: Path) -> None:
    need_namespaces()
    with demo.DemoNetwork() as network:
        snapshots = {role: here.read(network.ns(role)) for role in ROLES}
        syn = [(1, lambda: traffic.syn(network.client, "10.2.0.2", 443, 1))]
        trace = recorded(network, folder, [*mix.steps(network.client, bulk=1 << 16), *syn])
        check(trace, snapshots, network.inodes())
