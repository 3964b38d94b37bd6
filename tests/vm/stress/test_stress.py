# SPDX-License-Identifier: GPL-2.0-only
"""Armed, filtered, disarmed, killed and unloaded while everything else changes too.

What counts is that the kernel has no complaint: conftest looks into its log after each test,
and asks lockdep and kmemleak at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ipttrace.capture.filter import pcap
from ipttrace.capture.kernel.control import Control
from ipttrace.lab.network.ns import call_in
from tests.vm.bare import Bare, references
from tests.vm.conftest import captured, kprobes
from tests.vm.forked import Agent, fork, until
from tests.vm.plain import Plain
from tests.vm.stress.storm import (
    CPU,
    meanwhile,
    replace_namespaces,
    replace_rules,
    set_online,
    storm,
)

SECONDS = float(os.environ.get("STRESS_SECONDS", "20"))
"""How long each test goes on."""

FILTERS = [pcap.compile(expr) for expr in ("udp port 9", "icmp", "tcp", "")]
MAXACTIVE = (None, 1, 20)


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    with storm() as plain:
        yield plain


def turns(bare: Bare, between: Callable[[int], object] = lambda turn: None) -> tuple[int, int]:
    """Arms in every way and ends it in every way, for a while; returns armings and calls."""
    calls = 0
    deadline = time.monotonic() + SECONDS
    for turn in itertools.count():
        bare.control.arm(bare.pins, FILTERS[turn % 4], None, MAXACTIVE[turn % 3])
        for other in range(3):
            bare.control.filter(FILTERS[(turn + other) % 4])
        between(turn)
        before = time.monotonic()
        while not (status := bare.control.status()).calls and time.monotonic() - before < 1:
            time.sleep(0.02)
        calls += status.calls
        if turn % 4 == 3:
            bare.reinsert()
        elif turn % 4 == 1:
            bare.reopen()
        else:
            bare.control.disarm()
        if time.monotonic() > deadline:
            return turn + 1, calls
    raise AssertionError


def test_arming_in_every_way_under_every_kind_of_call(plain: Plain) -> None:
    with Bare() as bare:
        armings, calls = turns(bare)
    assert armings > 1
    assert calls > 0


def test_arming_while_rules_are_replaced(plain: Plain) -> None:
    with meanwhile(partial(replace_rules, plain)), Bare() as bare:
        _, calls = turns(bare)
    assert calls > 0


def test_arming_while_namespaces_come_and_go(plain: Plain) -> None:
    with meanwhile(replace_namespaces), Bare() as bare:
        _, calls = turns(bare)
    assert calls > 0
    # The one that was alive when its process was killed
    for brief in Path("/run/netns").glob("ipt-brief*"):
        with contextlib.suppress(OSError):
            Plain(brief.name).__exit__()


@pytest.mark.skipif(not os.path.exists(CPU), reason="this guest has one CPU, or cannot stop it")
def test_arming_while_a_cpu_goes_off_and_on(plain: Plain) -> None:
    try:
        with Bare() as bare:
            _, calls = turns(bare, lambda turn: set_online(bool(turn % 2)))
    finally:
        set_online(True)
    assert calls > 0


def test_records_of_every_kind_of_call_balance(plain: Plain) -> None:
    # WHEN all of it is read, while rules change and a namespace's packets are filtered
    with meanwhile(partial(replace_rules, plain)), captured() as capture:
        capture.wait_rows(500)
    # THEN nothing is missing (captured() checks the books), and calls were nested
    assert {row.table for row in capture.rows} == {"raw", "mangle", "nat", "filter"}
    assert capture.books["depth"] > 1


def test_agents_killed_while_they_trace_leave_nothing_armed(plain: Plain) -> None:
    for _ in range(4):
        with Agent() as agent:
            agent.wait_for_hello()
            agent.signal(9)
            agent.wait()
        assert until(lambda: not kprobes())
    # An ordinary run cleans up what they left.
    with captured() as capture:
        capture.wait_rows(1)


def test_an_owner_killed_in_a_deleted_namespace_disarms(plain: Plain) -> None:
    with Bare() as bare:
        bare.control.close()
        for program in FILTERS:
            read, write = os.pipe()
            with Plain("ipt-owner") as own:
                name = own.name

                def owner(program: bytes = program, name: str = name, write: int = write) -> int:
                    def arm() -> None:
                        control = Control()
                        control.arm(bare.pins, program)
                        os.write(write, b"x")
                        time.sleep(1000)

                    call_in(name, arm)
                    return 0

                pid = fork(owner)
                os.close(write)
                assert os.read(read, 1) == b"x"
                os.close(read)
            # The namespace has no name any more, but the owner is still in it.
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            bare.control = Control()
            assert until(lambda: bare.control.status().state == "idle")
            bare.control.close()
        bare.control = Control()
        assert references() == 0
        assert not kprobes()
