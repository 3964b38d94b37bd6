# SPDX-License-Identifier: GPL-2.0-only
"""The query language: canonical text, and errors with their positions."""

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
         "proto=TCP and (ct_state=NEW or (drop=yes and dev=lo))"),
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
        ("no_arp or no_nd", "unresolved=ARP or unresolved=ND"),
        ("not unresolved", "not unresolved!=none"),
    ],
)  # fmt: skip
def test_a_query_has_one_canonical_text(text: str, canonical: str) -> None:
    assert compile(text).text == canonical
    # AND the canonical text stays as it is
    assert compile(canonical).text == canonical


@pytest.mark.parametrize(
    ("text", "under", "message"),
    [
        ("vrdict=DROP", "^^^^^^", "did you mean verdict?"),
        ("tcp and vrdict=DROP", "        ^^^^^^", "there is no field vrdict"),
        ("verdict=DORP", "        ^^^^", "did you mean DROP?"),
        ("table=nat and", "             ^", "incomplete after and"),
        ("tcp udp", "    ^^^", "and, or, or an operator missing before udp"),
        ("tcp and port 443", "             ^^^", "operator missing: port=443"),
        ("drop or no ARP", "           ^^^", "no and ARP are one word: no_arp"),
        ("host 10.1.0.2", "     ^^^^^^^^", "operator missing: addr=10.1.0.2"),
        ("(tcp or (udp)", "^", "closing ) missing"),
        ("tcp)", "   ^", "no matching ( for this )"),
        ("comm='a and tcp", "     ^", "closing quote missing"),
        ("chain~[a", "      ^^", "missing ]"),
        ('chain~"\\\\(a("', "      ^^^^^^^", "missing )"),
        ("chain~^(a|b)", "       ^", "quotes missing"),
        ("chain~(a+)", "      ^", "quotes missing"),
        ('chain~"\\\\(a**"', "           ^^", "bad repetition operator **"),
        ('chain~"a(?=b)"', "        ^^^", "no look-ahead"),
        ("src=10.0.0.0/33", "    ^^^^^^^^^^^", "not an address or network"),
        ("src in 10.0.0.1,x", "                ^", "not an address or network"),
        ("src<5", "   ^", "operator < not supported for src (an address); use one of = != in"),
        ("cost~5", "    ^", "operator ~ not supported for cost (a number)"),
        ("cost>5parsec", "      ^^^^^^", "unknown unit; use one of ns us"),
        ("dport=http", "      ^^^^", "not a number"),
        ("dport in 80,x-y", "            ^", "not a number"),
        ("dport in 90-80", "         ^^^^^", "range is backwards; use 80-90"),
        ("dport>80-90", "      ^^^^^", "> takes one number"),
        ("dport=1.5", "      ^^^", "not an integer"),
        ("cost>none", "     ^^^^", "> does not apply to none"),
        ("chain&1=1", "     ^", "has no bits to mask"),
        ("mark&0xff>1", "         ^", "= or != missing"),
        ("mark&none=1", "     ^^^^", "a mask must be a number"),
        ("time>25:00", "     ^^^^^", "no such time of day"),
        ("time>2026-02-30", "     ^^^^^^^^^^", "no such date"),
        ("time>12:30Z", "     ^^^^^^", "needs a date"),
        ("time>noon", "     ^^^^", "not a time"),
        ("time=12:30,12:31", "           ^^^^^", "only one time allowed"),
        ("time in 12:30", "     ^^", "operator in not supported for time"),
        ("flags=SYM", "      ^^^", "did you mean SYN?"),
        ("icmp=8/256", "       ^^^", "ICMP codes go up to 255"),
        ("mac_src=52:5", "        ^^^^", "not a hardware address"),
        ("frag=x", "     ^", "not a number"),
        ("5", "^", "a number needs a field"),
        ("src", "^^^", "operator missing after src"),
        ("FORWARD", "^^^^^^^", "hook=FORWARD or chain=FORWARD"),
        ("dorp", "^^^^", "did you mean drop?"),
        ("zzz", "^^^", "unknown word zzz; use a field"),
        ("'x'", "^^^", "a quoted string needs a field"),
        ("dport not 80", "          ^^", "in missing after not"),
        ("=5", "^", "unexpected ="),
    ],
)  # fmt: skip
def test_an_error_points_at_the_mistake(text: str, under: str, message: str) -> None:
    error = refused(text)
    assert message in str(error)
    assert error.caret().split("\n") == [text, under]


def test_the_caret_counts_columns_of_wide_and_escaped_characters() -> None:
    # GIVEN wide characters, a combining mark and an escape before the wrong word
    error = refused("comm=日本 and chain=e\u0301 and comm=\x1b[31m and x=1")
    # THEN the line shows the escape, and the caret counts columns
    shown, under = error.caret().split("\n")
    assert shown == "comm=日本 and chain=e\u0301 and comm=\\x1b[31m and x=1"
    assert under.index("^") == len("comm=JJJJ and chain=e and comm=\\x1b[31m and ")


def test_of_a_long_query_the_part_around_the_mistake_is_shown() -> None:
    error = refused("tcp or " * 400 + "udq or " + "tcp or " * 300 + "tcp")
    shown, under = error.caret(60).split("\n")
    assert len(shown) <= 60
    assert shown[0] == shown[-1] == "…"
    assert shown[under.index("^") : under.rindex("^") + 1] == "udq"


def test_a_value_is_quoted_only_if_necessary() -> None:
    assert query.quote("DOCKER-USER") == "DOCKER-USER"
    assert query.quote(80) == "80"
    assert query.quote(None) == "none"
    assert query.quote("none") == '"none"'
    assert query.quote("") == '""'
    assert query.quote('a "b" \\x1b') == '"a \\"b\\" \\\\x1b"'


def test_queries_are_combined_with_parentheses_if_necessary() -> None:
    assert query.conjunction("tcp or udp", "drop") == "(tcp or udp) and drop"
    assert query.conjunction("tcp and drop", "drop and new") == "tcp and drop and new"
    assert query.conjunction("", "tcp or udp") == "tcp or udp"
    assert query.conjunction("tcp or udp", "") == "tcp or udp"
    assert query.conjunction("", "") == ""
    assert query.negation("tcp or udp") == "not (tcp or udp)"
    assert query.negation("flow=0x1") == "not flow=0x1"
    assert query.negation("") == ""


def test_parser_and_re2_are_imported_with_the_first_query_that_needs_them() -> None:
    code = (
        "import sys; from ipttrace.trace import query; assert 'lark' not in sys.modules;"
        "query.compile(''); assert 'lark' not in sys.modules;"
        "query.compile('tcp'); assert 'lark' in sys.modules;"
        "assert 're2' not in sys.modules; query.compile('chain~x'); assert 're2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_query_that_was_checked_is_not_compiled_again() -> None:
    assert compile("verdict = DROP and tcp") is compile("verdict = DROP and tcp")


def test_equal_queries_are_equal() -> None:
    assert compile("new") == compile("ct_state = NEW")
    assert len({compile("new"), compile("ct_state=NEW"), compile("tcp")}) == 2
    assert compile("").matches_all
    assert not compile("tcp").matches_all
