# SPDX-License-Identifier: GPL-2.0-only
"""Single values as a reader meets them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.view.cells import clock, cut, duration, rfc3339, safe, width


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
def test_a_cost_shows_three_figures_and_its_unit(ns: int | None, shown: str) -> None:
    assert duration(ns) == shown


def test_times_are_written_to_the_nanosecond_in_utc() -> None:
    assert rfc3339(1795222923_123456789) == "2026-11-21T01:02:03.123456789Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000000000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"
    assert rfc3339(2**80) is None


def test_the_clock_shows_microseconds() -> None:
    assert clock(1795222923_000456789, utc=True) == "01:02:03.000456"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("DOCKER-USER", "DOCKER-USER"),
        ("é防", "é防"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202e", "\\u202e"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0001", "\\U000e0001"),
        ("\udcff", "\\udcff"),
        ("\x7f\x9b", "\\x7f\\x9b"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text(), st.integers(0, 30))
def test_a_cut_text_fits_its_room(text: str, room: int) -> None:
    shown = cut(safe(text), room)
    assert width(shown) <= room
    assert len(shown) <= max(len(text) * 10, room * 4 + 1)


def test_a_cut_text_says_that_some_is_missing() -> None:
    assert cut("FORWARD", 7) == "FORWARD"
    assert cut("FORWARD", 6) == "FORWA…"
    assert cut("防火墙", 5) == "防火…"
    assert len(cut("e" + "\u0301" * 4000, 4)) < 20
