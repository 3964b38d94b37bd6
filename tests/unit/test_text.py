# SPDX-License-Identifier: GPL-2.0-only
"""Names of others, made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.text import clean


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"DOCKER-USER", "DOCKER-USER"),
        ("Zürich-ждёт-東京".encode(), "Zürich-ждёт-東京"),
        (b"\x1b]0;pwned\x07", r"\x1b]0;pwned\x07"),
        (b"a\nb\r\tc\x00d", r"a\x0ab\x0d\x09c\x00d"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("in\u200bvisible", r"in\u200bvisible"),
        ("line\u2028sep", r"line\u2028sep"),
        ("\x9b31m", r"\x9b31m"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\udc80", r"\udc80"),
        ("\ue000\U000e0041", r"\ue000\U000e0041"),
    ],
)
def test_a_name_shows_what_it_hides(raw: bytes | str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.one_of(st.binary(), st.text()), st.integers(0, 40))
def test_no_text_can_reach_the_terminal_raw_or_too_long(raw: bytes | str, limit: int) -> None:
    shown = clean(raw, limit)
    assert len(shown) <= limit
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [char for char in shown if unicodedata.category(char) in hidden]


def test_a_long_name_says_that_it_was_cut() -> None:
    assert clean("x" * 30, 8) == "xxxxxxx…"
    assert clean("é".encode() * 30, 8) == "ééééééé…"
    assert clean(b"12345678", 8) == "12345678"
