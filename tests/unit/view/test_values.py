# SPDX-License-Identifier: GPL-2.0-only
"""Times and costs as text."""

from __future__ import annotations

import pytest

from ipttrace.view.values import clock, duration, rfc3339


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (None, "-"),
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (9_994, "9.99 µs"),
        (9_996, "10.0 µs"),
        (12_345, "12.3 µs"),
        (99_960, "100 µs"),
        (999_499, "999 µs"),
        (999_600, "1.00 ms"),
        (4_560_000, "4.56 ms"),
        (1_500_000_000, "1.5 s"),
        (2**63, "9.22e+09 s"),
    ],
)
def test_a_cost_has_three_digits_and_a_unit(ns: int | None, shown: str) -> None:
    assert duration(ns) == shown


def test_times_are_written_to_the_nanosecond_in_utc() -> None:
    assert rfc3339(1795222923_123456789) == "2026-11-21T01:02:03.123456789Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000000000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"
    assert rfc3339(2**80) is None


def test_the_clock_shows_microseconds() -> None:
    assert clock(1795222923_000456789, utc=True) == "01:02:03.000456"
