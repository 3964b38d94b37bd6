# SPDX-License-Identifier: GPL-2.0-only
"""With the module and BPF programs, a packet's first call begins its journey, whichever it is."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.bpf.runs import FLIP_DTYPE
from ipttrace.capture.combined_bpf import FirstCalls
from ipttrace.stream.record import ENTRY_DTYPE, F_FIRST, F_FOLLOWED
from tests.data.records import Array

SKB = 0x1000
ALL = 1 << 63


def entries(*times: int, flags: int = F_FOLLOWED, skb: int = SKB) -> Array:
    found = np.zeros(len(times), ENTRY_DTYPE)
    found["time"], found["skb"], found["flags"] = times, skb, flags
    return found


def flips(*times: int, skb: int = SKB) -> Array:
    found = np.zeros(len(times), FLIP_DTYPE)
    found["time"], found["skb"] = times, skb
    return found


def firsts(of: Array) -> list[int]:
    """The times of entries that begin a journey."""
    times: list[int] = of["time"][of["flags"] & F_FIRST != 0].tolist()
    return times


def test_the_first_call_after_the_flip_begins_the_journey() -> None:
    # GIVEN two packets, one after the other at one address: the first comes to a legacy table
    # before it comes to a chain, the second after it
    kernel = entries(20, 30, 70)
    bpf = entries(25, flags=F_FIRST), entries(65, flags=F_FIRST)
    chains = np.concatenate(bpf)
    FirstCalls().mark(kernel, chains, flips(10, 60), ALL)
    assert firsts(kernel) == [20]
    assert firsts(chains) == [65]


def test_a_packet_whose_calls_come_in_two_portions_is_one_journey() -> None:
    # GIVEN a flip and a call of the module, and the first chain in the next portion
    calls = FirstCalls()
    kernel, chains = entries(20), entries(40, flags=F_FIRST)
    calls.mark(kernel, chains[:0], flips(10), 30)
    calls.mark(kernel[:0], chains, flips(), ALL)
    assert firsts(kernel) == [20]
    assert firsts(chains) == []
    # AND a flip that came early waits for its own calls
    later = entries(60)
    calls.mark(entries(), entries(50), flips(55), 52)
    calls.mark(later, entries(), flips(), ALL)
    assert firsts(later) == [60]


@pytest.mark.parametrize("count", [0, 1])
def test_a_packet_that_another_program_traces_begins_where_the_engine_says(count: int) -> None:
    # GIVEN a run of a packet without a flip, behind calls of the module or not
    kernel, chains = entries(*range(count)), entries(10, flags=F_FIRST)
    FirstCalls().mark(kernel, chains, flips(), ALL)
    assert firsts(chains) == [10] * (not count)


def test_a_call_that_the_module_knows_to_be_the_first_remains_so() -> None:
    kernel = entries(20, flags=F_FIRST)
    FirstCalls().mark(kernel, entries(), flips(), ALL)
    assert firsts(kernel) == [20]


def test_what_is_remembered_has_a_bound() -> None:
    calls = FirstCalls()
    for begin in range(0, 1 << 18, 1 << 16):
        some = entries(*range(1 << 16))
        some["skb"] = np.arange(begin, begin + (1 << 16))
        calls.mark(some, entries(), flips(), ALL)
    assert len(calls._last) == 1 << 16
