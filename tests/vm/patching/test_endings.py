# SPDX-License-Identifier: GPL-2.0-only
"""However a run ends during a flood, the kernel is as before, also after many rounds."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.kernel.programs import PINS
from ipttrace.stream.frames import Kind
from tests.vm.bare import Bare, references
from tests.vm.conftest import SHARED, kprobes
from tests.vm.forked import Agent, flooding, until
from tests.vm.plain import Plain, raw_and_filter

pytestmark = SHARED

# Of arming and disarming.  Fewer on the second kernel of the whole run, for its time.
ROUNDS = 60 if os.uname().release.startswith("6.12.") else 200
NAME = slice(64, 80)  # linux/bpf.h: bpf_prog_info.name
CLEANED = "cleaned up after a run that was killed"
RULES = raw_and_filter(
    "-A OUTPUT -p udp -m udp --dport 9 -m statistic --mode nth --every 3 --packet 0 -j REJECT"
)


@pytest.fixture(scope="module")
def flood() -> Iterator[str]:
    """A namespace with a flood: nested calls, answers, drops."""
    with Plain() as plain:
        plain.load(RULES, 4)
        with flooding(plain.name):
            yield plain.name


def module_is_loaded() -> bool:
    return Path("/sys/module/ipttrace").exists()


def programs() -> int:
    """How many of our BPF programs are loaded, pinned or not."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    number, count = ctypes.c_uint32(0), 0
    while lib.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        fd = lib.bpf_prog_get_fd_by_id(number)
        if fd < 0:
            continue  # unloaded meanwhile
        info, size = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
        assert lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0
        os.close(fd)
        count += info.raw[NAME].startswith(b"ipttrace")
    return count


def test_a_killed_agent_leaves_nothing_armed_and_the_next_start_cleans_up(flood: str) -> None:
    for turn in range(10):
        # GIVEN an agent during a flood
        with Agent() as agent:
            agent.wait_for(Kind.EXIT)
            assert kprobes()
            # THEN it notes that it has cleaned up, if one was killed before
            assert (CLEANED in agent.notes()) == (turn > 0), agent.notes()
            # WHEN it is killed
            agent.signal(signal.SIGKILL)
            assert agent.wait() == -signal.SIGKILL
        # THEN no probe is left soon afterwards
        assert until(lambda: not kprobes()), kprobes()
    # AND the module is left disarmed, and removed by the next run
    assert module_is_loaded()
    assert references() == 0
    with Agent() as agent:
        agent.wait_for(Kind.EXIT)
        agent.send(b'{"cmd":"stop"}')
        agent.drain()
        assert agent.wait() == 0
        assert agent.stderr == ""
    assert not module_is_loaded()
    assert not PINS.exists()
    assert until(lambda: programs() == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_agent_writes_its_last_books_after_a_signal(flood: str, number: int) -> None:
    # GIVEN an agent during a flood
    with Agent() as agent:
        agent.wait_for(Kind.EXIT)
        # WHEN it gets the signal
        agent.signal(number)
        # THEN its stream ends in order, with books that balance
        agent.drain()
        end = agent.frames[-1]
        assert end.kind == Kind.END
        books = end.json
        assert books["reason"] == signal.Signals(number).name
        parts = sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
        assert sum(books["due"]) == parts
        assert agent.wait() == (130 if number == signal.SIGINT else 0)
        assert agent.stderr == ""


def test_many_rounds_of_arming_leave_nothing_behind(flood: str) -> None:
    # GIVEN filters that match the flood, part of it, and nothing
    filters = [pcapfilter.compile(expr) for expr in ("udp port 9", "icmp", "tcp port 1", "")]
    calls = depth = 0
    before = (0, 0)
    with Bare() as bare:
        assert programs() == 2
        # WHEN it is armed and disarmed under traffic, in all possible ways
        for turn in range(ROUNDS):
            if turn == 20:
                before = held()
            control = bare.control
            control.arm(bare.pins, filters[turn % 4], maxactive=1 + turn % 3 * 20)
            assert references() == 1
            if turn % 3 == 0:
                control.filter(filters[(turn + 1) % 4])
                control.filter(filters[(turn + 2) % 4])
            status = control.status()
            assert (status.state, status.owner_pid) == ("armed", os.getpid())
            calls += status.calls
            depth = max(depth, status.depth)
            if turn % 10 == 9:
                # Closing the socket disarms, and rmmod does not wait for the draining.
                bare.reinsert()
            elif turn % 5 == 1:
                bare.reopen()
            else:
                control.disarm()
                assert control.status().state in ("draining", "idle")
            # A socket that is closed does not wait for the end of the tracing.
            assert until(lambda: references() == 0)
        # THEN there was traffic, with nested calls
        assert calls > ROUNDS
        assert depth > 1
        # AND the kernel uses no more memory for us than after the first rounds
        assert until(lambda: held() <= before), (before, held())
    assert until(lambda: programs() == 0)


def held() -> tuple[int, int]:
    """Areas of vmalloc: those of BPF programs, and those of the module."""
    lines = Path("/proc/vmallocinfo").read_text().splitlines()
    return (
        sum("bpf_prog" in line for line in lines),
        sum("ipttrace" in line for line in lines),
    )
