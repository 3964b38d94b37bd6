# SPDX-License-Identifier: GPL-2.0-only
"""A CPU that goes off and on again, as in a suspend, is traced as before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from tests.vm.conftest import Capture, captured
from tests.vm.plain import LOOPBACK, Plain, listening, raw_and_filter

RULES = raw_and_filter("-A INPUT -p udp -m udp --dport 9 -j ACCEPT")
CALLS = 4  # of a datagram: raw OUTPUT and PREROUTING, filter OUTPUT and INPUT
ONLINE = Path("/sys/devices/system/cpu/cpu1/online")

pytestmark = pytest.mark.skipif(
    not ONLINE.exists(), reason="this guest has one CPU, or cannot stop it"
)


@pytest.fixture
def plain() -> Iterator[Plain]:
    with listening(RULES) as namespace:
        yield namespace


@pytest.fixture(autouse=True)
def _cpu_comes_back() -> Iterator[None]:
    yield
    ONLINE.write_text("1")


def send_from_cpu_1(plain: Plain, count: int) -> None:
    """Datagrams whose calls all run on CPU 1, one after the other."""
    before = os.sched_getaffinity(0)
    # The thread that sends inherits it.
    os.sched_setaffinity(0, {1})
    try:
        for _ in range(count):
            assert traffic.udp(plain.name, LOOPBACK[4], 9, 1).sent == 1
    finally:
        os.sched_setaffinity(0, before)


def noted(capture: Capture, text: str) -> Callable[[], bool]:
    return lambda: any(text in note for _, note in capture.trace.notes)


def test_a_cpu_that_was_off_is_traced_again(plain: Plain) -> None:
    with captured(netns=plain.name) as capture:
        # GIVEN rows of CPU 1, which are read even though it then goes off
        send_from_cpu_1(plain, 7)
        ONLINE.write_text("0")
        assert capture.wait_until(noted(capture, "CPU 1 went offline"))
        capture.wait_rows(CALLS * 7)
        # WHEN it is on again
        ONLINE.write_text("1")
        assert capture.wait_until(noted(capture, "CPU 1 is online"))
        send_from_cpu_1(plain, 23)
        # THEN its calls have rows as before (captured() checks that the books balance)
        capture.wait_rows(CALLS * 30)
    assert len([row for row in capture.rows if row.cpu == 1]) == CALLS * 30
    assert capture.books["lost"] == [0, 0, 0]


def test_a_cpu_that_was_off_at_the_start_is_traced_once_it_is_on(plain: Plain) -> None:
    # GIVEN a capture that began without CPU 1
    ONLINE.write_text("0")
    with captured(netns=plain.name) as capture:
        # WHEN it comes on
        ONLINE.write_text("1")
        assert capture.wait_until(noted(capture, "CPU 1 is online"))
        send_from_cpu_1(plain, 23)
        # THEN its calls have rows
        capture.wait_rows(CALLS * 23)
    assert len([row for row in capture.rows if row.cpu == 1]) == CALLS * 23


def test_what_a_cpu_loses_until_its_buffer_is_open_is_counted(plain: Plain) -> None:
    with captured(netns=plain.name) as capture:
        # GIVEN an agent that cannot go on, while CPU 1 goes off and on and sends
        capture.paused.clear()
        send_from_cpu_1(plain, 1)
        ONLINE.write_text("0")
        ONLINE.write_text("1")
        send_from_cpu_1(plain, 23)
        # WHEN it goes on
        capture.paused.set()
        assert capture.wait_until(noted(capture, "CPU 1 is online"))
        send_from_cpu_1(plain, 5)
        capture.wait_rows(CALLS * 6)
    # THEN what it lost is in the books, and later calls have rows
    lost = capture.books["lost"]
    rows = [row for row in capture.rows if row.cpu == 1]
    assert len(rows) + lost[2] == CALLS * 29
    assert len(rows) >= CALLS * 6
    assert capture.books["due"][0] == CALLS * 29
