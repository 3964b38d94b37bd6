# SPDX-License-Identifier: GPL-2.0-only
"""Completions in a query that is being typed."""

from __future__ import annotations

import pytest

from ipttrace.trace import query
from ipttrace.trace.store.names import Names
from tests.data.traces import one_row

CONTEXT = query.Context(
    Names(),
    netns={(0, 1): "router", (0, 2): "my ns", (1, 2): "my ns"},
    hosts=("web1",),
    values={
        "chain": ("INPUT", "DOCKER-USER"),
        "dev": ("eth0",),
        "in": ("wlan0.1",),
        "comm": ('a "b"',),
    },
)


def offered(text: str, cursor: int | None = None) -> list[str]:
    at = len(text) if cursor is None else cursor
    return [each.text for each in query.complete(text, at, CONTEXT)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", ["verdict", "src", "dst", "port", "proto"]),
        ("ver", ["verdict"]),
        ("not ver", ["verdict"]),
        ("(drop and ver", ["verdict"]),
        ("dr", ["drop", "addr"]),
        ("no", ["no_arp", "no_nd", "not"]),
        ("arp", ["no_arp"]),
        ("unresolved=", ["ARP", "ND", "none"]),
        ("verdict=", ["DROP", "ACCEPT"]),
        ("verdict in DROP,ac", ["ACCEPT"]),
        ("verdict in (DROP, ac", ["ACCEPT"]),
        ("chain~do", ["DOCKER-USER"]),
        ("chain=user", ["DOCKER-USER"]),
        ("path=", ["INPUT", "DOCKER-USER", "none"]),
        ("hook!=f", ["FORWARD"]),
        ("table=", ["raw", "mangle", "nat"]),
        ("dev=", ["eth0", "none"]),
        ("netns=", ["router", '"my ns"', "none"]),
        ('netns="my', ['"my ns"']),
        ("comm=a", ['"a \\"b\\""']),
        ("host=", ["web1"]),
        ("in~", ['"wlan0\\\\.1"']),
        ("flags=S", ["SYN"]),
        ("src n", ["not in"]),
        ("src not ", ["in"]),
        ("src ", ["=", "!=", "in", "not in"]),
        ("cost", ["cost", "=", "!=", "in", "not in", "<"]),
        ("verdict=DROP ", ["and", "or"]),
        ("(tcp ", ["and", "or", ")"]),
        ("drop a", ["and"]),
    ],
)
def test_the_likeliest_completions_come_first(text: str, first: list[str]) -> None:
    assert offered(text)[: len(first)] == first


@pytest.mark.parametrize(
    "text", ["foo=", "foo ", "a b ", "mark&", "mark&0x", "cost>", "rule~'", ")", "='"]
)
def test_nothing_is_offered_after_a_mistake_or_inside_a_free_value(text: str) -> None:
    assert offered(text) == []


def test_a_completion_replaces_the_word_under_the_cursor() -> None:
    (only,) = query.complete("tcp and verdXX=DROP", 12, CONTEXT)
    assert (only.text, only.start, only.end) == ("verdict", 8, 14)
    assert only.help
    # AND inside an open quote, the text from the quote on
    (only,) = query.complete('netns="my', 9, CONTEXT)
    assert (only.start, only.end) == (6, 9)


def test_every_offered_value_compiles() -> None:
    for name in ("verdict", "hook", "family", "proto", "ct_state", "flags", "match", "engine",
                 "partial", "netns", "host", "chain", "comm", "dev", "path", "table"):  # fmt: skip
        values = offered(f"{name}=")
        assert values
        for value in values:
            assert query.compile(f"{name}={value}")


def test_offered_names_are_those_of_the_rows() -> None:
    trace = one_row(b"LOGDROP")
    found = query.values_of(trace.store.parts(), trace.store.names)
    assert found["chain"] == ["LOGDROP"]
    assert found["table"] == ["filter"]
    assert found["dev"] == found["in"] == found["comm"] == ["LOGDROP"]
    assert query.values_of([], trace.store.names)["chain"] == []
