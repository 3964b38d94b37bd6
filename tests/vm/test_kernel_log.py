# SPDX-License-Identifier: GPL-2.0-only
"""What ipttrace does never appears as TRACE lines, and what others trace always does."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.lab.network.ns import socket_in
from tests.vm.bare import Bare
from tests.vm.conftest import SHARED, captured
from tests.vm.forked import flooding, until
from tests.vm.logged import Log, deliver, delivering, logged, set_logger
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain, raw_and_filter

pytestmark = SHARED

FEW = 23
MANY = 64
THEIRS, OURS = 7001, 7002
# Both flows pass raw OUTPUT and PREROUTING, filter OUTPUT and INPUT.
RULES = f"""\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp -m udp --dport {THEIRS} -j TRACE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport {THEIRS}
-A INPUT -p udp -m udp --dport {OURS}
COMMIT
"""
LINES = 5  # four policies and the rule in INPUT
NETLINK_NETFILTER = 12


@pytest.fixture
def plain() -> Iterator[Plain]:
    with logged() as one:
        yield one


def test_swapping_filters_during_a_flood_logs_nothing(plain: Plain) -> None:
    # GIVEN a flood, of which every third packet is rejected by a rule
    plain.load(
        raw_and_filter(
            "-A OUTPUT -p udp -m udp --dport 9 -m statistic --mode nth --every 3 --packet 0"
            " -j REJECT"
        ),
        4,
    )
    other = pcapfilter.compile("tcp port 1")
    log = Log()
    with Bare() as bare:
        bare.control.arm(bare.pins)
        with flooding(plain.name):
            for turn in range(60):
                # WHEN filters are set and removed while its packets are under way
                before = bare.control.status().calls
                bare.control.filter(b"" if turn % 2 else other)
                assert until(lambda before=before: bare.control.status().calls > before + 50)  # type: ignore[misc]
            assert bare.control.status().silenced > 500
        bare.control.disarm()
        assert until(lambda: bare.control.status().state == "idle")
    # THEN no line is in the kernel's log
    assert log.lines() == []


def test_a_packet_that_is_on_its_way_when_a_filter_is_set_is_not_logged(plain: Plain) -> None:
    # GIVEN another user's TRACE rule, which has been at work, and a device that delays packets
    plain.load(RULES, 4)
    plain.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "100ms")
    other = pcapfilter.compile("tcp port 1")
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    proved = 0
    with (
        Bare() as bare,
        socket_in(plain.name, *kind) as sender,
        socket_in(plain.name, *kind) as listener,
    ):
        listener.bind(("127.0.0.1", OURS))
        listener.settimeout(PATIENCE)
        bare.control.arm(bare.pins, other)
        deliver(plain, [THEIRS])
        for _ in range(FEW):
            # WHEN one is sent without a filter, and one is set before it arrives
            bare.control.filter(b"")
            log = Log()
            sender.sendto(b"x", ("127.0.0.1", OURS))
            begun = time.monotonic()
            bare.control.filter(other)
            too_early = select.select([listener], [], [], 0)[0]
            assert listener.recv(10)
            # A guest that stalls proves nothing: such lines are silenced for 250 ms.
            if too_early or time.monotonic() - begun > 0.2:
                continue
            # THEN what it meets further on is not in the kernel's log
            assert log.lines() == []
            proved += 1
        bare.control.disarm()
    assert proved


def test_fragments_of_a_traced_datagram_are_not_logged(plain: Plain) -> None:
    # GIVEN a filter that matches datagrams, but not the fragments that the kernel makes of them
    plain.load(raw_and_filter(""), 4)
    plain.run("ip", "link", "set", "lo", "mtu", "1500")
    log = Log()
    with captured(f"udp dst port {OURS}", netns=plain.name) as capture:
        deliver(plain, [OURS] * FEW, payload=b"x" * 4001)
        capture.wait_rows(2 * FEW)
    # THEN none of their rules is logged
    assert log.lines() == []
    assert capture.books["silenced"] > sum(len(row.path) for row in capture.rows)


def test_copies_that_a_rule_makes_after_nat_are_not_logged(plain: Plain) -> None:
    # GIVEN packets that are redirected, so that the filter does not match copies of them
    plain.load(
        f"""\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -p udp -m udp --dport 77 -j DNAT --to-destination 127.0.0.1:{OURS}
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -p udp -m udp --dport {OURS} -j TEE --gateway 127.0.0.1
COMMIT
""",
        4,
    )
    log = Log()
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with (
        socket_in(plain.name, *kind) as sender,
        socket_in(plain.name, *kind) as listener,
        captured("udp dst port 77", netns=plain.name) as capture,
    ):
        listener.bind(("127.0.0.1", OURS))
        listener.settimeout(PATIENCE)
        for _ in range(FEW):
            sender.sendto(b"x", ("127.0.0.1", 77))
            # The copy may be dropped on its way.
            assert listener.recv(100)
        capture.wait_rows(4 * FEW)
    assert plain.counters(4)["mangle", "POSTROUTING", 1][0] >= FEW
    assert log.lines() == []


def test_each_packet_of_anothers_trace_rule_is_logged(plain: Plain) -> None:
    # GIVEN a TRACE rule of another user
    plain.load(RULES, 4)
    log = Log()
    sent = 0
    with Bare() as bare, delivering(plain, OURS, THEIRS) as send:
        for _ in range(5):
            # WHEN other packets are traced among those, in the same memory
            bare.control.arm(bare.pins, pcapfilter.compile(f"udp dst port {OURS}"))
            send([OURS, THEIRS] * FEW)
            send([OURS] * MANY, at_once=MANY)
            assert bare.control.status().matched == 4 * (FEW + MANY)
            # AND after that, when late lines are still silenced, in the memory of the last
            bare.control.disarm()
            send([THEIRS] * FEW)
            sent += 2 * FEW
    # THEN every line of theirs is in the kernel's log, and none of ours
    assert log.by_port() == {THEIRS: LINES * sent}
    assert plain.counters(4)["raw", "OUTPUT", 1][0] == sent


def test_a_trace_rule_that_is_added_during_a_capture_logs_each_packet(plain: Plain) -> None:
    # GIVEN a capture that began when nobody had a TRACE rule, nor the module for it
    plain.load(raw_and_filter(""), 4)
    until(lambda: subprocess.run(["rmmod", "xt_TRACE"], stderr=subprocess.DEVNULL).returncode == 1)
    log = Log()
    with captured(f"udp dst port {OURS}", netns=plain.name) as capture:
        deliver(plain, [OURS, THEIRS] * FEW)
        assert log.lines() == []
        # WHEN one is added
        plain.load(RULES, 4)
        deliver(plain, [OURS, THEIRS] * FEW)
        capture.wait_rows(8 * FEW)
    # THEN it logs as ever
    assert log.by_port() == {THEIRS: LINES * FEW}
    assert Counter(row.dport for row in capture.rows) == {OURS: 8 * FEW}


def test_a_trace_rule_logs_each_packet_although_kprobes_are_switched_off(plain: Plain) -> None:
    # GIVEN a capture that began when nobody had a TRACE rule
    switch = Path("/sys/kernel/debug/kprobes/enabled")
    plain.load(raw_and_filter(""), 4)
    log = Log()
    with Bare() as bare:
        bare.control.arm(bare.pins, pcapfilter.compile(f"udp dst port {OURS}"))
        try:
            # WHEN somebody switches kprobes off, by which TRACE would be seen, and adds one
            switch.write_text("0")
            plain.load(RULES, 4)
            deliver(plain, [OURS, THEIRS] * FEW)
        finally:
            switch.write_text("1")
        bare.control.disarm()
    # THEN it logs as ever
    assert log.by_port() == {THEIRS: LINES * FEW}


def test_a_logger_bound_to_no_family_hears_nothing(plain: Plain) -> None:
    # GIVEN nfnetlink_log bound to NFPROTO_UNSPEC, and a program that receives what it logs
    subprocess.run(["modprobe", "nfnetlink_log"], check=True)
    plain.load(RULES, 4)
    set_logger(plain, 0, "nfnetlink_log")
    with socket_in(plain.name, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        _configure(sock, 1, b"\x01")  # NFULA_CFG_CMD: bind
        _configure(sock, 2, struct.pack("!IBx", 96, 2))  # NFULA_CFG_MODE: copy packets
        _configure(sock, 5, struct.pack("!I", 1))  # NFULA_CFG_QTHRESH: at once
        # WHEN everything is traced
        with captured(netns=plain.name) as capture:
            deliver(plain, [OURS] * FEW)
            capture.wait_rows(4 * FEW)
        # THEN it has received nothing
        assert capture.books["silenced"] == 5 * FEW
        assert not select.select([sock], [], [], 0)[0], sock.recv(1 << 16)


def _configure(sock: socket.socket, kind: int, value: bytes) -> None:
    """One setting of the nfnetlink_log group 0 (linux/netfilter/nfnetlink_log.h)."""
    attribute = struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    body = struct.pack("!BBH", 0, 0, 0) + attribute
    # NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG; NLM_F_REQUEST | NLM_F_ACK
    sock.send(struct.pack("=IHHII", 16 + len(body), 4 << 8 | 1, 5, 1, 0) + body)
    assert struct.unpack_from("=i", sock.recv(4096), 16)[0] == 0
