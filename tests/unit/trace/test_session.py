# SPDX-License-Identifier: GPL-2.0-only
"""Frames of a stream in, rows out."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.decoder import read
from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.trace import query
from ipttrace.trace.row import Row, Step
from ipttrace.trace.session import Trace
from tests.data import synth
from tests.data.records import MONO, Array, entry, leave, rule, tcp, udp, v4
from tests.data.traces import replay
from tests.paths import LAB

WALL = 1_700_000_000_000_000_000


def frame(kind: int, content: Any) -> Frame:
    return Frame(kind, json.dumps(content).encode())


def begun(**hello: Any) -> Trace:
    trace = Trace(1000)
    clock = {"mono": MONO, "wall": WALL}
    trace.feed(frame(Kind.HELLO, {"engine": "kernel", "clock": clock} | hello))
    return trace


def one_row(
    into: Array, *rules: Array, out: Array | None = None, trace: Trace | None = None
) -> Row:
    trace = trace or begun()
    call = int(into["call"][0])
    trace.feed(Frame(Kind.ENTRY, into.tobytes()))
    for each in rules:
        trace.feed(Frame(Kind.RULE, each.tobytes()))
    end = leave(call, len(rules)) if out is None else out
    assert trace.feed(Frame(Kind.EXIT, end.tobytes())) == 1
    return trace.store.row(trace.store.end - 1)


def test_a_forwarded_syn_has_every_field() -> None:
    row = one_row(
        entry(
            9,
            1500,
            v4(6, "10.0.0.1", "10.0.0.2", tcp(4000, 443, 2)),
            hook=2,
            mark=0x10,
            netns=4026531840,
            cpu=3,
            pid=812,
            comm=b"nginx",
            parent=4,
            mac=bytes.fromhex("525400000002 525400000001 0800"),
            mac_len=14,
            flags=record.F_FIRST | record.F_CONNTRACK,
            ct_info=2,
            ct_proto=6,
            ct_orig_src=bytes((10, 0, 0, 1)),
            ct_orig_sport=4000,
            ct_orig_dst=bytes((192, 0, 2, 1)),
            ct_orig_dport=8443,
            **{"in": b"eth0", "out": b"br0"},
        ),
        rule(9, 0, b"FORWARD", 2),
        rule(9, 1, b"DOCKER", 1, match=1),
        rule(9, 2, b"FORWARD", 3, match=2),
    )
    assert row.index == 0
    assert row.time == WALL + 1500
    assert (row.engine, row.skb, row.netns, row.cpu, row.pid) == (
        "kernel",
        0x1000,
        4026531840,
        3,
        812,
    )
    assert (row.comm, row.in_, row.out, row.family, row.hook) == (
        "nginx",
        "eth0",
        "br0",
        4,
        "FORWARD",
    )
    assert (row.table, row.chain, row.rulenum, row.match) == ("filter", "FORWARD", 3, "policy")
    assert row.path == (
        Step("FORWARD", 2, "rule"),
        Step("DOCKER", 1, "return"),
        Step("FORWARD", 3, "policy"),
    )
    assert (row.verdict, row.cost_ns, row.len, row.proto) == ("ACCEPT", 500, 40, "TCP")
    assert (row.src, row.sport, row.dst, row.dport) == ("10.0.0.1", 4000, "10.0.0.2", 443)
    assert (row.flags, row.icmp, row.frag, row.mark) == ("SYN", None, None, 16)
    assert (row.mac_src, row.mac_dst) == ("52:54:00:00:00:01", "52:54:00:00:00:02")
    assert (row.ct_state, row.ct_orig_src, row.ct_orig_sport) == ("NEW", "10.0.0.1", 4000)
    assert (row.ct_orig_dst, row.ct_orig_dport) == ("192.0.2.1", 8443)
    assert (row.call, row.parent, row.journey, row.partial) == (9, 4, 9, False)


def test_unknown_values_are_none() -> None:
    row = one_row(entry(1, 0, b"", skb=0), out=leave(1, 2, 99))
    assert (row.skb, row.in_, row.out, row.parent) == (None, None, None, None)
    assert (row.chain, row.rulenum, row.match, row.path) == (None, None, None, ())
    assert (row.src, row.dst, row.proto, row.sport, row.flags) == ("", "", "", None, None)
    assert (row.mac_src, row.ct_state, row.ct_orig_src) == (None, None, None)
    assert (row.verdict, row.partial) == ("99", True)


@pytest.mark.parametrize(
    ("info", "tracked", "state"),
    [
        (0, True, "ESTABLISHED"),
        (1, True, "RELATED"),
        (2, True, "NEW"),
        (3, True, "ESTABLISHED"),
        (4, True, "RELATED"),
        (7, False, "UNTRACKED"),
        (0, False, None),
        (200, True, None),
    ],
)
def test_conntrack_states_have_the_names_that_rules_use(
    info: int, tracked: bool, state: str | None
) -> None:
    flags = record.F_CONNTRACK if tracked else 0
    assert one_row(entry(1, flags=flags, ct_info=info)).ct_state == state


def test_a_conntrack_template_is_not_a_state() -> None:
    for flags, ct_flags in ((record.F_CONNTRACK, 0), (0, record.CT_STATE)):
        row = one_row(
            entry(1, flags=flags, ct_flags=ct_flags, ct_status=1 << 11, ct_mark=1, ct_zone=2)
        )
        assert (row.ct_state, row.ct_orig_src) == (None, None)
        assert (row.ct_mark, row.ct_zone) == (None, None)


@pytest.mark.parametrize(
    ("flags", "ct_flags", "info", "known"),
    [
        (record.F_CONNTRACK, 0, 2, ("NEW", 0x10, 7)),
        (record.F_CONNTRACK, record.CT_NO_MARK, 2, ("NEW", None, 7)),
        (0, record.CT_STATE, 3, ("ESTABLISHED", None, None)),
        (0, record.CT_INVALID, 0, ("INVALID", None, None)),
        # Nothing else makes it INVALID.
        (0, record.CT_INVALID, 7, ("UNTRACKED", None, None)),
        (record.F_CONNTRACK, record.CT_INVALID, 2, ("NEW", 0x10, 7)),
        (0, 0, 0, (None, None, None)),
    ],
)
def test_what_is_known_of_conntrack_is_shown_and_the_rest_is_empty(
    flags: int, ct_flags: int, info: int, known: tuple[object, ...]
) -> None:
    trace = begun()
    row = one_row(
        entry(1, flags=flags, ct_flags=ct_flags, ct_info=info, ct_mark=0x10, ct_zone=7),
        trace=trace,
    )
    assert (row.ct_state, row.ct_mark, row.ct_zone) == known
    # THEN queries see the same
    (part,) = trace.store.parts()
    names = ("ct_state", "ct_mark", "ct_zone")
    for name, value in zip(names, known, strict=True):
        text = f"{name}={'none' if value is None else value}"
        assert query.compile(text).mask(part, query.context_of(trace.store)).tolist() == [True]


@pytest.mark.parametrize(("flags", "known"), [(0, 33), (record.F_NO_LEN, None)])
def test_an_unknown_length_is_empty_and_no_query_for_lengths_matches_it(
    flags: int, known: int | None
) -> None:
    trace = begun()
    packet = v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, b"hello"))
    row = one_row(entry(1, packet=packet, flags=flags), trace=trace)
    assert row.len == known
    # THEN the bytes that were captured are read all the same
    assert (row.src, row.dport) == ("10.0.0.1", 53)
    (part,) = trace.store.parts()
    for text, unknown in (("len=none", True), ("len<1k", False), ("len!=7", False)):
        mask = query.compile(text).mask(part, query.context_of(trace.store))
        assert mask.tolist() == [unknown == (known is None)], text


def test_a_bridged_packet_has_its_ports() -> None:
    row = one_row(
        entry(1, physin=b"veth1", physout=b"veth\x1b2", physin_ifindex=4, physout_ifindex=5)
    )
    assert (row.physin, row.physout) == ("veth1", "veth\\x1b2")
    assert (one_row(entry(2)).physin, one_row(entry(3)).physout) == (None, None)


@pytest.mark.parametrize(
    ("verdict", "name"),
    [
        (0, "DROP"),
        (1, "ACCEPT"),
        (2, "STOLEN"),
        (0x30003, "QUEUE"),
        (4, "REPEAT"),
        (0xFFF30002, "STOLEN"),
    ],
)
def test_a_verdict_is_named_whatever_its_upper_bits(verdict: int, name: str) -> None:
    assert one_row(entry(1), out=leave(1, 0, verdict)).verdict == name


def test_icmp_fragments_and_tunnels_have_their_fields() -> None:
    ping = one_row(entry(1, 0, v4(1, "10.0.0.1", "10.0.0.2", struct.pack(">BBHHH", 8, 0, 0, 7, 1))))
    assert (ping.proto, ping.icmp, ping.sport) == ("ICMP", "8/0", None)
    first = one_row(entry(1, 0, v4(17, "10.0.0.1", "10.0.0.2", udp(1, 2), 0x2000, 555)))
    assert (first.frag, first.sport) == ("555:0+", 1)
    last = one_row(entry(1, 0, v4(17, "10.0.0.1", "10.0.0.2", bytes(8), 185, 555)))
    assert (last.frag, last.sport, last.proto) == ("555:1480", None, "UDP")
    assert one_row(entry(1, 0, v4(50, "10.0.0.1", "10.0.0.2", bytes(8)))).proto == "ESP"
    assert one_row(entry(1, 0, v4(253, "10.0.0.1", "10.0.0.2", bytes(8)))).proto == "253"
    null = one_row(entry(1, 0, v4(6, "10.0.0.1", "10.0.0.2", tcp(1, 2, 0))))
    assert null.flags == "NONE"


def test_ipv6_addresses_are_abbreviated() -> None:
    data = struct.pack(">IHBB", 0x60000000, 8, 17, 64) + bytes.fromhex(
        "20010db8000000000000000000000001 ff020000000000000000000000000002"
    )
    row = one_row(entry(1, 0, data + udp(546, 547), family=10))
    assert (row.family, row.src, row.dst, row.dport) == (6, "2001:db8::1", "ff02::2", 547)


def test_a_terminal_escape_in_a_chain_name_is_shown_escaped() -> None:
    row = one_row(entry(1, comm=b"\x1b[2J", table=b"fil\xffter"), rule(1, 0, b"\x1b]0;x\x07", 1))
    assert (row.comm, row.chain, row.table) == (r"\x1b[2J", r"\x1b]0;x\x07", r"fil\xffter")


def test_a_new_clock_applies_to_later_records() -> None:
    trace = begun()
    assert one_row(entry(1, 10), trace=trace).time == WALL + 10
    trace.feed(frame(Kind.CLOCK, {"mono": MONO, "wall": WALL + 3600}))
    assert one_row(entry(2, 20), trace=trace).time == WALL + 3620


def test_impossible_times_are_limited() -> None:
    trace = begun(clock={"mono": (1 << 63) - 1, "wall": 0})
    assert one_row(entry(1, time=5), trace=trace).time == 0
    trace = begun(clock={"mono": 0, "wall": (1 << 63) - 1})
    assert 0 <= one_row(entry(1, time=(1 << 64) - 1), trace=trace).time < 1 << 63


def test_a_complete_stream_gives_every_call_and_its_books() -> None:
    records = synth.make(800)
    stream = io.BytesIO()
    synth.write(stream, records, 300)
    stream.seek(0)
    trace = Trace()
    new = sum(trace.feed(each) for each in read(stream))
    assert new == len(records.entries) == len(trace.store)
    assert trace.ended is not None
    assert trace.hello["host"] == "router"
    assert trace.summary() == {
        "rows": new,
        "records": len(records),
        "lost": 0,
        "missed": 0,
        "engine": "kernel",
        "incomplete": 0,
    }


def test_the_summary_counts_lost_records_and_incomplete_calls() -> None:
    trace = begun()
    trace.feed(Frame(Kind.ENTRY, entry(1).tobytes()))
    trace.feed(frame(Kind.BOOKS, {"lost": [1, 2, 3], "missed": 4}))
    trace.feed(frame(Kind.END, {"lost": [1, 2, 4], "missed": 5, "reason": "done"}))
    summary = trace.summary()
    assert (summary["lost"], summary["missed"], summary["incomplete"]) == (7, 5, 1)
    assert trace.ended is not None
    assert trace.ended["reason"] == "done"


def test_notes_are_clean_and_bounded() -> None:
    trace = begun()
    trace.feed(frame(Kind.NOTE, {"level": "warn", "text": "disk\x1b[2J full"}))
    trace.feed(frame(Kind.NOTE, {"level": ["odd"], "text": "x" * 5000}))
    assert trace.notes[0] == ("warn", r"disk\x1b[2J full")
    assert trace.notes[1][0] == "info"
    for _ in range(5000):
        trace.feed(frame(Kind.NOTE, {"text": "again"}))
    assert len(trace.notes) <= 1000


def test_frames_of_a_later_version_are_ignored() -> None:
    assert begun().feed(Frame(200, b"\x00\x01")) == 0


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Kind.HELLO, {"engine": "kernel\x1b[31m"}),
        (Kind.HELLO, {"engine": ["kernel"]}),
        (Kind.HELLO, {"engine": "kernel", "clock": [1, 2]}),
        (Kind.CLOCK, {}),
        (Kind.CLOCK, {"mono": 1.5, "wall": 2}),
        (Kind.CLOCK, {"mono": -1, "wall": 2}),
        (Kind.CLOCK, {"mono": True, "wall": 2}),
        (Kind.CLOCK, {"mono": 0, "wall": 1 << 70}),
        (Kind.BOOKS, {"lost": "many"}),
        (Kind.BOOKS, {"lost": [1, None]}),
        (Kind.BOOKS, {"lost": [1] * 1000}),
        (Kind.BOOKS, {"missed": "no"}),
        (Kind.END, {"missed": [1]}),
        (Kind.NOTE, {"text": 5}),
        (Kind.NOTE, [1, 2]),
        (Kind.BOOKS, "text"),
    ],
)
def test_a_malformed_frame_is_rejected_with_one_line(kind: Kind, content: Any) -> None:
    trace = begun()
    with pytest.raises(ValueError, match=r"^[ -~]+$"):
        trace.feed(frame(kind, content))
    assert len(trace.summary()) == 6


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
_names = st.sampled_from(
    ["engine", "clock", "mono", "wall", "lost", "missed", "text", "level", "due"]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 9), st.dictionaries(_names, _json, max_size=4)),
            st.tuples(st.sampled_from([2, 3, 4]), st.integers(0, 2**32 - 1)),
        ),
        max_size=12,
    )
)
def test_any_frames_are_applied_or_rejected_with_one_line(
    content: list[tuple[int, Any]],
) -> None:
    trace = Trace(64)
    said: list[str] = []
    for kind, value in content:
        if isinstance(value, int):
            rng = np.random.default_rng(value)
            dtype = record.DTYPES[kind - 2]
            raw = rng.integers(0, 256, 20 * dtype.itemsize, dtype=np.uint8).view(dtype)
            raw["call"] = rng.integers(0, 20, 20)
            payload = Frame(kind, raw.tobytes())
        elif kind in (2, 3, 4):
            continue
        else:
            payload = frame(kind, value)
        try:
            trace.feed(payload)
        except ValueError as error:
            said.append(str(error))
    assert not [line for line in said if "\n" in line]
    trace.finish()
    trace.summary()
    rows = trace.store.rows(range(trace.store.first, trace.store.end))
    assert len(rows) == len(trace.store)
    assert all(0 <= row.time < 1 << 63 for row in rows)


def test_a_namespace_that_is_named_later_has_its_name() -> None:
    trace = begun(netns={"7": "old"})
    trace.feed(frame(Kind.NAMES, {"names": {}, "netns": {"8": "new"}}))
    assert trace.hello["netns"] == {"7": "old", "8": "new"}
    # AND a stream cannot fill the memory with names
    for start in range(0, 100_000, 5_000):
        many = {str(at): "x" for at in range(start, start + 5_000)}
        trace.feed(frame(Kind.NAMES, {"names": {}, "netns": many}))
    assert len(trace.hello["netns"]) <= 1 << 14
    with pytest.raises(StreamError):
        trace.feed(frame(Kind.NAMES, {"names": {}, "netns": ["x"]}))


def test_a_recording_of_an_earlier_layout_has_what_it_knew() -> None:
    # GIVEN a recording of the kernel engine from before records had ports and ct_flags
    trace = replay(LAB)
    assert "physin" not in {name for name, *_ in trace.hello["layout"]["kinds"]["entry"]["fields"]}
    rows = trace.store.rows(range(trace.store.first, trace.store.end))
    # THEN mark and zone are known of each connection, and what it could not know is empty
    tracked = [row for row in rows if row.ct_state not in (None, "UNTRACKED")]
    assert tracked
    assert None not in {row.ct_mark for row in tracked} | {row.ct_zone for row in tracked}
    assert {row.physin for row in rows} | {row.physout for row in rows} == {None}
    assert "INVALID" not in {row.ct_state for row in rows}
