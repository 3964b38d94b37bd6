# SPDX-License-Identifier: GPL-2.0-only
"""Fragments are related to their packet, and marked if something is wrong, or nothing is said."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace import query
from ipttrace.trace.fragments import FAULTS, Fragments, index_of
from ipttrace.trace.session import Trace
from tests.data import tables
from tests.data.records import MONO, entry, leave, rule, v4
from tests.data.stations import begun, feed, records, station
from tests.data.streams import WALL
from tests.data.tables import ROUTER, SECOND
from tests.data.traces import feed_records
from tests.lab.fragments import datagram, piece4, piece6

SIZE = 1600
DATAGRAM = datagram(SIZE)
HALVES = [(0, 800), (800, SIZE)]


class Rows:
    """A trace to which packets are added, each a row of its own skb."""

    def __init__(self) -> None:
        self.trace = Trace()
        hello = {"engine": "kernel", "clock": {"mono": MONO, "wall": WALL}}
        self.trace.feed(Frame(Kind.HELLO, json.dumps(hello).encode()))
        self._calls = 0

    def add(self, packet: bytes, at: float = 0, skb: int = 0, **fields: Any) -> int:
        """Adds a row, `at` s into the trace; returns its number."""
        self._calls += 1
        call, when = self._calls, int(at * SECOND) + self._calls * 1000
        given_: dict[str, Any] = {"skb": skb or 0x10000 + call, "netns": ROUTER, "hook": 0}
        given_["family"] = 2 if packet[0] >> 4 == 4 else 10
        made = entry(call, when, packet, **{**given_, **fields})
        last = leave(call, 1, fields.get("verdict", 1), when + 500, skb=given_["skb"])
        feed_records(self.trace, made, rule(call, 0, b"c", 1, at=when), last)
        self.trace.finish()
        return self.trace.store.end - 1

    def tables(self, *frames: dict[str, Any]) -> None:
        for frame in frames:
            self.trace.feed(Frame(Kind.TABLES, json.dumps(frame).encode()))

    def of(self, seq: int) -> Fragments | None:
        row = self.trace.store.row(seq)
        return index_of(self.trace.store).of_row(seq, row.journey)

    def faults(self) -> list[str]:
        """The faults of each row."""
        index = index_of(self.trace.store)
        bits = np.concatenate([index.faults(part) for part in self.trace.store.parts()])
        return [
            ",".join(name for name, bit in FAULTS.items() if one & bit) for one in bits.tolist()
        ]

    def matched(self, text: str) -> list[int]:
        asked, context = query.compile(text), query.context_of(self.trace.store)
        parts = self.trace.store.parts()
        return [
            int(at) + part.first
            for part in parts
            for at in np.flatnonzero(asked.mask(part, context))
        ]


def whole4(number: int = 7, payload: bytes = DATAGRAM) -> bytes:
    return v4(17, "10.5.0.5", "10.9.0.9", payload, ident=number)


def whole6(payload: bytes = DATAGRAM) -> bytes:
    raw = piece6(7, payload, 0, len(payload))
    return raw[:4] + struct.pack("!HB", len(payload), 17) + raw[7:40] + payload


def spans(held: Fragments | None) -> list[tuple[int, int]]:
    assert held is not None
    return [(one.start, one.end) for one in held.pieces]


def test_a_packet_and_its_fragments_name_each_other_whatever_their_order() -> None:
    rows = Rows()
    parts = [rows.add(piece4(7, DATAGRAM, *span)) for span in reversed(HALVES)]
    whole = rows.add(whole4())
    assert spans(rows.of(whole)) == HALVES
    for seq in parts:
        held = rows.of(seq)
        assert held is not None
        assert (held.complete, held.is_fragment) == (True, True)
        assert held.whole is not None
        assert held.whole[0] == whole
        assert [one.own for one in held.pieces].count(True) == 1
    assert rows.faults() == ["", "", ""]


@pytest.mark.parametrize(
    "other",
    [
        whole4(8),
        whole4(7, datagram(SIZE + 8)),
        v4(6, "10.5.0.5", "10.9.0.9", DATAGRAM, ident=7),
        v4(17, "10.5.0.6", "10.9.0.9", DATAGRAM, ident=7),
    ],
    ids=["another number", "another length", "another protocol", "another source"],
)
def test_another_packet_is_not_related(other: bytes) -> None:
    rows = Rows()
    for span in HALVES:
        rows.add(piece4(7, DATAGRAM, *span))
    assert rows.of(rows.add(other)) is None


def test_a_packet_in_another_namespace_is_not_related() -> None:
    rows = Rows()
    for span in HALVES:
        rows.add(piece4(7, DATAGRAM, *span))
    assert rows.of(rows.add(whole4(), netns=ROUTER + 1)) is None
    assert rows.of(rows.add(whole4(), at=70)) is None  # far later


def test_without_all_fragments_only_the_same_buffer_relates_them() -> None:
    rows = Rows()
    rows.add(piece4(7, DATAGRAM, 800, SIZE))
    assert rows.of(rows.add(whole4())) is None
    last = rows.add(piece4(8, DATAGRAM, 800, SIZE), skb=0x99)
    whole = rows.add(whole4(8), skb=0x99, flags=record.F_FOLLOWED)
    assert rows.trace.store.row(last).journey == rows.trace.store.row(whole).journey
    held = rows.of(whole)
    assert spans(held) == [(800, SIZE)]
    assert held is not None
    assert not held.complete


def test_a_number_that_is_used_again_is_another_packet() -> None:
    rows = Rows()
    first = [rows.add(piece4(7, DATAGRAM, *span)) for span in HALVES]
    rows.add(whole4())
    again = [rows.add(piece4(7, DATAGRAM, *span), at=1) for span in [(0, 1200), (1200, SIZE)]]
    second = rows.add(whole4(), at=1)
    assert spans(rows.of(first[0])) == HALVES
    assert spans(rows.of(second)) == [(0, 1200), (1200, SIZE)]
    held = rows.of(again[1])
    assert held is not None
    assert held.whole is not None
    assert held.whole[0] == second
    assert rows.faults() == [""] * 6


def test_a_fragment_with_several_rows_is_named_once() -> None:
    rows = Rows()
    for table in (b"early", b"raw"):
        rows.add(piece4(7, DATAGRAM, 0, 800), skb=0x50, table=table)
    rows.add(piece4(7, DATAGRAM, 800, SIZE))
    assert {*spans(rows.of(rows.add(whole4())))} == {*HALVES}
    assert rows.faults() == [""] * 4


OVERLAPS = [
    ([(0, 800), (400, SIZE)], [0, 1]),
    ([(0, 800), (0, 400)], [0, 1]),
    ([(800, SIZE), (0, 808)], [0, 1]),
    ([(0, 800), (800, 1200), (1000, SIZE)], [1, 2]),
    ([(0, 800), (0, 800), (800, SIZE)], []),  # a copy, which the kernel ignores
    ([(0, 800), (800, SIZE), (0, 1200), (1200, SIZE)], []),  # two packets
    ([(0, 800), (400, SIZE), (0, 800), (800, SIZE)], [0, 1]),  # dropped; then another
]


@pytest.mark.parametrize("piece", [piece4, piece6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(("pieces", "marked"), OVERLAPS)
def test_fragments_that_overlap_are_marked(
    piece: Any, pieces: list[tuple[int, int]], marked: list[int]
) -> None:
    rows = Rows()
    for span in pieces:
        rows.add(piece(7, DATAGRAM, *span))
    assert rows.matched("frag_fault=overlap") == marked


@pytest.mark.parametrize(
    ("packet", "portless"),
    [
        (piece4(7, bytes(40), 0, 16, protocol=6), False),
        (piece4(7, bytes(40), 0, 0, protocol=17), True),
        (piece4(7, bytes(40), 0, 3, protocol=17), True),
        (piece4(7, bytes(40), 0, 8, protocol=17), None),
        (piece4(7, bytes(40), 0, 24, protocol=6), None),
        (piece4(7, bytes(40), 8, 16, protocol=6), None),
        (piece4(7, bytes(40), 0, 8, protocol=1), None),
        (piece6(7, bytes(40), 0, 8, protocol=6), False),
        # Destination options (60) of 24 bytes, of which 16 are here: the ports are elsewhere.
        (piece6(7, bytes([17, 2]) + bytes(38), 0, 16, protocol=60), True),
        (piece6(7, bytes([17, 0]) + bytes(38), 0, 16, protocol=60), None),
    ],
    ids=range(10),
)
def test_a_first_fragment_without_its_transport_header_is_marked(
    packet: bytes, portless: bool | None
) -> None:
    rows = Rows()
    seq = rows.add(packet)
    assert rows.matched("frag_fault=short") == ([] if portless is None else [seq])
    held = rows.of(seq)
    assert held is not None
    assert held.pieces[0].portless == bool(portless)


def waiting(rows: Rows) -> None:
    """The kernel's tables at the beginning, for which reassembly waits 30 s."""
    frame = {**tables.table(), "mono": MONO - SECOND}
    rows.tables(frame, {"mono": MONO - SECOND})


def timeouts(count: int, second: float) -> Iterable[dict[str, Any]]:
    mono = MONO + int(second * SECOND)
    more = {"ReasmTimeout": tables.IPV4["ReasmTimeout"] + count}
    yield {**tables.table("ipv4", 1, **more), "mono": mono, "since": mono - SECOND}
    yield {"mono": mono}


def test_a_packet_that_the_kernel_gave_up_is_marked() -> None:
    rows = Rows()
    waiting(rows)
    rows.add(piece4(7, DATAGRAM, 0, 800))
    for span in HALVES:
        rows.add(piece4(8, DATAGRAM, *span))
    rows.add(whole4(8))
    assert rows.matched("frag_fault") == []
    index = index_of(rows.trace.store)
    before = index.version
    rows.tables(*timeouts(1, 30.7), {"mono": MONO + 40 * SECOND})
    assert rows.matched("frag_fault=incomplete") == [0]
    assert index.version > before
    held = rows.of(0)
    assert held is not None
    assert (held.waits, held.whole) == (30, None)


@pytest.mark.parametrize(
    ("count", "second", "until"),
    [(0, 30.7, 40), (1, 30.7, 40), (2, 20, 40), (2, 30.7, 31), (2, 37, 40)],
    ids=["none counted", "fewer than packets", "before", "not known yet", "later"],
)
def test_without_the_kernel_s_counter_no_packet_is_said_to_be_given_up(
    count: int, second: float, until: float
) -> None:
    rows = Rows()
    waiting(rows)
    for number in (7, 8):
        rows.add(piece4(number, DATAGRAM, 0, 800))
    rows.tables(*timeouts(count, second), {"mono": MONO + int(until * SECOND)})
    assert rows.matched("frag_fault") == []


def test_a_trace_without_the_kernel_s_tables_says_nothing_of_timeouts() -> None:
    rows = Rows()
    rows.add(piece4(7, DATAGRAM, 0, 800))
    rows.add(whole4(9), at=99)
    assert rows.faults() == ["", ""]


def test_a_drop_for_want_of_the_other_fragments_marks_them_without_a_counter() -> None:
    # GIVEN a fragment with a row, and no tables of the kernel
    names: dict[str, Any] = {"places": {}, "stacks": {}, "reasons": {"77": "FRAG_REASM_TIMEOUT"}}
    trace = begun(names)
    fragment = piece4(7, DATAGRAM, 0, 800)
    rows = feed(trace, 10, 0, packet=fragment, skb=0x66)
    assert index_of(trace.store).faults(next(trace.store.parts())).tolist() == [0]
    # WHEN it is dropped 30 s later
    late = 30 * SECOND
    trace.feed(records(Kind.STATION, station(99, "dropped", late, fragment, skb=0x66, reason=77)))
    trace.finish()
    # THEN both rows are marked
    assert trace.store.end == 2
    assert index_of(trace.store).faults(next(trace.store.parts())).tolist() == [4, 4]
    held = index_of(trace.store).of_row(0, rows[0].journey)
    assert held is not None
    assert held.whole is None


def test_an_ipv6_packet_is_related_by_the_buffer_of_its_last_fragment() -> None:
    rows = Rows()
    rows.add(piece6(7, DATAGRAM, 0, 800))
    rows.add(piece6(7, DATAGRAM, 800, SIZE), skb=0x77)
    # It has lost the number: without the same buffer, it may be any packet.
    assert rows.of(rows.add(whole6())) is None
    whole = rows.add(whole6(), skb=0x77, flags=record.F_FOLLOWED)
    held = rows.of(whole)
    assert spans(held) == HALVES
    assert held is not None
    assert held.complete


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([4, 6]), st.binary(max_size=80)), min_size=1, max_size=9))
def test_no_bytes_break_it(packets: list[tuple[int, bytes]]) -> None:
    rows = Rows()
    good = {4: piece4(7, DATAGRAM, 0, 800), 6: piece6(7, DATAGRAM, 0, 800)}
    for version, raw in packets:
        packet = raw + good[version][len(raw) :] if len(raw) % 2 else raw
        rows.add(packet or b"\0")
    rows.faults()
    for seq in range(rows.trace.store.end):
        rows.of(seq)


def test_a_flood_of_fragments_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipttrace.trace.fragments.index._MOST", 50)
    rows = Rows()
    for number in range(120):
        rows.add(piece4(number, DATAGRAM, 0, 800))
        if not number % 40:
            rows.faults()
    assert rows.faults() == [""] * 120
    assert rows.of(0) is None
    assert rows.of(119) is not None
    assert len(index_of(rows.trace.store)._state.pieces) == 50
