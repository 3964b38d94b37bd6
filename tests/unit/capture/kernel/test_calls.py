# SPDX-License-Identifier: GPL-2.0-only
"""Calls that the kernel wrote in one piece are split into the records of the stream."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.kernel.calls import CALL_DTYPE, HITS, split
from ipttrace.stream import record


def finished(*rules: int, first: int = 1) -> np.ndarray:
    """Calls `first`, `first` + 1, … with so many rules each, 1 µs apart."""
    found = np.zeros(len(rules), CALL_DTYPE)
    for at, (one, count) in enumerate(zip(found, rules, strict=True)):
        call = first + at
        one["entry"]["call"] = one["exit"]["call"] = call
        one["entry"]["time"] = 1000 * call
        one["entry"]["table"] = f"table{call}".encode()
        one["exit"]["rules"] = count
        # Beyond a call's own rules there is memory of earlier calls.
        for seq in range(HITS):
            one["hits"][seq] = (1000 * call + seq, 10 * call + seq, seq, 1, 0, f"C{seq}".encode())
    return found


def rows(rules: np.ndarray) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]]
    found = rules[["call", "seq", "rulenum", "table", "chain"]].tolist()
    return found


def expected(call: int, count: int) -> list[tuple[object, ...]]:
    return [
        (call, seq, 10 * call + seq, f"table{call}".encode(), f"C{seq}".encode())
        for seq in range(count)
    ]


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2), (4, 4), (0, 0), (0, 3, 1, 4), ()])
def test_each_call_yields_its_entry_its_exit_and_its_rules(counts: tuple[int, ...]) -> None:
    # GIVEN calls whose rules all crossed with them
    # WHEN they are split
    entries, rules, exits = split([finished(*counts)])
    # THEN the result is the stream's records, in its layout
    assert (entries.dtype, rules.dtype, exits.dtype) == record.DTYPES
    calls = list(range(1, len(counts) + 1))
    assert entries["call"].tolist() == exits["call"].tolist() == calls
    assert rows(rules) == [
        row for call, n in zip(calls, counts, strict=True) for row in expected(call, n)
    ]
    assert rules["time"].tolist() == [
        1000 * c + s for c, n in zip(calls, counts, strict=True) for s in range(n)
    ]
    assert (rules["match"] == 1).all()


@pytest.mark.parametrize("claimed", [5, 23, 0xFFFF])
def test_a_call_with_more_rules_yields_only_those_that_crossed_with_it(claimed: int) -> None:
    _, rules, exits = split([finished(claimed, 1)])
    assert rows(rules) == expected(1, HITS) + expected(2, 1)
    assert exits["rules"].tolist() == [claimed, 1]


def test_calls_of_several_cpus_are_merged_by_their_start() -> None:
    # GIVEN parts of several CPUs, and a call that ended after one that began later
    parts = [finished(1, 2, first=7), finished(3, 0, first=3)[::-1], finished(1, first=5)]
    # WHEN they are split
    entries, rules, exits = split(parts)
    # THEN entries, rules and exits are in order of time, and still match
    assert entries["call"].tolist() == exits["call"].tolist() == [3, 4, 5, 7, 8]
    assert exits["rules"].tolist() == [3, 0, 1, 1, 2]
    assert rows(rules) == expected(3, 3) + expected(5, 1) + expected(7, 1) + expected(8, 2)


def test_ports_keep_their_byte_order() -> None:
    found = finished(1, 1)
    found["entry"]["ct_orig_dport"] = 443
    entries, _, _ = split([found[:1], found[1:]])
    assert entries["ct_orig_dport"].tolist() == [443, 443]
    assert entries.tobytes()[: record.ENTRY_DTYPE.itemsize] == found[0]["entry"].tobytes()


def test_the_result_does_not_change_when_the_kernel_writes_on() -> None:
    found = finished(2, 1)
    entries, rules, exits = split([found])
    found.view("u1")[:] = 0xFF
    assert entries["call"].tolist() == exits["call"].tolist() == [1, 2]
    assert rows(rules) == expected(1, 2) + expected(2, 1)
