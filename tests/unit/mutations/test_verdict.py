# SPDX-License-Identifier: GPL-2.0-only
"""Only a test that ran and failed has noticed a fault."""

from __future__ import annotations

import json

import pytest

from tests.mutations.verdict import Line, Verdict, judge, read

TEST = "tests/vm/test_x.py::test_it"
BEGUN = Line(TEST, "begin", "", "")
READY = Line(TEST, "setup", "passed", "")
PASSED = [BEGUN, READY, Line(TEST, "call", "passed", ""), Line(TEST, "teardown", "passed", "")]


def failing(phase: str) -> list[Line]:
    """What is written of a test that fails in that phase."""
    lines = [line for line in PASSED if line.phase != phase]
    return [*lines, Line(TEST, phase, "failed", "AssertionError: 2 lines\nassert not [1, 2]")]


@pytest.mark.parametrize("phase", ["call", "teardown"])
def test_a_test_that_fails_has_noticed_it(phase: str) -> None:
    assert judge(TEST, failing(phase), 1) == Verdict(True, "AssertionError: 2 lines")


def test_a_test_that_passes_has_not() -> None:
    assert judge(TEST, PASSED, 0) == Verdict(False)
    # AND another one's failure does not count
    other = [Line(f"{TEST}_too", "call", "failed", "x")]
    assert judge(TEST, [*PASSED, *other], 1) == Verdict(False)


def test_one_failing_parameter_is_enough_for_a_test_named_without() -> None:
    lines = [Line(f"{TEST}[a]", "call", "passed", ""), Line(f"{TEST}[b]", "call", "failed", "x")]
    assert judge(TEST, lines, 1) == Verdict(True, "x")
    assert judge(f"{TEST}[a]", lines, 1) == Verdict(False)


def test_a_test_that_could_not_run_shows_nothing() -> None:
    assert judge(TEST, failing("setup"), 1).failed is None
    skipped = [BEGUN, Line(TEST, "setup", "skipped", "no such kernel")]
    assert judge(TEST, skipped, 0) == Verdict(None, "skipped in its setup: no such kernel")
    assert judge(TEST, [], 4) == Verdict(None, "pytest ended with exit status 4")
    assert judge(TEST, [], 0) == Verdict(None, "it did not run")


def test_a_dead_guest_counts_only_where_it_may_and_in_the_test() -> None:
    death = "BUG: kernel NULL pointer dereference"
    assert judge(TEST, [BEGUN, READY], None, death) == Verdict(True, death)
    # Without a complaint of the kernel: QEMU was killed, or the test hangs
    assert judge(TEST, [BEGUN, READY], None, "", "it hung") == Verdict(
        None, "the guest ended in the test: it hung"
    )
    for lines in ([], PASSED):
        verdict = judge(TEST, lines, None, death, death)
        assert verdict == Verdict(None, f"the guest ended outside the test: {death}")


def test_a_failure_before_the_guest_died_counts() -> None:
    assert judge(TEST, failing("call"), None, "", "it hung").failed is True


def test_a_line_that_a_dying_guest_did_not_complete_is_left_out() -> None:
    text = json.dumps({"test": TEST, "phase": "begin", "outcome": "", "why": ""})
    assert read(f'{text}\n{{"test": "tests/v') == [BEGUN]
    assert read('[]\n{"test": 1}\n') == []


def test_a_long_reason_is_cut() -> None:
    why = judge(TEST, [Line(TEST, "call", "failed", "\n" + "x" * 500)], 1).why
    assert len(why) == 120
    assert why.endswith("x…")
