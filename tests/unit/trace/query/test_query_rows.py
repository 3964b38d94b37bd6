# SPDX-License-Identifier: GPL-2.0-only
"""Queries match the same rows as a check of each row in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace import query
from ipttrace.trace.row import FIELDS, Row
from ipttrace.trace.session import Trace
from tests.data import synth
from tests.data.records import entry, leave, rule, tcp, v4
from tests.data.traces import feed_synthetic, one_row, replay
from tests.paths import LAB

# Fields of which the row itself has the value.
OTHERS = ("time", "path", "rule", "flags", "frag", "tables", "netns_name")
PLAIN = tuple(name for name in FIELDS if name not in OTHERS)


@cache
def lab() -> Trace:
    return replay(LAB, 10_000)


@cache
def synthetic() -> Trace:
    trace = Trace(2_000)
    feed_synthetic(trace, synth.make(3_000, flows=40), 700)
    return trace


@cache
def rows_of(which: Callable[[], Trace]) -> tuple[Row, ...]:
    store = which().store
    return tuple(store.rows(range(store.first, store.end)))


def context_of(trace: Trace) -> query.Context:
    names = {int(inode): name for inode, name in trace.hello.get("netns", {}).items()}
    return query.context_of(trace.store, netns=names, utc=True)


def matched(trace: Trace, text: str, **more: object) -> set[int]:
    """Sequence numbers of the rows that a query matches."""
    asked, context = query.compile(text), context_of(trace)
    for name, value in more.items():
        object.__setattr__(context, name, value)
    found: set[int] = set()
    for part in trace.store.parts():
        mask = asked.mask(part, context)
        assert mask.dtype == bool
        assert mask.shape == (len(part),)
        found.update((np.flatnonzero(mask) + part.first).tolist())
    return found


def value_of(row: Row, name: str) -> object:
    return getattr(row, "in_" if name == "in" else name)


def rows_with(rows: tuple[Row, ...], test: Callable[[Row], object]) -> set[int]:
    return {row.index for row in rows if test(row)}


def unknown(value: object) -> bool:
    return value is None or value == ""


@pytest.mark.parametrize("which", [lab, synthetic])
@pytest.mark.parametrize("name", PLAIN)
def test_equality_matches_the_rows_with_that_value(which: Callable[[], Trace], name: str) -> None:
    trace, rows = which(), rows_of(which)
    seen = list(dict.fromkeys(value_of(row, name) for row in rows))
    missing = rows_with(rows, lambda row: unknown(value_of(row, name)))
    for value in seen[:: max(1, len(seen) // 20)]:
        if unknown(value):
            continue
        text = query.quote(value)
        equal = {row.index for row in rows if value_of(row, name) == value}
        assert matched(trace, f"{name}={text}") == equal
        # AND != matches the others, except those without a value
        others = {row.index for row in rows} - equal - missing
        assert matched(trace, f"{name}!={text}") == others
    assert matched(trace, f"{name}=none") == matched(trace, f'{name}=""') == missing
    assert matched(trace, f"{name}!=none") == {row.index for row in rows} - missing


def test_netns_name_matches_names_alone_and_none_where_there_is_none() -> None:
    trace, rows = lab(), rows_of(lab)
    inode = next(row.netns for row in rows)
    context = {"netns": {(0, inode): "web-1", (0, 7): "other"}}
    mine = rows_with(rows, lambda row: row.netns == inode)
    everyone = {row.index for row in rows}
    assert matched(trace, "netns_name=web-1", **context) == mine
    assert matched(trace, "netns_name~^WEB", **context) == mine
    assert matched(trace, f"netns_name={inode}", **context) == set()
    assert matched(trace, "netns_name!=other", **context) == mine
    assert matched(trace, "netns_name=none", **context) == everyone - mine


@pytest.mark.parametrize("which", [lab, synthetic])
def test_conditions_match_the_same_rows_as_python(
    which: Callable[[], Trace],
) -> None:
    rows = rows_of(which)
    net = ip_network("10.0.0.0/8")

    def inside(text: str | None) -> bool:
        return text is not None and ip_address(text) in net

    def flags(row: Row) -> set[str]:
        return set((row.flags or "").split(","))

    everyone: dict[str, Callable[[Row], object]] = {
        "": lambda row: True,
        "drop": lambda row: row.verdict == "DROP",
        "verdict=drop and src in 10.0.0.0/8 and chain~input and cost>1us": lambda row: (
            row.verdict == "DROP"
            and inside(row.src)
            and "INPUT" in (row.chain or "")
            and (row.cost_ns or 0) > 1000
        ),
        "src not in 10.0.0.0/8": lambda row: row.src and not inside(row.src),
        "src in 2001:db8::/32,10.0.0.0/8": lambda row: (
            row.src.startswith("2001:") or inside(row.src)
        ),
        "addr in 10.0.0.0/8": lambda row: any(
            map(inside, (row.src, row.dst, row.ct_orig_src, row.ct_orig_dst))
        ),
        "addr!=10.1.0.2": lambda row: "10.1.0.2"
        not in (row.src, row.dst, row.ct_orig_src, row.ct_orig_dst),
        "dport in 53,443,8000-8100": lambda row: row.dport in (53, 443, *range(8000, 8101)),
        "dport not in 53,443": lambda row: row.dport is not None and row.dport not in (53, 443),
        "not dport in 53,443": lambda row: row.dport not in (53, 443),
        "port>=50000": lambda row: max(row.sport or 0, row.dport or 0) >= 50000,
        "port!=443": lambda row: row.dport is not None and 443 not in (row.sport, row.dport),
        "dev=eth0": lambda row: "eth0" in (row.in_, row.out),
        "dev~^ETH": lambda row: any((name or "").startswith("eth") for name in (row.in_, row.out)),
        "dev!~eth": lambda row: (
            (row.in_ or row.out)
            and not any("eth" in (name or "") for name in (row.in_, row.out))
        ),
        "dport<1024": lambda row: row.dport is not None and row.dport < 1024,
        "dport>70000 or dport<0": lambda row: False,
        "dport<=99999999999999999999999": lambda row: row.dport is not None,
        "flags=SYN": lambda row: "SYN" in flags(row),
        "flags=SYN,ACK": lambda row: {"SYN", "ACK"} <= flags(row),
        'flags="SYN,ACK"': lambda row: {"SYN", "ACK"} <= flags(row),
        "flags in SYN,RST": lambda row: {"SYN", "RST"} & flags(row),
        "flags!=SYN": lambda row: row.flags is not None and "SYN" not in flags(row),
        "flags~^SYN$": lambda row: row.flags == "SYN",
        "flags&0x12=2": lambda row: "SYN" in flags(row) and "ACK" not in flags(row),
        "flags=none": lambda row: row.flags is None,
        "icmp=8": lambda row: (row.icmp or "").startswith("8/"),
        "icmp in 3/3,8/0": lambda row: row.icmp in ("3/3", "8/0"),
        "path~log": lambda row: any("LOG" in step.chain.upper() for step in row.path),
        "path=FORWARD:2": lambda row: any(
            (step.chain, step.rulenum) == ("FORWARD", 2) for step in row.path
        ),
        "path!=FORWARD": lambda row: row.path and all(step.chain != "FORWARD" for step in row.path),
        "path in FORWARD:2,INPUT": lambda row: any(
            (step.chain, step.rulenum) == ("FORWARD", 2) or step.chain == "INPUT"
            for step in row.path
        ),
        "match=policy and not chain~out": lambda row: (
            row.match == "policy" and "OUT" not in (row.chain or "").upper()
        ),
        "frag!=none": lambda row: row.frag is not None,
        "rulenum>1 and rulenum<=3": lambda row: row.rulenum in (2, 3),
        "mark=0x0 and mark&0xff=0 and mark=0/0xff": lambda row: row.mark == 0,
        "proto=6 or proto=udp": lambda row: row.proto in ("TCP", "UDP"),
        "proto~^icmp": lambda row: row.proto in ("ICMP", "ICMPv6"),
        "ipv6 and not new": lambda row: row.family == 6 and row.ct_state != "NEW",
        "partial or journey=0x1": lambda row: row.partial or row.journey == 1,
        "netns=4026531840": lambda row: row.netns == 4026531840,
        "len>0.1k": lambda row: (row.len or 0) > 100,
        "mac_src=52:54:00": lambda row: (row.mac_src or "").startswith("52:54:00"),
        "host=0": lambda row: True,
        "host!=0": lambda row: False,
        "parent!=none": lambda row: row.parent is not None,
        "engine=kernel": lambda row: row.engine == "kernel",
    }  # fmt: skip
    for text, expected in everyone.items():
        assert matched(which(), text) == rows_with(rows, expected), text


@pytest.mark.parametrize("which", [lab, synthetic])
def test_the_query_of_each_key_matches_the_row_under_the_cursor(which: Callable[[], Trace]) -> None:
    trace, rows = which(), rows_of(which)
    same: list[tuple[Callable[[Row], str], Callable[[Row], object]]] = [
        (query.by_flow, lambda row: row.flow),
        (query.by_journey, lambda row: row.journey),
        (
            query.by_rule,
            lambda row: (row.table, row.chain, row.rulenum, row.family, row.netns),
        ),
        (query.by_chain, lambda row: (row.table, row.chain)),
        (query.by_verdict, lambda row: row.verdict),
        (query.by_process, lambda row: (row.comm, row.pid or 0)),
        (query.by_netns, lambda row: row.netns),
    ]
    for row in rows[:: len(rows) // 23]:
        for made, key in same:
            text = made(row)
            if made is query.by_process and not row.pid:
                continue
            assert matched(trace, text) == {
                other.index for other in rows if key(other) == key(row)
            }, text
            # AND its negation matches all others
            others = {each.index for each in rows} - matched(trace, text)
            assert matched(trace, query.negation(text)) == others
        for end in (False, True):
            assert row.index in matched(trace, query.by_host_address(row, end))
        assert row.index in matched(trace, query.by_process(row))
        step = row.path[0]
        hit = query.by_rule_on_path(row.table, step.chain, step.rulenum, row.family, row.netns)
        assert row.index in matched(trace, hit)
        assert row.index in matched(trace, query.by_host(row, ()))


@pytest.mark.parametrize(
    "name",
    [b'a" or tcp', b"\x1b[31mred", b"back\\slash\\", b"it's (1)", b"none", b"and", b"\xff\xfe", b"",
     "日本 e\u0301".encode(), b"[link=x]", b"=cmd()", b"a:7", b"  ", b"\n", b"in", b"50us", b"'\""],
)  # fmt: skip
def test_the_queries_of_the_keys_match_hostile_names(name: bytes) -> None:
    trace = one_row(name, table=name)
    row = trace.store.row(0)
    texts = [
        query.by_rule(row),
        query.by_chain(row),
        query.by_process(row),
        query.by_rule_on_path(row.table, row.path[0].chain, 7, row.family, row.netns),
    ]
    texts += [f"{field}={query.quote(value_of(row, field))}" for field in ("in", "out", "comm")]
    for text in texts:
        # An empty chain name is none, which no step of a path has.
        if name or "path" not in text:
            assert matched(trace, text) == {0}, text
        assert query.compile(query.compile(text).text).text == query.compile(text).text


def test_times_are_relative_to_the_newest_row_or_its_day() -> None:
    trace, rows = lab(), rows_of(lab)
    times = [row.time for row in rows]
    second = 1_000_000_000
    newest = rows[-1].time
    assert matched(trace, "time>-1s") == rows_with(rows, lambda row: row.time > newest - second)
    assert matched(trace, "time<=-250ms") == rows_with(
        rows, lambda row: row.time <= newest - second // 4
    )
    middle = sorted(times)[len(times) // 2]
    stamp = np.datetime_as_string(np.datetime64(middle, "ns"))
    late = rows_with(rows, lambda row: row.time > middle)
    assert matched(trace, f"time>{stamp}Z") == late
    assert matched(trace, f"time>{stamp}") == late
    assert matched(trace, f"time>{stamp.split('T')[1]}") == late
    # AND = matches the complete second, minute or day that is written
    for digits, span in ((19, second), (16, 60 * second), (10, 86400 * second)):
        at = middle // span * span
        text = stamp[:digits]
        assert matched(trace, f"time={text}") == {
            row.index for row in rows if at <= row.time < at + span
        }
    east = np.datetime_as_string(np.datetime64(middle + 7200 * second, "ns"))
    assert matched(trace, f"time>{east}+02:00") == late


def test_after_midnight_an_evening_hour_is_yesterdays() -> None:
    trace = one_row()
    midnight = 1_795_219_200_000_000_000
    part = next(trace.store.parts())
    part.columns["time"][:] = midnight - 600 * 10**9  # 23:50
    for newest in (midnight + 600 * 10**9, midnight - 1):
        assert matched(trace, "time>23:49 and time<23:51", newest=newest) == {0}
    assert matched(trace, "time>23:49", newest=midnight + 23 * 3600 * 10**9) == set()


def test_absurd_times_do_not_fail() -> None:
    trace = one_row()
    part = next(trace.store.parts())
    for time in (0, np.iinfo(np.int64).max):
        part.columns["time"][:] = time
        for text in ("time>12:30", "time>-900000000d", "time=9999-12-31", "time<1900-01-01"):
            matched(trace, text)
        assert matched(trace, "time>12:30 or time<=12:30", newest=time) == {0}


class Rules:
    """A ruleset that counts how often it is asked."""

    def __init__(self, texts: dict[tuple[str, int], str]) -> None:
        self.texts = texts
        self.asked = 0

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        self.asked += 1
        return self.texts.get((chain, rulenum)) if generation == 3 else None


def test_a_rule_text_is_searched_and_looked_up_once() -> None:
    trace = synthetic()
    rows = rows_of(synthetic)
    for part in trace.store.parts():
        part.columns["ruleset"][:] = 3
    try:
        decided = {(row.chain or "", row.rulenum or 0) for row in rows if row.match != "policy"}
        rules = Rules({key: f"-A {key[0]} --dport {key[1]}" for key in decided})
        expected = rows_with(rows, lambda row: row.match != "policy" and row.rulenum == 3)
        assert matched(trace, 'rule~"--dport 3$"', rulesets={0: rules}) == expected
        assert rules.asked < 40
        assert matched(trace, 'rule="-A INPUT --dport 5"', rulesets={0: rules}) == rows_with(
            rows, lambda row: (row.chain, row.rulenum, row.match) == ("INPUT", 5, "rule")
        )
        assert matched(trace, "rule=none", rulesets={0: rules}) == rows_with(
            rows, lambda row: row.match == "policy"
        )
        # AND a text that arrives later is found
        asked = query.compile("rule~dport")
        part = next(trace.store.parts())
        late = Rules({})
        context = query.Context(trace.store.names, rulesets={0: late})
        assert not asked.mask(part, context).any()
        late.texts = rules.texts
        assert asked.mask(part, context).any()
    finally:
        for part in trace.store.parts():
            part.columns["ruleset"][:] = 0


def test_namespaces_and_hosts_match_by_name_and_by_number() -> None:
    trace = one_row(netns=77)
    named = {(0, 77): "router", (0, 78): "other"}
    assert matched(trace, "netns=router", netns=named) == {0}
    assert matched(trace, "netns~^ROU", netns=named) == {0}
    assert matched(trace, "netns!=router", netns=named) == set()
    assert matched(trace, "netns=77 and netns~7 and netns in 77,78") == {0}
    assert matched(trace, "netns=router") == set()
    assert matched(trace, "netns=99999999999999") == set()
    assert matched(trace, "host=web1", hosts=("web1", "web2")) == {0}
    assert matched(trace, "host=web2 or host=nobody", hosts=("web1", "web2")) == set()
    assert matched(trace, "host~web and host=0", hosts=("web1", "web2")) == {0}


def test_a_name_first_seen_after_the_query_was_compiled_matches() -> None:
    # GIVEN a query for a chain that was never seen
    trace = one_row(b"FIRST")
    asked, context = query.compile("chain~late"), context_of(trace)
    part = next(trace.store.parts())
    assert not asked.mask(part, context).any()
    # WHEN the chain appears
    data = v4(6, "10.0.0.1", "10.0.0.2", tcp(1, 2, 2))
    trace.feed(Frame(Kind.ENTRY, entry(2, at=1000, packet=data).tobytes()))
    trace.feed(Frame(Kind.RULE, rule(2, 0, b"LATE", 1, at=1000).tobytes()))
    trace.feed(Frame(Kind.EXIT, leave(2, 1, at=1000).tobytes()))
    trace.finish()
    # THEN its row matches, and the names of another store are separate
    (part,) = trace.store.parts()
    assert asked.mask(part, context).tolist() == [False, True]
    other = one_row(b"LATER")
    (part,) = other.store.parts()
    assert asked.mask(part, context_of(other)).tolist() == [True]


def test_a_truncated_packet_matches_no_test_of_missing_fields() -> None:
    trace = one_row(packet=b"\x45\x00", caplen=2, len=2)
    assert matched(trace, "src=0.0.0.0 or src!=0.0.0.0 or proto=0 or sport=0 or tcp") == set()
    assert matched(trace, "src=none and proto=none and sport=none and flags=none") == {0}


def test_an_icmp_error_has_type_and_code() -> None:
    data = v4(1, "10.0.0.1", "10.0.0.2", struct.pack(">BBHI", 3, 13, 0, 0))
    trace = one_row(packet=data, caplen=len(data), len=len(data))
    assert matched(trace, "icmp=3/13 and icmp=3 and icmp!=3/3") == {0}
    assert matched(trace, "icmp=13 or icmp=3/1") == set()


def test_a_fragment_matches_by_id_and_offset() -> None:
    data = v4(17, "10.0.0.1", "10.0.0.2", b"x" * 16, frag=0x2000 | 185, ident=4711)
    trace = one_row(packet=data, caplen=len(data), len=len(data))
    assert trace.store.row(0).frag == "4711:1480+"
    assert matched(trace, "frag=4711 and frag=4711:1480+ and frag and frag!=4712") == {0}
    assert matched(trace, "frag=4711:1480 or frag=4711:0+ or frag=1480") == set()


def test_a_mark_matches_under_a_mask() -> None:
    trace = one_row(mark=0x1234)
    assert matched(trace, "mark&0xff=0x34 and mark&0xff00!=0 and mark=0x34/0xff") == {0}
    assert matched(trace, "mark&0xff=0x1234 or mark=0x33/0xff or mark&0xff=0xfffffffff") == set()


def test_an_empty_part_gives_an_empty_mask() -> None:
    trace = one_row()
    (part,) = trace.store.parts()
    columns = {name: column[:0] for name, column in part.columns.items()}
    empty = replace(part, columns=columns, begins=part.begins[:0], ends=part.ends[:0])
    for text in ("", "path=x", "time>-1s", "rule~x", "netns~1", "tcp or udp and not icmp"):
        assert query.compile(text).mask(empty, context_of(trace)).shape == (0,)


def test_conntrack_states_are_those_of_rows() -> None:
    for flags, info, state in (
        (record.F_CONNTRACK, 2, "NEW"),
        (record.F_CONNTRACK, 4, "RELATED"),
        (record.F_CONNTRACK, 9, None),
        (0, 7, "UNTRACKED"),
        (0, 2, None),
    ):
        trace = one_row(flags=flags | record.F_FIRST, ct_info=info)
        assert trace.store.row(0).ct_state == state
        assert matched(trace, f"ct_state={query.quote(state)}") == {0}
        assert matched(trace, "ct_state!=none") == ({0} if state else set())
