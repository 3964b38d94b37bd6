# SPDX-License-Identifier: GPL-2.0-only
"""Recording while watching: the file is a stream of its own, from the key press on."""

from __future__ import annotations

import io

import pytest

from ipttrace.stream.decoder import Decoder, read
from ipttrace.stream.frames import Kind
from ipttrace.stream.tap import Tap
from ipttrace.stream.writer import Writer
from ipttrace.trace.session import Trace
from tests.data import messages, streams, tables


def test_a_recording_begun_in_the_middle_reads_as_a_stream_with_the_clock_of_then() -> None:
    # GIVEN a stream of which 400 rows and a step of the clock have gone by
    tap, decoder = Tap(), Decoder()
    clock = io.BytesIO()
    Writer(clock).clock(0, streams.WALL + 5_000_000_000)
    before = streams.hello() + streams.rows(400) + clock.getvalue()
    for frame in decoder.feed(before):
        tap.feed(frame)
    # WHEN it is recorded from here, and ended
    sink = io.BytesIO()
    tap.start(sink)
    for frame in decoder.feed(streams.rows(80, 400) + streams.books(calls=480)):
        tap.feed(frame)
    tap.stop(messages.books())
    for frame in decoder.feed(streams.rows(80, 480)):
        tap.feed(frame)
    # THEN the file has the rows of that time, with their wall clock, and an end
    sink.seek(0)
    trace = Trace()
    for frame in read(sink):
        trace.feed(frame)
    assert trace.store.end == 80
    assert trace.store.rows([0])[0].time >= streams.WALL + 5_000_000_000
    assert trace.ended is not None
    assert not tap.open


def test_nothing_can_be_recorded_before_the_stream_has_begun() -> None:
    with pytest.raises(ValueError, match="not started"):
        Tap().start(io.BytesIO())


def test_the_newest_rules_of_each_table_come_first_and_once() -> None:
    tap, decoder = Tap(), Decoder()
    sink = io.BytesIO()
    writer = Writer(sink)
    for since in (1, 4):
        for table in ("filter", "nat"):
            writer.message(
                Kind.RULES,
                {"netns": 1, "family": 4, "table": table, "since": since, "chains": {}},
            )
    for frame in decoder.feed(streams.hello() + sink.getvalue()):
        tap.feed(frame)
    out = io.BytesIO()
    tap.start(out)
    frames = Decoder().feed(out.getvalue())
    assert [frame.kind for frame in frames] == [Kind.HELLO, Kind.RULES, Kind.RULES]
    assert [frame.json["since"] for frame in frames[1:]] == [4, 4]


def test_the_newest_tables_of_each_namespace_that_exists_come_first() -> None:
    tap, decoder = Tap(), Decoder()
    sink = io.BytesIO()
    writer = Writer(sink)
    for second in range(3):
        for netns in (tables.ROUTER, tables.CLIENT):
            for name in ("ipv4", "conntrack"):
                frame = tables.table(name, second, netns)
                writer.message(Kind.TABLES, messages.message(frame))
        writer.message(Kind.TABLES, messages.message(tables.look(second)))
    gone = {"mono": tables.T0 + 2 * tables.SECOND, "gone": [tables.CLIENT]}
    writer.message(Kind.TABLES, messages.message(gone))
    for frame_ in decoder.feed(streams.hello() + sink.getvalue()):
        tap.feed(frame_)
    out = io.BytesIO()
    tap.start(out)
    _, *frames = Decoder().feed(out.getvalue())
    assert [(one.json["netns"], one.json["table"]) for one in frames] == [
        (tables.ROUTER, "ipv4"),
        (tables.ROUTER, "conntrack"),
    ]
    assert {one.json["mono"] for one in frames} == {tables.T0 + 2 * tables.SECOND}


class Full:
    def write(self, data: bytes | memoryview, /) -> None:
        raise OSError(28, "No space left on device")


def test_a_recording_begun_in_the_middle_has_the_full_names_told_before() -> None:
    tap, stream = Tap(), io.BytesIO()
    writer = Writer(stream)
    writer.hello(messages.hello())
    names = {f"a~{number:04x}": "long" * number for number in range(1001)}
    writer.names(names)
    for frame in Decoder().feed(stream.getvalue()):
        tap.feed(frame)
    sink = io.BytesIO()
    tap.start(sink)
    sink.seek(0)
    first, *others = read(sink)
    assert first.kind == Kind.HELLO
    assert [frame.kind for frame in others] == [Kind.NAMES, Kind.NAMES]
    assert {short: full for one in others for short, full in one.json["names"].items()} == names


def test_a_recording_begun_in_the_middle_knows_the_places_named_before() -> None:
    tap, stream = Tap(), io.BytesIO()
    writer = Writer(stream)
    writer.hello(messages.hello())
    writer.places({"places": {"1": "ip_forward+0x31"}, "reasons": {"12": "IP_RPFILTER"}})
    for frame in Decoder().feed(stream.getvalue()):
        tap.feed(frame)
    sink = io.BytesIO()
    tap.start(sink)
    sink.seek(0)
    kinds = {frame.kind: frame for frame in read(sink)}
    assert kinds[Kind.PLACES].json["places"] == {"1": "ip_forward+0x31"}


def test_a_full_disk_ends_the_recording_and_not_the_stream() -> None:
    tap, decoder = Tap(), Decoder()
    for frame in decoder.feed(streams.hello()):
        tap.feed(frame)
    with pytest.raises(OSError, match="No space"):
        tap.start(Full())
    assert not tap.open
    for frame in decoder.feed(streams.rows(4)):
        tap.feed(frame)
