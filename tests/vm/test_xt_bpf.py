# SPDX-License-Identifier: GPL-2.0-only
"""Filters that nftables cannot express: the kernel flips only packets that match.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ipttrace.capture.filter import nft, pcap
from ipttrace.capture.netlink.nft import xt_bpf
from ipttrace.lab.network.ns import run, run_in, socket_in
from ipttrace.trace.row import Row
from tests.netns.capture.netlink.nft.test_table import OTHERS as OTHERS_OF_NFT
from tests.netns.capture.netlink.nft.test_table import CableNamespaces, packets
from tests.vm.conftest import SHARED, captured
from tests.vm.forked import Agent, until
from tests.vm.kernel_log import dmesg
from tests.vm.live import is_whole
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain

pytestmark = SHARED

COUNT: Final = 23
OTHERS: Final = 31  # that do not match
ROUTER, SERVER = "10.61.0.1", "10.62.0.2"
WANTED = b"\x12\x34" + b"x" * 90
OTHER = b"\x12\x35" + b"x" * 60

EXPRESSIONS = {
    "arithmetic": "udp and udp[9] ^ 3 = 0x37",
    "computed offset": "udp and udp[ip[9] - 8] = 0x34",
    "length of the payload": "udp and ip[2:2] - ((ip[0] & 0xf) << 2) > 90",
    # Longer than xt_bpf takes.
    "long": " or ".join(
        f"(udp dst port {port} and udp[9] ^ {port} = {port ^ 0x34})" for port in range(90, 110)
    ),
    "length of the packet": "len > 115 and udp",  # nftables expresses this one
}
NAT = f"""table ip forth {{
    chain pre {{
        type nat hook prerouting priority -100; policy accept;
        udp dport 100 counter dnat to {SERVER}:53
    }}
    chain post {{
        type nat hook postrouting priority 100; policy accept;
        udp dport 53 counter masquerade
    }}
    chain between {{
        type filter hook forward priority 0; policy accept;
        counter
    }}
}}
"""


class Routed:
    """A client, a router with NAT rules, and a server's socket."""

    def __init__(self, client: Plain, router: Plain, server: socket.socket) -> None:
        self.client, self.router, self._server = client, router, server

    def send(self) -> None:
        """Sends packets of both kinds in turn, and waits for all of them at the server."""
        with socket_in(self.client.name, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(max(COUNT, OTHERS)):
                if number < COUNT:
                    sender.sendto(WANTED, (ROUTER, 100))
                if number < OTHERS:
                    sender.sendto(OTHER, (ROUTER, 100))
        found = [self._server.recvfrom(200) for _ in range(COUNT + OTHERS)]
        assert sum(data == WANTED for data, _ in found) == COUNT
        assert {sender[0] for _, sender in found} == {"10.62.0.1"}

    def counted(self) -> int:
        """Packets that flip tables have flipped, as nft lists them."""
        listed = json.loads(self.router.run("nft", "-j", "list", "counters").stdout)["nftables"]
        found = [one["counter"] for one in listed if "counter" in one]
        return sum(one["packets"] for one in found if one["table"].startswith("ipttrace-"))

    def tables(self) -> str:
        return self.router.run("nft", "list", "tables").stdout


@pytest.fixture
def routed() -> Iterator[Routed]:
    with contextlib.ExitStack() as stack:
        client, router, server = (
            stack.enter_context(Plain(name))
            for name in ("ipt-client1", "ipt-router1", "ipt-server1")
        )
        for end, subnet in ((client, "10.61.0"), (server, "10.62.0")):
            near = f"to{subnet[3:5]}"
            run(["ip", "-n", end.name, "link", "add", "up0", "type", "veth",
                 "peer", near, "netns", router.name])  # fmt: skip
            end.run("ip", "addr", "add", f"{subnet}.2/24", "dev", "up0")
            end.run("ip", "link", "set", "up0", "up")
            end.run("ip", "route", "add", "default", "via", f"{subnet}.1")
            router.run("ip", "addr", "add", f"{subnet}.1/24", "dev", near)
            router.run("ip", "link", "set", near, "up")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run_in(router.name, ["nft", "-f", "-"], text=NAT)
        heard = stack.enter_context(socket_in(server.name, socket.AF_INET, socket.SOCK_DGRAM))
        heard.bind((SERVER, 53))
        heard.settimeout(PATIENCE)
        yield Routed(client, router, heard)


def only_those_that_match(rows: list[Row], hooks: list[str]) -> None:
    """Rows are of COUNT packets, each seen from its flip to behind NAT."""
    journeys: dict[int | None, list[Row]] = {}
    for row in rows:
        journeys.setdefault(row.journey, []).append(row)
    assert len(journeys) == COUNT
    assert {row.len for row in rows} == {28 + len(WANTED)}
    for way in journeys.values():
        # A connection's later packets pass no chain of type nat.
        assert [row.hook for row in way if row.chain == "between"] == ["FORWARD"]
        assert set(hooks) <= {row.hook for row in way} <= {"PREROUTING", "FORWARD", "POSTROUTING"}
        assert {row.dport for row in way if row.hook == "FORWARD"} == {53}


@pytest.mark.parametrize("engine", ["bpf", "netlink"])
@pytest.mark.parametrize("expr", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_only_matching_packets_are_flipped_and_they_are_followed_through_nat(
    routed: Routed, expr: str, engine: str
) -> None:
    expressible = nft.compile(pcap.compile(expr)).exact
    assert expressible == expr.startswith("len")
    # WHEN packets of two kinds are routed, and EXPR matches one
    with captured(expr, routed.router.name, engine=engine) as capture:
        routed.send()
        capture.wait_rows(COUNT + 2)
        # THEN as many were flipped as were sent
        assert routed.counted() == COUNT
    # AND only these are recorded, under the addresses that NAT gave them too
    only_those_that_match(capture.rows, ["FORWARD"])
    books = capture.books
    assert (books["flipped"], books["refused"], sum(books["lost"])) == (COUNT, 0, 0)
    assert books["missed"] == 0
    where = "in the kernel (3 nft rules)" if expressible else "in the kernel (xt_bpf)"
    assert books["filter"] == where
    assert engine != "bpf" or all(is_whole(row) for row in capture.rows)
    assert "ipttrace" not in routed.tables()


@pytest.mark.parametrize("kind", ["arithmetic", "long"])
def test_nothing_is_left_of_an_agent_that_is_killed(
    routed: Routed, kind: str, tmp_path: Path
) -> None:
    # GIVEN an agent whose filter xt_bpf runs, as it is or by descriptor
    references = _references()
    expr, ready = EXPRESSIONS[kind], tmp_path / "ready"
    with Agent(expr=expr, netns=routed.router.name, engine="bpf", ready_file=ready) as agent:
        agent.wait_for_hello()
        routed.send()
        assert routed.counted() == COUNT
        assert _references() > references
        # WHEN it is killed
        agent.signal(signal.SIGKILL)
        agent.wait()
    # THEN its table is gone, and with it the programs; the rules of the host are as before
    assert "ipttrace" not in routed.tables()
    assert until(lambda: _references() == references)
    assert routed.counted() == 0


def _references() -> int:
    """Rules that use the match bpf."""
    try:
        return int(Path("/sys/module/xt_bpf/refcnt").read_text())
    except FileNotFoundError:
        return 0  # the module is not loaded


@contextlib.contextmanager
def no_xt_bpf() -> Iterator[None]:
    """The kernel has no xt_bpf, and can load no modules."""
    loader = Path("/proc/sys/kernel/modprobe")
    before = loader.read_text()
    if Path("/sys/module/xt_bpf").exists():
        until(lambda: _references() == 0)
        run(["rmmod", "xt_bpf"])
    loader.write_text("/bin/false")
    xt_bpf._is_there.cache_clear()  # asked once in a process
    try:
        yield
    finally:
        loader.write_text(before)
        xt_bpf._is_there.cache_clear()


@pytest.mark.parametrize("engine", ["bpf", "netlink"])
def test_a_kernel_without_xt_bpf_traces_the_same_and_says_nothing(
    routed: Routed, engine: str
) -> None:
    # GIVEN a kernel without xt_bpf
    log = len(dmesg())
    with no_xt_bpf():
        expr = EXPRESSIONS["arithmetic"]
        with captured(expr, routed.router.name, engine=engine) as capture:
            # WHEN the filter cannot be expressed
            routed.send()
            capture.wait_rows(COUNT + 2)
            assert routed.counted() == COUNT + OTHERS
    # THEN the rows are the same, though more packets were flipped
    only_those_that_match(capture.rows, ["FORWARD"])
    assert capture.books["flipped"] == COUNT + OTHERS
    where = capture.books["filter"]
    if engine == "bpf":
        # AND the programs have refused each run of the others
        assert where == "in the kernel (bpf)"
        assert capture.books["refused"] >= OTHERS
        assert capture.books["calls"] == len(capture.rows) + capture.books["refused"]
    else:
        assert where.endswith("in the agent, on the reported headers")
    assert not any(level == "warn" for level, _ in capture.trace.notes), capture.trace.notes
    said = re.findall(r".*(?:bpf|tables|nft|TRACE|ipttrace).*", dmesg()[log:])
    assert not said


def test_programs_that_the_bpf_engine_runs_match_what_libpcap_matches() -> None:
    # GIVEN a kernel without xt_bpf, and packets of all kinds
    sending = packets(397)
    with no_xt_bpf():
        for expr in OTHERS_OF_NFT:
            program = pcap.compile(expr)
            matching = [one for one in sending if pcap.matches(program, one)]
            with CableNamespaces() as cable:
                # WHEN they are traced by BPF
                with captured(expr, cable.near, engine="bpf") as capture:
                    cable.send(sending)
                    capture.wait_rows(len(matching))
                # THEN exactly those have rows that libpcap matches
                assert Counter(row.len for row in capture.rows) == Counter(map(len, matching))
                assert capture.books["filter"] == "in the kernel (bpf)"
                assert capture.books["refused"] == capture.books["flipped"] - len(matching)
                assert capture.books["calls"] == capture.books["flipped"]
                assert capture.books["missed"] == 0


def test_beside_the_module_nftables_is_traced_with_such_a_filter_if_xt_bpf_runs_it(
    routed: Routed,
) -> None:
    expr = EXPRESSIONS["arithmetic"]
    # WHEN both engines trace packets that nftables cannot select
    with captured(expr, routed.router.name, engine="auto") as capture:
        routed.send()
        capture.wait_rows(COUNT + 2)
        assert routed.counted() == COUNT
    # THEN rows of nftables are there, of those that match
    assert capture.books["engine"] == "kernel+bpf"
    only_those_that_match([row for row in capture.rows if row.tables], ["FORWARD"])
    # WHEN the kernel has no xt_bpf THEN nothing is flipped, and a note says why
    with no_xt_bpf(), captured(expr, routed.router.name, engine="auto") as capture:
        routed.send()
        assert routed.counted() == 0
    assert capture.books["engine"] == "kernel"
    assert not capture.rows
    text = "nftables is not traced: nftables cannot express this filter, and xt_bpf cannot run it"
    assert any(note.startswith(text) for _, note in capture.trace.notes)
