# SPDX-License-Identifier: GPL-2.0-only
"""A damaged or forged stream is one clear line, in bounded time and memory."""

from __future__ import annotations

import copy
import io
import itertools
import json
import struct
import tracemalloc
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.budget import Budget
from ipttrace.stream.decoder import Decoder, read
from ipttrace.stream.frames import MAGIC, Frame, Kind, StreamError
from ipttrace.stream.tap import Tap
from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.rules.counters import CounterHistory
from ipttrace.trace.session import Trace
from ipttrace.view.formats import FORMATS, output
from tests.data import messages, neighbours, tables
from tests.paths import LAB

Frames = list[tuple[int, bytes]]

# Bytes for 600 kB of stream: rows, records that wait, what Python needs for parsed JSON.
MOST = 300 << 20

RULES = {
    "netns": 4026532456,
    "family": 4,
    "table": "filter",
    "backend": "legacy",
    "since": 1,
    "upto": 1,
    "mono": 1,
    "chains": {"INPUT": {"policy": "DROP", "rules": ["-p tcp -j ACCEPT", "-j DROP"]}},
}
COUNTERS = {**RULES, "chains": {"INPUT": {"policy": [1, 2], "rules": [[3, 4], [5, 6]]}}}


def framed(frames: Frames) -> bytes:
    """The frames as a stream with right checksums."""
    stream = bytearray()
    for kind, payload in frames:
        head = struct.pack("<BB2xI", kind, 0, len(payload))
        stream += MAGIC + head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload
    return bytes(stream)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _seed() -> Frames:
    with LAB.open("rb") as file:
        first, *rest = ((frame.kind, frame.payload) for frame in read(file))
    others: list[tuple[Kind, object]] = [
        (Kind.RULES, RULES),
        (Kind.COUNTERS, COUNTERS),
        (Kind.NEIGHBOURS, neighbours.tables()),
        (Kind.NEIGHBOURS, neighbours.namespace()),
        (Kind.NEIGHBOURS, neighbours.news(2, neighbours_changed=[])),
        (Kind.TABLES, tables.table()),
        (Kind.TABLES, tables.table("conntrack", 1)),
        (Kind.TABLES, tables.look(1)),
        (Kind.NOTE, {"level": "warn", "text": "a note"}),
        (Kind.CLOCK, {"mono": 1, "wall": messages.WALL}),
    ]
    return [first, *((kind, as_json(value)) for kind, value in others), *rest]


SEED = _seed()


def consume(stream: bytes) -> Trace:
    """Reads a stream as the program does, and writes some rows in every format."""
    trace, tap, decoder = Trace(capacity=65536), Tap(), Decoder()
    try:
        for start in range(0, len(stream), 1 << 16):
            for frame in decoder.feed(stream[start : start + (1 << 16)]):
                tap.feed(frame)
                for part in frame.portions(5000):
                    trace.feed(part)
        decoder.finish()
    finally:
        trace.finish()
        seqs = range(max(trace.store.end - 20, trace.store.first), trace.store.end)
        for name in FORMATS:
            one = output(name)
            one.begin(trace.hello)
            one.rows(trace.store, seqs)
            one.end()
        trace.summary()
        for netns in (*trace.rulesets.namespaces(), 0):
            trace.rulesets.tables(netns)
        trace.neighbours.tables()
        for known in trace.kernel_tables.namespaces():
            assert all(table.level for table in known.tables.values())
        if trace.hello:
            tap.start(io.BytesIO())
    return trace


def error_of(stream: bytes) -> str:
    """The error of a stream, "" if it has none; anything but a StreamError is raised."""
    try:
        consume(stream)
    except StreamError as error:
        return str(error)
    return ""


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["<u8", "O", "S0", "V8", "(1000000000,)u1", "u1,u1", "S9999999999"]),
    st.sampled_from([1 << 31, 1 << 63, (1 << 64) - 1, -1, 10**30]),
    st.lists(st.integers(-2, 300), max_size=4),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
)


def _spoil(value: Any, draw: Callable[[Any], Any]) -> Any:
    """`value` with one part of it replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {name: some for name, some in value.items() if name != key}
        return {**value, key: _spoil(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _spoil(value[at], draw), *value[at + 1 :]]
    return draw(HOSTILE)


@st.composite
def mutations(draw: Any) -> bytes:
    """The seed with some frames changed, most of them with right checksums."""
    frames = list(SEED)
    for _ in range(draw(st.integers(1, 4))):
        # The first frames are all different.
        at = draw(st.one_of(st.integers(0, 8), st.integers(0, len(frames) - 1)))
        kind, payload = frames[at]
        how = draw(
            st.sampled_from(
                ["json", "json", "json", "bytes", "drop", "twice", "kind", "cut", "swap"]
            )
        )
        if how == "json" and frames[at] in SEED and payload[:1] == b"{":
            frames[at] = kind, as_json(_spoil(json.loads(payload), draw))
        elif how == "drop":
            del frames[at]
        elif how == "twice":
            frames.insert(draw(st.integers(0, len(frames))), frames[at])
        elif how == "kind":
            frames[at] = draw(st.integers(0, 15)), payload
        elif how == "cut":
            frames[at] = kind, payload[: draw(st.integers(0, len(payload)))]
        elif how == "swap":
            frames[at], frames[-1] = frames[-1], frames[at]
        else:
            spoiled = bytearray(payload)
            for _ in range(draw(st.integers(1, 40))):
                if spoiled:
                    spoiled[draw(st.integers(0, len(spoiled) - 1))] = draw(st.integers(0, 255))
            frames[at] = kind, bytes(spoiled)
    stream = bytearray(framed(frames))
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(stream) - 1))
        stream[place : place + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(stream)


@settings(max_examples=120, deadline=None)
@given(mutations())
def test_any_mutation_of_a_recording_is_read_or_one_short_line_in_bounded_memory(
    stream: bytes,
) -> None:
    tracemalloc.start()
    try:
        error = error_of(stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.isprintable()
    assert len(error) <= 300
    assert peak < MOST


def peak_of(do: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def hello(**changes: Any) -> tuple[int, bytes]:
    """HELLO with a changed layout: `changes` by the records' kind."""
    layout: dict[str, Any] = copy.deepcopy(record.layout())
    layout["kinds"].update(changes)
    about = {**messages.hello(), "format": 1, "layout": layout}
    return Kind.HELLO, as_json(about)


def fields(*some: object) -> dict[str, object]:
    return {"size": 16, "fields": [["call", "<u8", 0, 1], ["time", "<u8", 8, 1], *some]}


ABSURD = {
    "1 byte": {"size": 1, "fields": [["call", "u1", 0, 1]]},
    "no call": {"size": 8, "fields": [["time", "<u8", 0, 1]]},
    "huge offset": fields(["skb", "<u8", 10**30, 1]),
    "huge count": fields(["skb", "u1", 0, 10**30]),
    "count of 2**31": fields(["skb", "u1", 0, 1 << 31]),
    "negative offset": fields(["skb", "u1", -1, 1]),
    "fractional": fields(["skb", "u1", 0.5, 1]),
    "infinite": fields(["skb", "u1", float("inf"), 1]),
    "size inf": {**fields(), "size": float("inf")},
    "size true": {**fields(), "size": True},
    "twice": fields(["call", "<u8", 0, 1]),
    "no name": fields(["", "u1", 0, 1]),
    "long name": fields(["x" * 20_000, "u1", 0, 1]),
    "long type": fields(["skb", "x" * 20_000, 0, 1]),
    "array type": fields(["skb", "(1000000000,)u1", 0, 1]),
    "two types": fields(["skb", "u1,u1", 0, 1]),
    "object": fields(["skb", "O", 0, 1]),
    "text for a number": fields(["skb", "S8", 0, 1]),
    "number for a text": fields(["table", "<u8", 0, 1]),
    "long text": fields(["table", "S99999999999", 0, 1]),
    "many": fields(*([f"f{number}", "u1", 0, 1] for number in range(10_000))),
    "no list": {"size": 16, "fields": 7},
    "list of numbers": {"size": 16, "fields": [1, 2]},
}


@pytest.mark.parametrize("entry", ABSURD.values(), ids=ABSURD)
def test_an_absurd_layout_is_one_short_line(entry: dict[str, object]) -> None:
    error = error_of(framed([hello(entry=entry)]))
    assert "record layout is not valid" in error
    assert len(error) <= 300


def test_small_entry_records_do_not_multiply_in_memory() -> None:
    # GIVEN 4 MB of the smallest entry records that a layout can describe
    entries = np.zeros(16_384, "<u8,<u8")
    entries["f0"] = np.arange(len(entries))
    frames = [hello(entry=fields()), *[(Kind.ENTRY, entries.tobytes())] * 16]
    assert peak_of(lambda: error_of(framed(frames))) < MOST


def test_a_frame_of_more_records_than_any_writer_writes_is_damage() -> None:
    frames = [hello(entry=fields()), (Kind.ENTRY, bytes(16 << 20))]
    assert "1048576 records" in error_of(framed(frames))


def test_a_long_value_in_an_error_is_cut() -> None:
    for frame in (
        (Kind.HELLO, as_json({"format": "x" * 20_000})),
        hello(entry={"size": "9" * 20_000, "fields": []}),
    ):
        assert 0 < len(error_of(framed([frame]))) <= 300
    engine = (Kind.HELLO, as_json({**json.loads(hello()[1]), "engine": "\x1b" * 20_000}))
    error = error_of(framed([engine]))
    assert len(error) <= 300
    assert error.isprintable()


@pytest.mark.parametrize(
    "kind", [Kind.HELLO, Kind.NOTE, Kind.BOOKS, Kind.RULES, Kind.NEIGHBOURS, Kind.TABLES]
)
def test_json_that_no_agent_writes_is_refused_by_its_length(kind: Kind) -> None:
    head = MAGIC + struct.pack("<BB2xII", kind, 0, 9 << 20, 0)
    decoder = Decoder()
    decoder.feed(framed([hello()]))
    with pytest.raises(StreamError, match="a frame of 9437184 bytes"):
        decoder.feed(head)


def test_neighbours_without_end_are_an_error_in_time() -> None:
    # GIVEN namespaces with many devices that have many parameters each
    parms = {f"parameter {number}": 1 for number in range(60)}
    devices = [
        neighbours.device(index, "d", parms={"4": parms, "6": parms}) for index in range(1, 900)
    ]
    trace = Trace()
    trace._budget = Budget(64 << 20)
    frames = (
        Frame(Kind.NEIGHBOURS, as_json(neighbours.namespace(netns=netns, devices=devices)))
        for netns in itertools.count(1)
    )
    with pytest.raises(StreamError, match="more than 64 MB: too many neighbours"):
        deque(map(trace.feed, frames), 0)


def test_a_namespace_that_is_gone_takes_no_memory() -> None:
    known = Neighbours()
    known.feed(neighbours.namespace())
    assert known.size > 10_000
    known.feed({"mono": 1, "gone": [neighbours.ROUTER]})
    assert known.size == 0


def test_kernel_tables_without_end_are_an_error_in_time() -> None:
    # GIVEN namespaces whose tables change each second, with as many values as a frame may have
    values = {f"value {number}": 1 for number in range(51)}
    trace = Trace()
    trace._budget = Budget(64 << 20)
    frames = (
        Frame(Kind.TABLES, as_json(tables.table("ipv4", second, netns, **values)))
        for netns in itertools.count(1)
        for second in range(100)
    )
    with pytest.raises(StreamError, match="more than 64 MB: too many kernel tables"):
        deque(map(trace.feed, frames), 0)


def test_counters_without_end_forget_the_oldest_tables() -> None:
    history = CounterHistory()
    for number in range(300):
        chains: dict[str, object] = {f"{name:0128}": {"rules": []} for name in range(1000)}
        history.feed({**COUNTERS, "table": str(number), "chains": chains}, 0)
    assert 1 << 20 < history.size <= 64 << 20
    assert history.of((RULES["netns"], 4, "299")) is not None  # type: ignore[arg-type]
    assert history.of((RULES["netns"], 4, "0")) is None  # type: ignore[arg-type]


def test_a_tap_forgets_the_oldest_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipttrace.stream.tap._ROOM", 1 << 20)
    tap = Tap()
    tap.feed(Frame(*hello()))
    text = "x" * 100_000
    for number in range(100):
        chains = {"INPUT": {"policy": None, "rules": [text]}}
        tap.feed(Frame(Kind.RULES, as_json({**RULES, "table": str(number), "chains": chains})))
    sink = io.BytesIO()
    tap.start(sink)
    assert len(sink.getvalue()) < 2 << 20
    assert b'"table": "99"' in sink.getvalue()


def test_notes_of_one_portion_are_each_seen_once() -> None:
    trace = Trace()
    trace.feed(Frame(*hello()))
    seen = 0
    for number in range(2500):
        trace.feed(Frame(Kind.NOTE, as_json({"text": str(number)})))
        assert [text for _, text in trace.notes_after(seen)] == [str(number)]
        seen = trace.note_count
    assert len(trace.notes) <= 1000
