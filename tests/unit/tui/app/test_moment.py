# SPDX-License-Identifier: GPL-2.0-only
"""Times as users type them."""

from __future__ import annotations

import time

import pytest

from ipttrace.tui.app.moment import SECOND, moment

HERE = int(time.mktime((2026, 3, 4, 12, 30, 5, 0, 0, -1))) * SECOND


@pytest.mark.parametrize(
    ("text", "away"),
    [
        ("-30s", -30 * SECOND),
        ("+5m", 300 * SECOND),
        ("+250ms", SECOND // 4),
        ("-1.5", -3 * SECOND // 2),
        ("12:30", -5 * SECOND),
        ("12:30:06.5", 3 * SECOND // 2),
        ("2026-03-04T12:31:05", 60 * SECOND),
        ("2026-03-04 12:30:05", 0),
    ],
)
def test_a_typed_time_is_parsed(text: str, away: int) -> None:
    assert moment(text, HERE) == HERE + away


@pytest.mark.parametrize("text", ["", "soon", "25:00", "12:61", "12", "+", "-5 parsecs", "1e400s"])
def test_an_invalid_time_is_none(text: str) -> None:
    assert moment(text, HERE) is None
