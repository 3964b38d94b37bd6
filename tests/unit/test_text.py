# SPDX-License-Identifier: GPL-2.0-only
"""Foreign text made safe to show, measured and cut."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.text import clean, cut, escape, width


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
def test_hidden_characters_in_a_name_are_shown(raw: bytes | str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.one_of(st.binary(), st.text()), st.integers(0, 40))
def test_clean_text_is_printable_and_within_its_limit(raw: bytes | str, limit: int) -> None:
    shown = clean(raw, limit)
    assert len(shown) <= limit
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [char for char in shown if unicodedata.category(char) in hidden]


def test_a_long_name_ends_in_an_ellipsis() -> None:
    assert clean("x" * 30, 8) == "xxxxxxx…"
    assert clean("é".encode() * 30, 8) == "ééééééé…"
    assert clean(b"12345678", 8) == "12345678"


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
def test_control_and_invisible_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text(), st.integers(0, 30))
def test_a_cut_text_fits_its_width(text: str, cells: int) -> None:
    shown = cut(escape(text), cells)
    assert width(shown) <= cells
    assert len(shown) <= max(len(text) * 10, cells * 4 + 1)


def test_a_cut_text_ends_in_an_ellipsis() -> None:
    assert cut("FORWARD", 7) == "FORWARD"
    assert cut("FORWARD", 6) == "FORWA…"
    assert cut("防火墙", 5) == "防火…"
    assert len(cut("e" + "\u0301" * 4000, 4)) < 20
