# SPDX-License-Identifier: GPL-2.0-only
"""The watch reports neighbour tables as ip(8) and /proc show them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.neighbours.watch import NeighbourWatch
from ipttrace.stream.frames import Kind
from ipttrace.trace.neighbours import Namespace, Neighbour, Neighbours

PEER = "10.99.0.2"
ABSENT = "10.99.0.9"
GATEWAY_TARGET = "203.0.113.7"
# Against a hang only.
HANG = 60.0


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def as_read(value: object) -> Any:
    """What a reader of the stream gets."""
    return json.loads(json.dumps(value))


class Pair:
    """Two namespaces and a cable, and what a watch of the first reported."""

    def __init__(self, prefix: str) -> None:
        self.near, self.far = f"{prefix}-near", f"{prefix}-far"
        self.watch: NeighbourWatch | None = None
        self.seen = Neighbours()
        self.frames: list[dict[str, Any]] = []

    def make(self) -> None:
        for ns in (self.near, self.far):
            ip("netns", "add", ns)
        ip("-n", self.near, "link", "add", "v0", "type", "veth", "peer", "v1", "netns", self.far)
        for ns, dev, host in ((self.near, "v0", 1), (self.far, "v1", 2)):
            ip("-n", ns, "addr", "add", f"10.99.0.{host}/24", "dev", dev)
            ip("-n", ns, "addr", "add", f"fd99::{host}/64", "dev", dev, "nodad")
            ip("-n", ns, "link", "set", dev, "up")
            ip("-n", ns, "link", "set", "lo", "up")
        ip("-n", self.near, "route", "add", "default", "via", PEER)
        # Resolution gives up quickly, and a known address is not requested again.
        for table in ("arp_cache", "ndisc_cache"):
            ip("-n", self.near, "ntable", "change", "name", table, "dev", "v0", "retrans", "50")
            ip("-n", self.near, "ntable", "change", "name", table, "dev", "v0",
               "base_reachable", "600000")  # fmt: skip
        self.watch = NeighbourWatch(self.near)

    def clean(self) -> None:
        if self.watch is not None:
            self.watch.close()
        for ns in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True, check=False)

    def ping(self, address: str) -> bool:
        argv = ["ip", "netns", "exec", self.near, "ping", "-c", "1", "-W", "1", "-n", address]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def meet(self, address: str) -> None:
        """Pings until it answers: a new cable takes a moment."""
        deadline = time.monotonic() + HANG
        while not self.ping(address):
            assert time.monotonic() < deadline, f"{address} never answered"

    def look(self) -> Namespace:
        """One more look; through JSON, as in a stream."""
        assert self.watch is not None
        for kind, value in self.watch.look():
            assert kind == Kind.NEIGHBOURS
            self.frames.append(as_read(value))
            self.seen.feed(self.frames[-1])
        known = self.seen.namespace(os.stat(f"/run/netns/{self.near}").st_ino)
        assert known is not None
        return known

    def find(self, address: str) -> Neighbour | None:
        known = self.look()
        return next((one for one in known.neighbours.values() if one.dst == address), None)

    def wait(self, address: str, *states: str) -> Neighbour:
        deadline = time.monotonic() + HANG
        while (found := self.find(address)) is None or found.state not in states:
            assert time.monotonic() < deadline, f"{address} is {found}"
            time.sleep(0.02)
        return found

    @property
    def netns(self) -> int:
        return os.stat(f"/run/netns/{self.near}").st_ino


@pytest.fixture
def pair(prefix: str) -> Iterator[Pair]:
    one = Pair(prefix)
    try:
        one.make()
        yield one
    finally:
        one.clean()


@pytest.mark.parametrize("address", [PEER, "fd99::2"])
def test_a_neighbour_that_answers_is_reported_as_ip_shows_it(pair: Pair, address: str) -> None:
    pair.meet(address)
    found = pair.wait(address, "REACHABLE")
    known = pair.look()
    # `ip -s neigh`: … lladdr 12:34:… ref 1 used 0/0/0 probes 1 REACHABLE
    listed = ip("-n", pair.near, "-s", "neigh", "show", address)
    assert f"dev {known.device(found.dev)} lladdr {found.lladdr} " in listed
    assert listed.split()[-1] == found.state
    ages = re.search(r"used (\d+)/(\d+)/(\d+)", listed)
    assert ages is not None
    used, confirmed, updated = map(int, ages.groups())
    now = time.monotonic()
    for since, ago in ((found.used, used), (found.confirmed, confirmed), (found.updated, updated)):
        assert since is not None
        assert now - since - ago < HANG  # read from the same clock
        assert abs(now - since - ago) < 10
    assert f"probes {found.probes}" in listed
    assert pair.seen.usable(pair.netns, address, "v0").usable is True


def test_a_neighbour_that_does_not_answer_makes_its_routes_unusable(
    pair: Pair,
) -> None:
    # GIVEN a gateway that does not exist
    ip("-n", pair.near, "route", "add", "198.51.100.0/24", "via", ABSENT)
    pair.look()
    before = pair.seen.usable(pair.netns, "198.51.100.5", "v0")
    assert (before.state, before.via, before.usable) == ("absent", ABSENT, False)
    # WHEN a packet is sent through it
    assert not pair.ping("198.51.100.5")
    # THEN its address cannot be resolved
    found = pair.wait(ABSENT, "INCOMPLETE", "FAILED")
    assert found.lladdr == ""
    assert ip("-n", pair.near, "neigh", "show", ABSENT).split()[-1] in ("INCOMPLETE", "FAILED")
    pair.wait(ABSENT, "FAILED")
    after = pair.seen.usable(pair.netns, "198.51.100.5", "v0")
    assert (after.state, after.via, after.dev, after.usable) == ("FAILED", ABSENT, "v0", False)
    # AND another gateway is not affected
    pair.meet(PEER)
    pair.wait(PEER, "REACHABLE")
    reach = pair.seen.usable(pair.netns, GATEWAY_TARGET, "v0")
    assert (reach.state, reach.via, reach.usable) == ("REACHABLE", PEER, True)


def test_destinations_that_need_no_neighbour_are_unknown(pair: Pair) -> None:
    pair.look()
    for dst in ("10.99.0.1", "10.99.0.255", "224.0.0.1", "ff02::1", "127.0.0.1", "::1", "fd99::1"):
        assert pair.seen.usable(pair.netns, dst).state == "unknown", dst


# Names in ip-ntable(8) and the kernel's.
PARMS = {
    "reachable": "reachable_time",
    "base_reachable": "base_reachable_time",
    "retrans": "retrans_time",
    "gc_stale": "gc_staletime",
    "delay_probe": "delay_probe_time",
    "queue": "queue_len",
    "app_probes": "app_probes",
    "ucast_probes": "ucast_probes",
    "mcast_probes": "mcast_probes",
    "anycast_delay": "anycast_delay",
    "proxy_delay": "proxy_delay",
    "proxy_queue": "proxy_qlen",
    "locktime": "locktime",
}


def _ntable(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Parameters in `ip ntable show` by table and device ("" for the table itself)."""
    found = {}
    for block in text.strip().split("\n\n"):
        head, *rest = block.split("\n")
        words = " ".join(rest).split()
        dev = words[1] if words[0] == "dev" else ""
        words = words[2:] if dev else words
        found[head.split()[1], dev] = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return found


def test_tables_and_parameters_match_ip_ntable(pair: Pair) -> None:
    # Reference counts change; if they did not meanwhile, all must agree.
    deadline = time.monotonic() + HANG
    before, listed = "", "not yet"
    while before != listed:
        assert time.monotonic() < deadline
        before = ip("-n", pair.near, "ntable", "show")
        known = pair.look()
        listed = ip("-n", pair.near, "ntable", "show")
    _compare(known, pair.seen, _ntable(listed), pair.near)


def _compare(
    known: Namespace, seen: Neighbours, listed: dict[tuple[str, str], dict[str, int]], ns: str
) -> None:
    tables = {view.table.name: view.table for view in seen.tables()}
    assert tables.keys() == {"arp_cache", "ndisc_cache"}
    devices = {device.name: device for device in known.devices.values()}
    assert {("", name) for name in tables} | {
        (device.name, {4: "arp_cache", 6: "ndisc_cache"}[family])
        for device in devices.values()
        for family in device.parms
    } == {(dev, name) for name, dev in listed}
    for (name, dev), words in listed.items():
        table = tables[name]
        parms = devices[dev].parms[table.family] if dev else table.parms
        if not dev:
            assert [words.pop(f"thresh{n}") for n in (1, 2, 3)] == list(table.thresholds)
            assert words.pop("gc_int") == table.gc_interval
        assert words.pop("refcnt") == parms["refcnt"]
        assert words == {word: parms[PARMS[word]] for word in words}
        # ip does not show these, but the kernel's files do.
        if dev:
            family = {4: "ipv4", 6: "ipv6"}[table.family]
            for parm, file in (
                ("mcast_reprobes", "mcast_resolicit"),
                ("interval_probe_time_ms", "interval_probe_time_ms"),
                ("queue_lenbytes", "unres_qlen_bytes"),
            ):
                path = f"/proc/sys/net/{family}/neigh/{dev}/{file}"
                value = ip("netns", "exec", ns, "cat", path)
                assert parms[parm] == int(value)


def _proc(name: str) -> dict[str, int]:
    """Sums of a file such as /proc/net/stat/arp_cache: a line for each CPU, in hexadecimal."""
    head, *lines = Path("/proc/net/stat", name).read_text().splitlines()
    columns = zip(*([int(n, 16) for n in line.split()] for line in lines), strict=True)
    return {key: sum(values) for key, values in zip(head.split(), columns, strict=True)}


@pytest.mark.parametrize("name", ["arp_cache", "ndisc_cache"])
def test_counters_match_proc(pair: Pair, name: str) -> None:
    # Other processes use the tables as well: if nothing changed meanwhile, all must agree.
    deadline = time.monotonic() + HANG
    before, after = {"": 0}, {"": 1}
    while before != after:
        assert time.monotonic() < deadline
        before = _proc(name)
        pair.look()
        after = _proc(name)
    stats = next(view.table.stats for view in pair.seen.tables() if view.table.name == name)
    assert set(stats) == set(before) - {"entries", "unresolved_discards"}
    assert stats == {key: before[key] for key in stats}


def test_proxies_permanent_neighbours_and_flags_are_reported(pair: Pair) -> None:
    ip("-n", pair.near, "neigh", "add", "proxy", "10.99.0.77", "dev", "v0")
    ip("-n", pair.near, "neigh", "add", "10.99.0.5", "lladdr", "02:00:00:00:00:05", "dev", "v0",
       "nud", "permanent", "router")  # fmt: skip
    ip("-n", pair.near, "neigh", "add", "10.99.0.6", "lladdr", "02:00:00:00:00:06", "dev", "v0",
       "extern_learn")  # fmt: skip
    known = pair.look()
    by_address = {one.dst: one for one in known.neighbours.values()}
    assert by_address["10.99.0.77"].proxy
    assert by_address["10.99.0.77"].updated is None
    assert by_address["10.99.0.5"].state == "PERMANENT"
    assert by_address["10.99.0.5"].flag_names == ("router",)
    assert by_address["10.99.0.5"].lladdr == "02:00:00:00:00:05"
    assert by_address["10.99.0.6"].flag_names == ("extern_learn",)


def test_only_changes_are_reported_again(pair: Pair) -> None:
    pair.meet(PEER)
    pair.wait(PEER, "REACHABLE")
    first = pair.frames[1]
    assert first.keys() >= {"netns", "name", "devices", "neighbours", "routes", "totals"}
    # WHEN a neighbour is added
    ip("-n", pair.near, "neigh", "add", "10.99.0.5", "lladdr", "02:00:00:00:00:05", "dev", "v0")
    del pair.frames[:]
    pair.look()
    # THEN it alone is reported; IPv6 may have changes of its own
    news = pair.frames[1]
    changed = {one["dst"] for one in news["neighbours_changed"] if one["family"] == 4}
    assert changed == {"10.99.0.5"}
    assert not news.keys() & {"neighbours", "devices"}
    ip("-n", pair.near, "neigh", "del", "10.99.0.5", "dev", "v0")
    del pair.frames[:]
    known = pair.look()
    assert [4, "10.99.0.5"] in [gone[:2] for gone in pair.frames[1]["neighbours_gone"]]
    assert all(one.dst != "10.99.0.5" for one in known.neighbours.values())
    # AND if nothing changes, only the tables are reported
    del pair.frames[:]
    deadline = time.monotonic() + HANG
    while True:
        pair.look()
        if all("tables" in frame for frame in pair.frames):
            break
        del pair.frames[:]
        assert time.monotonic() < deadline


def test_neighbours_beyond_the_limit_are_counted(pair: Pair) -> None:
    batch = "".join(
        f"neigh add 10.{n >> 8}.{n & 255}.3 lladdr 02:00:00:00:{n >> 8:02x}:{n & 255:02x} "
        "dev v0 nud permanent\n"
        for n in range(5000)
    )
    argv = ["ip", "-n", pair.near, "-batch", "-"]
    subprocess.run(argv, input=batch, text=True, check=True, capture_output=True)
    known = pair.look()
    assert known.totals["neighbours"] >= 5000
    assert len(known.neighbours) == 4096
    # AND one beyond the limit is not reported as absent
    held = {one.dst for one in known.neighbours.values()}
    left = next(f"10.{n >> 8}.{n & 255}.3" for n in range(5000)
                if f"10.{n >> 8}.{n & 255}.3" not in held)  # fmt: skip
    assert left not in held
    assert pair.seen.usable(pair.netns, "10.99.0.200", "v0").state == "unknown"


def test_a_deleted_namespace_is_reported_gone_and_not_kept_alive(pair: Pair) -> None:
    # GIVEN a watch of all namespaces
    watch, seen = NeighbourWatch(), Neighbours()
    try:
        for _, value in watch.look():
            seen.feed(as_read(value))
        assert pair.near in {one.name for one in seen.namespaces()}
        # WHEN one is deleted
        ip("netns", "del", pair.near)
        # THEN the other end of its cable disappears as well
        deadline = time.monotonic() + HANG
        while "v1" in ip("-n", pair.far, "link"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # AND it is reported gone
        for _, value in watch.look():
            seen.feed(as_read(value))
        assert pair.near not in {one.name for one in seen.namespaces()}
        assert pair.far in {one.name for one in seen.namespaces()}
    finally:
        watch.close()


def test_a_name_without_a_namespace_is_skipped(pair: Pair) -> None:
    left = Path(f"/run/netns/{pair.near}-left")
    left.touch()
    watch = NeighbourWatch()
    try:
        names = {value.get("name") for _, value in watch.look()}
        assert pair.near in names
        assert left.name not in names
    finally:
        watch.close()
        left.unlink()


def test_the_watchs_thread_returns_to_its_own_namespace(pair: Pair) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    watch = NeighbourWatch()
    try:
        for _ in watch.look():
            assert os.stat("/proc/thread-self/ns/net").st_ino == before
        assert os.stat("/proc/thread-self/ns/net").st_ino == before
        assert os.stat("/proc/self/ns/net").st_ino == before
    finally:
        watch.close()


def test_a_device_name_that_is_not_text_is_escaped_as_in_rows(pair: Pair) -> None:
    argv = [b"ip", b"-n", pair.near.encode(), b"link", b"set", b"v0", b"name", b"v\xff\x1b[1m"]
    ip("-n", pair.near, "link", "set", "v0", "down")
    if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        pytest.skip("this ip(8) does not allow such names")
    known = pair.look()
    assert "v\\xff\\x1b[1m" in {device.name for device in known.devices.values()}


def test_a_namespace_that_cannot_be_entered_is_reported_in_one_line(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    watch = NeighbourWatch()
    try:
        monkeypatch.setattr("ipttrace.capture.netns.setns", refuse)
        with pytest.raises(CaptureError, match="cannot be read: Operation not permitted"):
            list(watch.look())
    finally:
        monkeypatch.undo()
        watch.close()
