# SPDX-License-Identifier: GPL-2.0-only
"""Results of tests as lines.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipttrace.whatif.checks.check import Result

PASSED: Final = 0
FAILED: Final = 3


def status(results: Sequence[Result]) -> int:
    """Returns the exit status: 0 all passed, 3 one did not."""
    return PASSED if all(one.passed for one in results) else FAILED


def lines(results: Sequence[Result], notes: Sequence[str]) -> list[str]:
    """Returns the report; `notes`: what the copy lacks."""
    listed: list[str] = []
    for one in results:
        listed.append(f"{'✓' if one.passed else '✗'} {one.test.name}")
        listed += [f"    {text}" for text in reasons(one)]
    failed = sum(not one.passed for one in results)
    listed.append(f"{len(results)} tests: {len(results) - failed} passed, {failed} failed")
    return listed + [f"note: {text}" for text in notes]


def reasons(one: Result) -> list[str]:
    """Returns why a test failed, and what became of its packet."""
    if one.error:
        return [one.error]
    return [*one.wrong, *one.answer] if one.wrong else []
