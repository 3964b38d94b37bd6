# SPDX-License-Identifier: GPL-2.0-only
"""Calls that the kernel wrote in one piece come out as the records of the stream."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.kernel.calls import HITS, CALL_DTYPE, split
from ipttrace.stream import record


def wholes(*rules: int, first: int = 1) -> np.ndarray:
    """Calls first, first + 1, … with so many rules, each begun a µs after the one before."""
    found = np.zeros(len(rules), CALL_DTYPE)
    for at, (whole, count) in enumerate(zip(found, rules, strict=True)):
        call = first + at
        whole["entry"]["call"] = whole["exit"]["call"] = call
        whole["entry"]["time"] = 1000 * call
        whole["entry"]["table"] = f"table{call}".encode()
        whole["exit"]["rules"] = count
        # What is beyond a call's rules is of an earlier call.
        for seq in range(HITS):
            whole["hits"][seq] = (1000 * call + seq, 10 * call + seq, seq, 1, 0, f"C{seq}".encode())
    return found


def told(rules: np.ndarray) -> list[tuple[object, ...]]:
    return rules[["call", "seq", "rulenum", "table", "chain"]].tolist()


def expected(call: int, count: int) -> list[tuple[object, ...]]:
    return [
        (call, seq, 10 * call + seq, f"table{call}".encode(), f"C{seq}".encode())
        for seq in range(count)
    ]


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2), (4, 4), (0, 0), (0, 3, 1, 4), ()])
def test_each_call_gives_its_entry_its_exit_and_its_rules(counts: tuple[int, ...]) -> None:
    # GIVEN calls with as many rules as fit, or fewer
    # WHEN they are split
    entries, rules, exits = split([wholes(*counts)])
    # THEN the stream's records come out, in its layout
    assert (entries.dtype, rules.dtype, exits.dtype) == record.DTYPES
    calls = list(range(1, len(counts) + 1))
    assert entries["call"].tolist() == exits["call"].tolist() == calls
    assert told(rules) == [
        row for call, n in zip(calls, counts, strict=True) for row in expected(call, n)
    ]
    assert rules["time"].tolist() == [
        1000 * c + s for c, n in zip(calls, counts, strict=True) for s in range(n)
    ]
    assert (rules["match"] == 1).all()


@pytest.mark.parametrize("claimed", [5, 23, 0xFFFF])
def test_of_a_call_with_more_rules_only_the_first_came_with_it(claimed: int) -> None:
    _, rules, exits = split([wholes(claimed, 1)])
    assert told(rules) == expected(1, HITS) + expected(2, 1)
    assert exits["rules"].tolist() == [claimed, 1]


def test_calls_of_several_cpus_are_merged_by_the_time_they_began() -> None:
    # GIVEN stretches of two CPUs, and a call that ended after one that began later
    parts = [wholes(1, 2, first=7), wholes(3, 0, first=3)[::-1], wholes(1, first=5)]
    # WHEN they are split
    entries, rules, exits = split(parts)
    # THEN all is in order of time, and belongs together
    assert entries["call"].tolist() == exits["call"].tolist() == [3, 4, 5, 7, 8]
    assert exits["rules"].tolist() == [3, 0, 1, 1, 2]
    assert told(rules) == expected(3, 3) + expected(5, 1) + expected(7, 1) + expected(8, 2)


def test_ports_keep_their_byte_order() -> None:
    found = wholes(1, 1)
    found["entry"]["ct_orig_dport"] = 443
    entries, _, _ = split([found[:1], found[1:]])
    assert entries["ct_orig_dport"].tolist() == [443, 443]
    assert entries.tobytes()[: record.ENTRY_DTYPE.itemsize] == found[0]["entry"].tobytes()


def test_what_the_kernel_writes_afterwards_is_not_seen() -> None:
    found = wholes(2, 1)
    entries, rules, exits = split([found])
    found.view("u1")[:] = 0xFF
    assert entries["call"].tolist() == exits["call"].tolist() == [1, 2]
    assert told(rules) == expected(1, 2) + expected(2, 1)
