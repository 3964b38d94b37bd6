# SPDX-License-Identifier: GPL-2.0-only
"""Any text as a query: it works, or there is an error of one line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.text import clean
from ipttrace.trace import query
from ipttrace.trace.query import QueryError
from ipttrace.trace.query.patterns import compile_pattern
from ipttrace.trace.query.tree import MAX_TEXT, Value
from ipttrace.trace.session import Trace
from tests.data.traces import one_row

# Joined without spaces, they make further words.
PIECES = r"""
( ) not and or ! && || in = != < <= > >= ~ !~ & , " ' \ none "" src sport dst in out comm chain
path rule flags icmp frag mark cost len time netns host proto mac_src addr port dev flow partial
0x10 0xff 80 8000-8100 -30s 12:30 2026-11-21T12:30 10.0.0.0/8 ::1/64 50us 1.5k 8/0 SYN SYN,ACK
tcp drop eth0 ^a.*b$ [ a** (a+)+ 52:54:00 9999999999999999999999999 1e9 -1 日本 verdict=DROP
src=1.2.3.4 not(tcp)
"""
WORDS = st.sampled_from([*PIECES.split(), "\0", "\x1b"])
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(WORDS, max_size=14).map(" ".join),
    st.lists(WORDS, max_size=14).map("".join),
)


def compiled(text: str, trace: Trace) -> query.Query | None:
    """The query, after running it on a row; None if it was an error of one good line."""
    context = query.context_of(trace.store, netns={1: "a"}, hosts=("b",))
    error = None
    try:
        asked = query.compile(text)
    except QueryError as caught:
        error = caught
    if error is not None:
        assert str(error)
        assert clean(str(error)) == str(error)
        assert len(str(error)) < 200
        assert 0 <= error.position <= len(text)
        assert error.length >= 1
        for columns in (20, 80):
            lines = error.caret(columns).split("\n")
            assert len(lines) == 2
            assert all(clean(line) == line for line in lines)
            assert set(lines[1].lstrip()) == {"^"}
        return None
    for part in trace.store.parts():
        mask = asked.mask(part, context)
        assert mask.dtype == np.bool_
        assert mask.shape == (len(part),)
    return asked


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_is_a_query_or_an_error_in_one_line(text: str) -> None:
    asked = compiled(text, _ROW)
    if asked is not None:
        again = query.compile(asked.text)
        assert again.text == asked.text
        for part in _ROW.store.parts():
            context = query.context_of(_ROW.store)
            assert (again.mask(part, context) == asked.mask(part, context)).all()


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(-1, 100))
def test_completion_never_fails(text: str, cursor: int) -> None:
    context = query.Context(_ROW.store.names, netns={(0, 1): "a b"}, values={"chain": ("x y", "z")})
    for one_of in query.complete(text, cursor, context):
        assert 0 <= one_of.start <= one_of.end <= len(text)
        assert one_of.text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_value_comes_back_from_its_quotes(value: str) -> None:
    asked = query.compile(f"comm={query.quote(value)}")
    assert asked.text == f"comm={query.quote(value)}"


@pytest.mark.parametrize(
    "text",
    ["(" * 1000 + "tcp" + ")" * 1000, "(" * 1000, "not " * 1000 + "tcp", "!" * 5000 + "tcp",
     "((tcp) or " * 500 + "tcp" + ")" * 500],
    ids=["groups", "open", "not", "!", "or"],
)  # fmt: skip
def test_deep_nesting_is_an_error_and_not_a_crash(text: str) -> None:
    with pytest.raises(QueryError, match=r"nested more than 100 levels deep|incomplete after"):
        query.compile(text)
    assert compiled(text, _ROW) is None


def test_nesting_up_to_the_limit_works() -> None:
    assert compiled("(" * 100 + "tcp" + ")" * 100, _ROW)
    text = "(udp or (tcp and " * 45 + "drop" + "))" * 45
    assert compiled(text, _ROW)


def test_a_query_of_ten_thousand_characters_works() -> None:
    text = " or ".join(f"(src=10.{at % 256}.0.0/16 and dport={at})" for at in range(300))
    text = text[:9900].rpartition(" or ")[0]
    assert len(text) > 9800
    assert compiled(text, _ROW)
    assert compiled("dport in " + ",".join(map(str, range(2000))), _ROW)
    assert compiled("x" * MAX_TEXT, _ROW) is None
    with pytest.raises(QueryError, match="longer than"):
        query.compile("tcp " * MAX_TEXT)


def matcher(text: str) -> Callable[[str], bool]:
    return compile_pattern(Value(text, True, 0, len(text) + 2), f'"{text}"')


@pytest.mark.parametrize(
    "text",
    ["a*a*b", "(a+)+$b", "(a|a)*$b", "a?" * 30 + "a" * 30 + "b", "(a*)*b", "(.*a){20}b",
     "(a|b|ab)*c", ".*.*.*.*x", "(?:a{0,9}){9}b", "(?:a|b)*a(?:a|b){14}c"],
)  # fmt: skip
def test_a_nasty_pattern_searches_a_long_text_at_once(text: str) -> None:
    search = matcher(text)
    began = time.perf_counter()
    assert not search("a" * 4000)
    assert time.perf_counter() - began < 1


def test_a_nasty_pattern_on_rule_texts_returns() -> None:
    # GIVEN a rule with a comment of 4,000 characters
    trace = one_row(b"INPUT", ruleset=1)
    chains = {"INPUT": {"policy": None, "rules": ["-j ACCEPT"] * 6 + ["a" * 4000]}}
    rules = {"netns": 4026531840, "family": 4, "table": "filter", "since": 1, "upto": 1}
    trace.rulesets.feed({**rules, "netns": trace.store.row(0).netns, "chains": chains})
    context = query.context_of(trace.store)
    (part,) = trace.store.parts()
    # WHEN it is searched with a pattern that takes cubic time by backtracking
    assert not query.compile('rule~"a*a*b"').mask(part, context).any()
    assert query.compile('rule~"a*a*$"').mask(part, context).all()


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("(?=x)y", "RE2's regular expressions have no look-ahead", (1, 3)),
        ("y(?!x)", "RE2's regular expressions have no look-ahead", (2, 3)),
        ("a(?<=x)y", "RE2's regular expressions have no look-behind", (2, 4)),
        (r"(a)\1", "RE2's regular expressions have no back-references", (4, 2)),
        ("(?P<x>a)(?P=x)", "RE2's regular expressions have no back-references", (9, 3)),
        ("x(?>a)", "RE2's regular expressions have no atomic groups", (2, 3)),
        ("a**", "not a regular expression: bad repetition operator **", (2, 2)),
        ("[a", "not a regular expression: missing ]", (0, 4)),
        ("(" * 500, "not a regular expression: missing )", (0, 502)),
        ("a{1001}", "not a regular expression: invalid repetition size {1001}", (2, 6)),
        (r"\pL{900}", "regular expression too large: use smaller repeat counts", (0, 10)),
        ("x" * 1001, "pattern longer than 1000 characters", (0, 1003)),
    ],
)
def test_a_pattern_that_cannot_be_used_gets_one_line(
    text: str, message: str, position: tuple[int, int]
) -> None:
    with pytest.raises(QueryError) as caught:
        matcher(text)
    assert str(caught.value) == message
    assert (caught.value.position, caught.value.length) == position


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_a_pattern_that_is_not_unicode_matches_nothing(text: str) -> None:
    assert not matcher(text)("a\ud800")
    assert matcher("^a.$")("a\ud800")


@pytest.mark.parametrize(
    "text",
    ["DOCKER", "^(FORWARD|INPUT)$", r"^veth[0-9a-f]+$", "a.*b.*c.*d", r"\d{1,3}(\.\d{1,3}){3}",
     "(?:ab){2}", r"[\[a]", "(?i)x", "kworker/[0-9]+:[0-9]+"],
)  # fmt: skip
def test_common_patterns_match_in_upper_and_lower_case(text: str) -> None:
    search = matcher(text)
    names = ("FORWARD", "forward", "veth12", "VETH12", "a-b-c-d", "a" * 128, "10.0.0.1", "ABAB")
    for name in (*names, "KWORKER/0:1", "x", ""):
        assert search(name) == bool(re.search(text, name, re.I))


_ROW = one_row(b"a")
