# SPDX-License-Identifier: GPL-2.0-only
"""With the module and BPF programs, a packet's first call begins its journey, whichever it is."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.bpf.runs import CARRIED, COPIED, FLIP_DTYPE, FLIPPED, FREED
from ipttrace.capture.combined_bpf import FirstCalls
from ipttrace.stream.record import ENTRY_DTYPE, F_FIRST, F_FOLLOWED
from tests.data.records import Array

SKB = 0x1000
ALL = 1 << 63


def entries(*times: int, flags: int = F_FOLLOWED, skb: int = SKB) -> Array:
    found = np.zeros(len(times), ENTRY_DTYPE)
    found["time"], found["skb"], found["flags"] = times, skb, flags
    return found


def flips(*times: int, skb: int = SKB, what: int = FLIPPED, original: int = 0) -> Array:
    found = np.zeros(len(times), FLIP_DTYPE)
    found["time"], found["skb"], found["what"], found["original"] = times, skb, what, original
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


def test_a_carried_packet_goes_on_although_the_module_flips_it_again() -> None:
    # GIVEN a packet that goes to another namespace, and is freed there without another call
    seen = np.concatenate([flips(10), flips(30, what=CARRIED), flips(50, what=CARRIED)])
    seen = np.concatenate([seen, flips(60, what=FREED)])
    # AND the next one at its address, which the module flips
    kernel = entries(20, 40, 70, flags=F_FIRST)
    FirstCalls().mark(kernel, entries(), seen, ALL)
    # THEN both are whole
    assert firsts(kernel) == [20, 70]
    assert kernel["flags"].tolist() == [F_FIRST, F_FOLLOWED, F_FIRST]


def test_a_copy_begins_a_journey_that_names_its_original() -> None:
    # GIVEN a packet whose copy is made between two of its calls, in one portion or in two
    copy = flips(30, skb=0x2000, what=COPIED, original=SKB)
    for between in (ALL, 35):
        calls = FirstCalls()
        kernel, chains = entries(20), entries(25, 40)
        mine, theirs = entries(45, skb=0x2000), entries(50, 60, skb=0x2000)
        for number, each in enumerate((kernel, chains, mine, theirs), 1):
            each["call"] = 10 * number + np.arange(len(each))
        theirs["depth"], theirs["parent"] = [0, 1], [0, 5]
        if between == ALL:
            both = np.concatenate([kernel, mine]), np.concatenate([chains, theirs])
            calls.mark(*both, np.concatenate([flips(10), copy]), ALL)
            kernel, mine = both[0][:1], both[0][1:]
            chains, theirs = both[1][:2], both[1][2:]
        else:
            calls.mark(kernel, chains[:1], np.concatenate([flips(10), copy]), between)
            rest = np.concatenate([chains[1:], theirs])
            calls.mark(mine, rest, flips(), ALL)
            theirs = rest[1:]
        assert firsts(kernel) == [20]
        assert (firsts(mine), firsts(theirs)) == ([45], [])
        # THEN its calls have the original's last one as their parent, unless one is around them
        assert mine["parent"].tolist() == [20]
        assert theirs["parent"].tolist() == [20, 5]
        assert not kernel["parent"].any()


@pytest.mark.parametrize("portions", [1, 2])
def test_a_copy_that_meets_no_table_gives_its_original_to_nobody(portions: int) -> None:
    # GIVEN a copy that is freed at once, as that which asks for a neighbour
    other = 0x2000
    chains = entries(20)
    chains["call"] = 7
    seen = np.concatenate(
        [
            flips(10),
            flips(30, skb=other, what=COPIED, original=SKB),
            flips(40, skb=other, what=FREED),
        ]
    )
    # WHEN another packet at its address, which the module flips, meets a table
    kernel = entries(50, flags=F_FIRST, skb=other)
    calls = FirstCalls()
    if portions == 2:
        calls.mark(entries(), chains, seen, 45)
        calls.mark(kernel, entries(), flips(), ALL)
    else:
        calls.mark(kernel, chains, seen, ALL)
    # THEN it is no copy
    assert (firsts(kernel), kernel["parent"].tolist()) == ([50], [0])


def test_what_is_remembered_has_a_bound() -> None:
    calls = FirstCalls()
    for begin in range(0, 1 << 18, 1 << 16):
        some = entries(*range(1 << 16))
        some["skb"] = np.arange(begin, begin + (1 << 16))
        calls.mark(some, entries(), flips(), ALL)
    assert len(calls._last) == 1 << 16
