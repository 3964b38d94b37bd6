# SPDX-License-Identifier: GPL-2.0-only
"""The watch reports reassembly and conntrack as nstat(8) and /proc show them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipttrace.capture.tables import counters, values
from ipttrace.capture.tables.watch import TableWatch
from ipttrace.stream.frames import Kind
from ipttrace.trace.tables import CONNTRACK, IPV4, IPV6, KernelTables, Table, TableHistory
from tests.lab.fragments import datagram, piece4, piece6
from tests.lab.wire import transmit
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import wired_namespace

HANG = 60.0  # s; against a hang only
SIZE = 1600
DATAGRAM = datagram(SIZE)


class Watched:
    """A namespace with wires, and what a watch of it reported."""

    def __init__(self, namespace: RulesetNamespace) -> None:
        self.namespace = namespace
        self.watch = TableWatch(namespace.path)
        self.seen = KernelTables()
        self.frames: list[dict[str, Any]] = []

    def look(self) -> None:
        """One more look; through JSON, as in a stream."""
        for kind, value in self.watch.look():
            assert kind == Kind.TABLES
            self.frames.append(json.loads(json.dumps(value)))
            self.seen.feed(self.frames[-1])

    def table(self, name: Table) -> TableHistory:
        known = self.seen.namespace(self.namespace.inode)
        assert known is not None
        return known.table(name)

    def nstat(self) -> dict[str, int]:
        """What nstat prints of the kernel's own counters."""
        text = self.namespace.run("nstat", "-a", "-s", "-z", "*Reasm*")
        return {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}

    def wait(self, counter: str, most: int) -> None:
        """Waits until the kernel has counted so many."""
        deadline = time.monotonic() + HANG
        while self.nstat()[counter] < most:
            assert time.monotonic() < deadline, self.nstat()
            time.sleep(0.02)

    def send(self, *packets: bytes) -> None:
        with self.namespace.enter():
            transmit(packets)

    def sockstat(self) -> str:
        return self.namespace.run("cat", "/proc/self/net/sockstat", "/proc/self/net/sockstat6")


@pytest.fixture
def watched() -> Iterator[Watched]:
    with wired_namespace() as namespace:
        namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_time=1", "net.ipv6.ip6frag_time=1")
        yield Watched(namespace)


def both(number: int, *spans: tuple[int, int]) -> list[bytes]:
    """Fragments with these bytes, over IPv4 and IPv6."""
    return [
        piece(number, DATAGRAM, start, end) for piece in (piece4, piece6) for start, end in spans
    ]


def compare(watched: Watched) -> None:
    """Compares all counters with nstat's."""
    truth = watched.nstat()
    four, six = watched.table(IPV4).values, watched.table(IPV6).values
    for name in ("ReasmReqds", "ReasmOKs", "ReasmFails", "ReasmTimeout"):
        assert four[name] == truth[f"Ip{name}"], name
        assert six[name] == truth[f"Ip6{name}"], name
    assert four["ReasmOverlaps"] == truth["IpExtReasmOverlaps"]


def test_packets_that_are_reassembled_are_counted(watched: Watched) -> None:
    watched.look()
    assert watched.table(IPV4).values["ReasmOKs"] == 0
    # WHEN seven packets come in two fragments each
    for number in range(7):
        watched.send(*both(number, (0, 800), (800, SIZE)))
    watched.wait("IpReasmOKs", 7)
    watched.wait("Ip6ReasmOKs", 7)
    watched.look()
    # THEN each is counted, and no queue is left
    compare(watched)
    for name in (IPV4, IPV6):
        one = watched.table(name)
        assert one.values["ReasmOKs"] == 7
        assert one.values["ReasmReqds"] == 14
        assert one.values["queues"] == one.values["memory"] == 0
        assert (one.rate("ReasmOKs") or 0) > 0
        assert one.level == "ok"


def test_a_fragment_that_never_comes_is_a_queue_and_then_a_timeout(watched: Watched) -> None:
    watched.namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_time=60", "net.ipv6.ip6frag_time=60")
    watched.look()
    # WHEN the second of two fragments is missing in three packets
    for number in range(3):
        watched.send(*both(number, (0, 800)))
    deadline = time.monotonic() + HANG
    while "FRAG: inuse 3 " not in (text := watched.sockstat()) or "FRAG6: inuse 3 " not in text:
        assert time.monotonic() < deadline, text
    watched.look()
    # THEN three packets wait, with the memory that the kernel counts
    text = watched.sockstat()
    for name, title in ((IPV4, "FRAG"), (IPV6, "FRAG6")):
        memory = watched.table(name).values["memory"]
        assert f"{title}: inuse 3 memory {memory}" in text
        assert memory > 3 * 800
    assert watched.table(IPV4).values["time"] == 60
    # AND where they may wait for a second only, they are given up
    watched.namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_time=1", "net.ipv6.ip6frag_time=1")
    for number in range(10, 15):
        watched.send(*both(number, (0, 800)))
    watched.wait("IpReasmTimeout", 5)
    watched.wait("Ip6ReasmTimeout", 5)
    watched.look()
    compare(watched)
    for name in (IPV4, IPV6):
        one = watched.table(name)
        assert one.recent("ReasmTimeout") == 5
        assert one.level == "warn"
        assert "ReasmTimeout" in one.losing


def test_overlapping_fragments_are_counted(watched: Watched) -> None:
    watched.look()
    for number in range(5):
        watched.send(*both(number, (0, 800), (400, SIZE)))
    watched.wait("IpExtReasmOverlaps", 5)
    watched.wait("IpReasmFails", 5)
    watched.look()
    compare(watched)
    assert watched.table(IPV4).recent("ReasmOverlaps") == 5
    assert "ReasmOverlaps" not in watched.table(IPV6).values  # the kernel counts none


def test_memory_above_the_threshold_is_a_warning_and_then_full(watched: Watched) -> None:
    # GIVEN queues that may take 64 kB, and packets whose second fragment does not come
    watched.namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_time=60")
    watched.namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_low_thresh=32768")
    watched.namespace.run("sysctl", "-qw", "net.ipv4.ipfrag_high_thresh=65536")
    levels = []
    for number in range(200):
        watched.send(piece4(number, DATAGRAM, 0, 800))
        watched.look()
        levels.append(watched.table(IPV4).level)
        if watched.nstat()["IpReasmFails"]:
            break
    # THEN the level tells it before fragments are rejected, and when they are
    watched.look()
    one = watched.table(IPV4)
    assert (one.values["low_thresh"], one.values["high_thresh"]) == (32768, 65536)
    assert levels[0] == "ok"
    assert "warn" in levels
    assert one.level == "full"
    compare(watched)


def entries(namespace: RulesetNamespace) -> int:
    return int(namespace.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


@pytest.fixture
def tracking(watched: Watched) -> Watched:
    """A namespace with a rule that makes conntrack see packets."""
    if not Path("/proc/sys/net/netfilter/nf_conntrack_count").exists():
        pytest.skip("this kernel has no conntrack, or has not loaded it")
    chain = "type filter hook input priority 0; ct state new counter;"
    watched.namespace.nft(f"table ip t {{\nchain c {{ {chain} }}\n}}")
    return watched


def test_conntrack_s_entries_and_counters_are_those_of_proc(tracking: Watched) -> None:
    tracking.look()
    before = tracking.table(CONNTRACK).used
    assert before == entries(tracking.namespace)
    # WHEN eleven datagrams come, each of another flow, and an answer to nothing
    tracking.send(*(piece4(9, datagram(100, port), 0, 100) for port in range(1, 12)))
    deadline = time.monotonic() + HANG
    while entries(tracking.namespace) < 11:
        assert time.monotonic() < deadline
    tracking.look()
    one = tracking.table(CONNTRACK)
    maximum = Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()
    assert one.used == entries(tracking.namespace) >= 11
    assert one.limit == int(maximum)
    assert one.level == "ok"
    # AND a reset of a connection that nobody knows is invalid
    reset = bytes.fromhex("0fa0 0050 00000001 00000001 5014 0000 0000 0000")
    tracking.send(piece4(9, reset, 0, len(reset), protocol=6))
    while not _proc(tracking.namespace)["invalid"]:
        assert time.monotonic() < deadline
    tracking.look()
    truth = _proc(tracking.namespace)
    assert truth["invalid"] == tracking.table(CONNTRACK).values["invalid"] == 1


def _proc(namespace: RulesetNamespace) -> dict[str, int]:
    """Sums of /proc/net/stat/nf_conntrack: a line for each CPU, in hexadecimal."""
    text = namespace.run("cat", "/proc/self/net/stat/nf_conntrack", check=False)
    if not text:
        pytest.skip("this kernel has no /proc/net/stat/nf_conntrack")
    head, *lines = text.splitlines()
    columns = zip(*([int(n, 16) for n in line.split()] for line in lines), strict=True)
    return {key: sum(numbers) for key, numbers in zip(head.split(), columns, strict=True)}


def test_netlink_and_proc_have_the_same_counters(tracking: Watched) -> None:
    reset = bytes.fromhex("0fa0 0050 00000001 00000001 5014 0000 0000 0000")
    tracking.send(*[piece4(9, reset, 0, len(reset), protocol=6)] * 3)
    deadline = time.monotonic() + HANG
    while _proc(tracking.namespace)["invalid"] < 3:
        assert time.monotonic() < deadline
    with tracking.namespace.enter():
        by_proc = values._file_counters(values._bytes("/proc/thread-self/net/stat/nf_conntrack"))
        by_netlink = values._netlink_counters()
    assert by_netlink == by_proc
    assert set(by_netlink) <= set(counters._COUNTERS.values())


def test_only_changes_are_reported_again(watched: Watched) -> None:
    watched.look()
    watched.look()
    del watched.frames[:]
    watched.look()
    assert [set(frame) for frame in watched.frames] == [{"mono"}]
    watched.send(piece4(1, DATAGRAM, 0, 800))
    watched.wait("IpReasmReqds", 1)
    del watched.frames[:]
    watched.look()
    assert [frame.get("table") for frame in watched.frames] == ["ipv4", None]
    assert watched.frames[0]["since"] < watched.frames[0]["mono"]


def test_all_namespaces_are_watched_and_deleted_ones_are_gone(watched: Watched) -> None:
    watch, seen = TableWatch(), KernelTables()

    def look() -> set[str]:
        for _, value in watch.look():
            seen.feed(json.loads(json.dumps(value)))
        return {one.name for one in seen.namespaces()}

    name = f"{Path(watched.namespace.path).name}-other"
    subprocess.run(["ip", "netns", "add", name], check=True)
    before = os.stat("/proc/thread-self/ns/net").st_ino
    try:
        assert {name, Path(watched.namespace.path).name} <= look()
        assert os.stat("/proc/thread-self/ns/net").st_ino == before
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert name not in look()
    with contextlib.closing(watch):
        assert seen.namespace(watched.namespace.inode) is not None
