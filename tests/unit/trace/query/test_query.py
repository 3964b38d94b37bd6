# SPDX-License-Identifier: GPL-2.0-only
"""The query language: what is understood, how it is written back, what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ipttrace.trace import query
from ipttrace.trace.query import QueryError, compile


def refused(text: str) -> QueryError:
    with pytest.raises(QueryError) as caught:
        compile(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert 0 <= caught.value.position <= len(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        (" \t\n", ""),
        ("verdict = DROP", "verdict=DROP"),
        ("VERDICT==drop && cost_ns>50us", "verdict=drop and cost>50us"),
        ("tcp||!udp", "proto=TCP or not proto=UDP"),
        ("src in 10.0.0.0/8 , 10.1.2.3", "src in 10.0.0.0/8,10.1.2.3"),
        ("dport not in (80, 443)", "dport not in 80,443"),
        ("((tcp)) and (new or (drop and lo))",
         "proto=TCP and (ct_state=NEW or (verdict=DROP and dev=lo))"),
        ("(tcp or udp) or icmp", "proto=TCP or proto=UDP or proto=ICMP"),
        ("not (tcp and udp)", "not (proto=TCP and proto=UDP)"),
        ("not not tcp", "not not proto=TCP"),
        ("in=eth0 and out!=eth1", "in=eth0 and out!=eth1"),
        ("in in eth0,eth1", "in in eth0,eth1"),
        ("not in=eth0", "not in=eth0"),
        ("in not in eth0", "in not in eth0"),
        ("comm=and and comm=in or comm=not", "(comm=and and comm=in) or comm=not"),
        ("mark & 0xff = 0x10", "mark&0xff=0x10"),
        ("comm='it\\'s'", 'comm="it\'s"'),
        ('chain~"^a\\.b"', 'chain~"^a\\\\.b"'),
        ("chain~a|b", 'chain~"a|b"'),
        ("chain~^a&&tcp", 'chain~"^a" and proto=TCP'),
        ("chain=~x", "chain~x"),
        ("chain=NONE", "chain=none"),
        ('comm="none"', 'comm="none"'),
        ('chain=""', 'chain=""'),
        ("10.1.2.3", "addr=10.1.2.3"),
        ("10.0.0.0/8", "addr=10.0.0.0/8"),
        ("fe80::1", "addr=fe80::1"),
        ("eth0.100 or lo", "dev=eth0.100 or dev=lo"),
        ("frag and partial", "frag!=none and partial=yes"),
    ],
)  # fmt: skip
def test_a_query_is_written_back_in_one_way(text: str, canonical: str) -> None:
    assert compile(text).text == canonical
    # AND what is written back says the same again
    assert compile(canonical).text == canonical


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("vrdict=DROP", "^^^^^^", "did you mean verdict?"),
        ("tcp and vrdict=DROP", "        ^^^^^^", "there is no field vrdict"),
        ("verdict=DORP", "        ^^^^", "did you mean DROP?"),
        ("table=nat and", "             ^", "something is missing after and"),
        ("tcp udp", "    ^^^", "and, or, or an operator is missing before udp"),
        ("(tcp or (udp)", "^", "this ( is never closed"),
        ("tcp)", "   ^", "there is no ( for this )"),
        ("comm='a and tcp", "     ^", "this quote is never closed"),
        ("chain~[a", "      ^^", "missing ]"),
        ('chain~"\\\\(a("', "      ^^^^^^^", "missing )"),
        ("chain~^(a|b)", "       ^", "in quotes"),
        ("chain~(a+)", "      ^", "in quotes"),
        ('chain~"\\\\(a**"', "           ^^", "bad repetition operator **"),
        ('chain~"a(?=b)"', "        ^^^", "no look-ahead"),
        ("src=10.0.0.0/33", "    ^^^^^^^^^^^", "not an address or network"),
        ("src in 10.0.0.1,x", "                ^", "not an address or network"),
        ("src<5", "   ^", "src is an address: < does not fit"),
        ("cost~5", "    ^", "cost is a number: ~ does not fit"),
        ("cost>5parsec", "      ^^^^^^", "units here: ns us"),
        ("dport=http", "      ^^^^", "not a number"),
        ("dport in 80,x-y", "            ^", "not a number"),
        ("dport in 90-80", "         ^^^^^", "write 80-90"),
        ("dport>80-90", "      ^^^^^", "a range does not fit >"),
        ("dport=1.5", "      ^^^", "not a whole number"),
        ("cost>none", "     ^^^^", "nothing is > none"),
        ("chain&1=1", "     ^", "it has no bits"),
        ("mark&0xff>1", "         ^", "= or != is missing"),
        ("mark&none=1", "     ^^^^", "a mask has to be a number"),
        ("time>25:00", "     ^^^^^", "no such time of day"),
        ("time>2026-02-30", "     ^^^^^^^^^^", "no such date"),
        ("time>12:30Z", "     ^^^^^^", "needs a date"),
        ("time>noon", "     ^^^^", "not a time"),
        ("time=12:30,12:31", "           ^^^^^", "one time is enough"),
        ("time in 12:30", "     ^^", "time is a time: in does not fit"),
        ("flags=SYM", "      ^^^", "did you mean SYN?"),
        ("icmp=8/256", "       ^^^", "an ICMP code is at most 255"),
        ("mac_src=52:5", "        ^^^^", "not a hardware address"),
        ("frag=x", "     ^", "not a number"),
        ("5", "^", "could be much"),
        ("src", "^^^", "an operator is missing after src"),
        ("FORWARD", "^^^^^^^", "hook=FORWARD or chain=FORWARD"),
        ("dorp", "^^^^", "did you mean drop?"),
        ("zzz", "^^^", "alone says nothing"),
        ("'x'", "^^^", "a text alone says nothing"),
        ("dport not 80", "          ^^", "in is missing after not"),
        ("=5", "^", "= cannot stand here"),
    ],
)  # fmt: skip
def test_an_error_points_at_what_is_wrong(text: str, place: str, says: str) -> None:
    error = refused(text)
    assert says in str(error)
    shown, under = error.caret().split("\n")
    assert shown == text
    assert under == place


def test_the_caret_stands_under_the_place_whatever_the_characters() -> None:
    # GIVEN wide characters, a combining mark and an escape before the wrong word
    error = refused("comm=日本 and chain=e\u0301 and comm=\x1b[31m and x=1")
    # THEN the line shows the escape, and the caret counts columns
    shown, under = error.caret().split("\n")
    assert shown == "comm=日本 and chain=e\u0301 and comm=\\x1b[31m and x=1"
    assert under.index("^") == len("comm=JJJJ and chain=e and comm=\\x1b[31m and ")


def test_the_caret_of_a_long_query_shows_the_part_around_the_place() -> None:
    error = refused("tcp or " * 400 + "udq or " + "tcp or " * 300 + "tcp")
    shown, under = error.caret(60).split("\n")
    assert len(shown) <= 60
    assert shown[0] == shown[-1] == "…"
    assert shown[under.index("^") : under.rindex("^") + 1] == "udq"


def test_a_value_is_quoted_only_where_it_has_to_be() -> None:
    assert query.quote("DOCKER-USER") == "DOCKER-USER"
    assert query.quote(80) == "80"
    assert query.quote(None) == "none"
    assert query.quote("none") == '"none"'
    assert query.quote("") == '""'
    assert query.quote('a "b" \\x1b') == '"a \\"b\\" \\\\x1b"'


def test_queries_are_joined_with_parentheses_where_they_are_needed() -> None:
    assert query.conjunction("tcp or udp", "drop") == "(tcp or udp) and drop"
    assert query.conjunction("tcp and drop", "drop and new") == "tcp and drop and new"
    assert query.conjunction("", "tcp or udp") == "tcp or udp"
    assert query.conjunction("tcp or udp", "") == "tcp or udp"
    assert query.conjunction("", "") == ""
    assert query.negation("tcp or udp") == "not (tcp or udp)"
    assert query.negation("flow=0x1") == "not flow=0x1"
    assert query.negation("") == ""


def test_the_parser_library_is_loaded_by_the_first_query_only() -> None:
    code = (
        "import sys; from ipttrace.trace import query; assert 'lark' not in sys.modules;"
        "query.compile(''); assert 'lark' not in sys.modules;"
        "query.compile('tcp'); assert 'lark' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_query_that_was_checked_is_not_compiled_again() -> None:
    assert compile("verdict = DROP and tcp") is compile("verdict = DROP and tcp")


def test_equal_queries_are_equal() -> None:
    assert compile("drop") == compile("verdict = DROP")
    assert len({compile("drop"), compile("verdict=DROP"), compile("tcp")}) == 2
    assert compile("").matches_all
    assert not compile("tcp").matches_all
