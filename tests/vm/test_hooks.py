# SPDX-License-Identifier: GPL-2.0-only
"""By ftrace or by kprobes, the rows are the same, and nothing stays attached."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.calls import HITS
from ipttrace.lab import traffic
from ipttrace.lab.network.ns import socket_in
from ipttrace.trace.row import Step
from tests.vm.bare import Bare
from tests.vm.conftest import captured, kprobes
from tests.vm.forked import fork, until
from tests.vm.plain import Plain

SWITCH = Path("/proc/sys/kernel/ftrace_enabled")
PROBES = Path("/sys/kernel/debug/kprobes/list")
OFF = r"sysctl kernel\.ftrace_enabled=1"
ARMINGS = 8
BY_FTRACE = tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 11)
PARAMETERS = ["", "ftrace=0"]
MANY = 22
RULES = (
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
    + "-A OUTPUT -p udp -m udp --dport 9\n" * MANY
    + "-A INPUT -p udp -m udp --dport 9 -j ACCEPT\nCOMMIT\n"
)
PATHS = [
    (("OUTPUT", MANY + 1, "policy"), MANY + 1),
    (("INPUT", 1, "rule"), 1),
]

needs_switch = pytest.mark.skipif(
    not SWITCH.exists(), reason="this kernel has no ftrace to turn off"
)


@pytest.fixture
def plain() -> Iterator[Plain]:
    """A namespace with a listener, in which a call hits many rules."""
    with Plain() as namespace, socket_in(namespace.name, socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 9))
        namespace.load(RULES, 4)
        yield namespace


@contextlib.contextmanager
def inserted(parameter: str) -> Iterator[None]:
    """The module inserted with this parameter; "": as a capture inserts it."""
    if parameter:
        subprocess.run(["insmod", str(kmod.find_or_build()), parameter], check=True)
    try:
        yield
    finally:
        kmod.remove(30.0)


def attached(*names: str) -> list[str]:
    """The functions to which ftrace is attached, also on behalf of kprobes; the hooked ones."""
    text = Path("/sys/kernel/debug/tracing/enabled_functions").read_text()
    names = names or ("ipt_do_table", "ip6t_do_table", "nf_log_trace")
    return [line for line in text.splitlines() if line.split()[0] in names]


def send_and_compare(plain: Plain, by_ftrace: bool) -> None:
    """Sends 23 packets; each of their calls must have a row with all of its rules."""
    with captured("udp dst port 9", netns=plain.name) as capture:
        assert len(attached()) == 3, attached()
        probed = [line for line in kprobes() if " xt_re" not in line]
        assert traffic.udp(plain.name, "127.0.0.1", 9, 23).sent == 23
        capture.wait_rows(46)
    # Log lines are silenced a little longer.
    assert until(lambda: not attached(), 10.0), attached()
    assert {"DISABLED" in line for line in probed} == {by_ftrace}, probed
    assert capture.books["missed"] == 0
    for last, length in PATHS:
        paths = [row.path for row in capture.rows if row.path[-1] == Step(*last)]
        assert len(paths) == 23
        assert {len(path) for path in paths} == {length}
        # In order, although some rules crossed with the call and others before it.
        assert all([step.rulenum for step in path] == list(range(1, length + 1)) for path in paths)
    assert len(capture.rows) == 46


def test_a_call_of_many_rules_has_all_of_them(plain: Plain) -> None:
    assert MANY > HITS
    send_and_compare(plain, by_ftrace=BY_FTRACE)


def test_with_ftrace_off_by_parameter_kprobes_give_the_same_rows(plain: Plain) -> None:
    with inserted("ftrace=0"):
        send_and_compare(plain, by_ftrace=False)


def test_each_rule_that_found_no_room_is_counted(plain: Plain) -> None:
    # GIVEN the smallest buffers, and a reader that stops
    with captured(netns=plain.name, buffer=64 << 10) as capture:
        capture.paused.clear()
        # WHEN more rules are hit than they can hold
        traffic.flood(plain.name, "127.0.0.1", 9, count=499)
        capture.paused.set()
    # THEN some calls and some rules were lost (`captured` checks that it adds up)
    books, counted = capture.books, plain.counters(4)
    entries, rules, exits = books["lost"]
    assert entries == exits > 0
    assert rules > entries * HITS
    # AND as much was due as iptables counted
    assert books["due"][1] == sum(packets for packets, _ in counted.values())


@needs_switch
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_if_ftrace_is_turned_off_the_error_names_the_sysctl(plain: Plain, parameter: str) -> None:
    with inserted(parameter):
        SWITCH.write_text("0\n")
        try:
            with pytest.raises(CaptureError, match=OFF):
                captured(netns=plain.name).__enter__()
        finally:
            SWITCH.write_text("1\n")
        assert not kprobes()


@needs_switch
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_ftrace_cannot_be_turned_off_during_a_capture(plain: Plain, parameter: str) -> None:
    with inserted(parameter):
        with captured("udp dst port 9", netns=plain.name) as capture:
            # WHEN somebody tries, THEN the kernel refuses, and all packets are seen
            with pytest.raises(OSError, match="busy"):
                SWITCH.write_text("0\n")
            assert traffic.udp(plain.name, "127.0.0.1", 9, 23).sent == 23
            capture.wait_rows(46)
        assert len(capture.rows) == 46
        # AND afterwards it is as free as before
        assert until(lambda: not attached("hold_site"), 10.0)
        SWITCH.write_text("0\n")
        SWITCH.write_text("1\n")


@needs_switch
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_whenever_ftrace_can_be_turned_off_no_probe_is_registered(parameter: str) -> None:
    # GIVEN somebody who turns it off and on all the time, and looks for probes in between
    with Bare() as bare, turning_off() as tried:
        bare.reinsert(parameter or "ftrace=1", "drain_ms=0")
        armed = 0
        refusals = []

        def arm() -> bool:
            nonlocal armed
            try:
                bare.control.arm(bare.pins)
            except CaptureError as error:
                refusals.append(str(error))
            else:
                armed += 1
                bare.control.disarm()
            return armed >= ARMINGS and min(tried[:2]) > 0

        # WHEN it is armed and disarmed again and again
        assert until(arm)
        assert all(re.search(OFF, text) for text in refusals)
        # THEN he was refused at times, and else there was no probe
        refused, done, found = tried[:3]
        assert not found, f"{found} of {done} times ({refused} were refused)"


@contextlib.contextmanager
def turning_off() -> Iterator[memoryview]:
    """How often a child was refused, how often not, and how often it then found a probe."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    tried = memoryview(shared).cast("Q")

    def run() -> None:
        while True:
            try:
                SWITCH.write_text("0\n")
            except OSError:
                tried[0] += 1
                continue
            tried[1] += 1
            tried[2] += bool(kprobes()) or "trace_tg" in PROBES.read_text()
            SWITCH.write_text("1\n")
            time.sleep(0.005)

    pid = fork(run)
    try:
        yield tried
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        SWITCH.write_text("1\n")
