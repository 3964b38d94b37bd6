# SPDX-License-Identifier: GPL-2.0-only
"""Runs of legacy tables become calls, with what the kernel said where no rules are known."""

from __future__ import annotations

import numpy as np

from ipttrace.capture.bpf import runs
from ipttrace.capture.bpf.legacy_calls import make_legacy_calls
from ipttrace.capture.bpf.runs import RunNames, Runs
from ipttrace.stream import record

CALL = 1 << 55 | 3 << 42 | 7


def two_runs() -> Runs:
    """A run with two hits, and one inside it of which no hit was seen."""
    entries = np.zeros(2, record.ENTRY_DTYPE)
    exits = np.zeros(2, record.EXIT_DTYPE)
    entries["call"] = exits["call"] = [CALL, CALL + 1]
    entries["parent"] = [0, CALL]
    entries["table"] = b"filter"
    entries["ct_orig_dport"] = 53
    exits["rules"] = [2, 0]
    hits = np.zeros(2, runs.HIT_DTYPE)
    hits["handle"] = [3, 4]
    hits["type"] = [record.MATCH_RULE, record.MATCH_POLICY]
    hits["chain"] = [7, 8]
    return Runs(entries, exits, np.zeros(2, runs.HEAD_DTYPE), hits, np.array([2, 0]))


def test_without_known_rules_a_call_has_what_the_kernel_logged() -> None:
    # WHEN calls are made of runs whose rules nobody has read
    names = RunNames()
    names.learn(7, b"MINE")
    names.learn(8, b"INPUT")
    calls = make_legacy_calls(two_runs(), None, names)
    # THEN hits are as logged, in order, and of their own call
    assert calls.rules["call"].tolist() == [CALL, CALL]
    assert calls.rules["rulenum"].tolist() == [3, 4]
    assert calls.rules["seq"].tolist() == [0, 1]
    assert calls.rules["match"].tolist() == [record.MATCH_RULE, record.MATCH_POLICY]
    assert calls.rules["chain"].tolist() == [b"MINE", b"INPUT"]
    assert set(calls.rules["table"].tolist()) == {b"filter"}
    # AND no generation is claimed, parents stay, ports keep their order of bytes
    assert calls.entries["ruleset"].tolist() == [0, 0]
    assert calls.entries["parent"].tolist() == [0, CALL]
    assert calls.entries["ct_orig_dport"].tolist() == [53, 53]
    assert calls.exits["rules"].tolist() == [2, 0]
