# SPDX-License-Identifier: GPL-2.0-only
"""A stream that was damaged, cut off or made by an enemy: rows up to there, one clear error."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.decoder import Decoder, read
from ipttrace.stream.frames import MAGIC, MAX_PAYLOAD, Frame, Kind, StreamError
from ipttrace.stream.writer import Writer
from tests.data.messages import end, hello


def exits(count: int) -> record.Records:
    records = np.zeros(count, record.EXIT_DTYPE)
    records["call"] = np.arange(count)
    return records


def recorded(count: int = 5) -> bytes:
    """A whole stream: hello, exits, a note, the end."""
    file = io.BytesIO()
    writer = Writer(file)
    writer.hello(hello(host="here"))
    writer.records(record.EXIT, exits(count))
    writer.note("info", "a note")
    writer.end(end())
    return file.getvalue()


def frame(kind: int, payload: bytes) -> bytes:
    head = struct.pack("<B3xI", kind, len(payload))
    return MAGIC + head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_frames_are_the_same_however_the_bytes_come(data: st.DataObject) -> None:
    # GIVEN a stream cut into portions at any places
    stream = recorded()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    portions = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    # WHEN it is read
    decoder = Decoder()
    kinds = [one.kind for portion in portions for one in decoder.feed(portion)]
    # THEN nothing is missing
    decoder.finish()
    assert kinds == [Kind.HELLO, Kind.EXIT, Kind.NOTE, Kind.END]


def test_many_records_are_cut_into_frames_that_a_reader_takes() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.hello(hello())
    writer.records(record.EXIT, exits(100_000))
    file.seek(0)
    found = [one.records for one in read(file) if one.is_records]
    assert len(found) > 1
    assert np.concatenate([part["call"] for part in found]).tolist() == list(range(100_000))


def test_a_file_cut_off_gives_its_rows_and_then_says_so() -> None:
    # GIVEN a recording that ends in the middle of a frame
    file = io.BytesIO(recorded()[:-10])
    # WHEN it is read THEN the frames before the end come first
    frames: list[Frame] = []
    with pytest.raises(StreamError, match="cut off at byte"):
        frames.extend(read(file))
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.EXIT, Kind.NOTE]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(recorded()) - 1), st.integers(1, 255))
def test_a_flipped_bit_anywhere_is_noticed(place: int, flip: int) -> None:
    # GIVEN a stream with one byte changed
    stream = bytearray(recorded())
    stream[place] ^= flip
    # THEN reading it ends in a StreamError and in nothing else
    with pytest.raises(StreamError) as error:
        list(read(io.BytesIO(bytes(stream))))
    assert "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_no_stream(noise: bytes) -> None:
    with pytest.raises(StreamError):
        list(read(io.BytesIO(noise)))


def test_a_frame_longer_than_any_is_refused_before_it_is_waited_for() -> None:
    decoder = Decoder()
    decoder.feed(recorded()[:-10])
    huge = MAGIC + struct.pack("<B3xII", Kind.NOTE, MAX_PAYLOAD + 1, 0)
    with pytest.raises(StreamError, match="frame of"):
        Decoder().feed(huge)


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (b"{}", "format None"),
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps({"format": 2}).encode(), "format 2"),
        (json.dumps({"format": 1}).encode(), "record layout is not valid"),
    ],
    ids=["no format", "no object", "unfinished", "deeply nested", "other format", "no layout"],
)
def test_a_bad_hello_is_one_clear_error(hello: bytes, error: str) -> None:
    with pytest.raises(StreamError, match=error):
        Decoder().feed(frame(Kind.HELLO, hello))


def test_part_of_a_record_is_damage() -> None:
    decoder = Decoder()
    decoder.feed(recorded())
    with pytest.raises(StreamError, match="part of a record"):
        decoder.feed(frame(Kind.EXIT, b"x" * 47))


def test_frames_of_kinds_to_come_are_passed_over() -> None:
    decoder = Decoder()
    decoder.feed(recorded())
    (one,) = decoder.feed(frame(99, b"later"))
    assert one.kind == 99
    assert not one.is_records


def test_records_in_another_byte_order_are_not_written() -> None:
    # GIVEN entries as numpy makes them when it joins structured arrays
    swapped = np.zeros(1, record.ENTRY_DTYPE.newbyteorder("="))
    # THEN the writer refuses them rather than turn ports round
    with pytest.raises(TypeError, match="stream's layout"):
        Writer(io.BytesIO()).records(record.ENTRY, swapped)


def test_a_recording_reads_the_same_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.iptr"
    path.write_bytes(recorded(1000))
    with open(path, "rb") as file:
        assert sum(len(one.records) for one in read(file) if one.is_records) == 1000


def test_a_stream_without_checksums_reads_like_one_that_has_them() -> None:
    # GIVEN the same frames, as an agent writes them into a pipe and into a file
    plain, checked = io.BytesIO(), io.BytesIO()
    for sink, check in ((plain, False), (checked, True)):
        writer = Writer(sink, checked=check)
        writer.hello(hello())
        writer.note("info", "hello")
    # THEN they say the same
    frames = Decoder().feed(plain.getvalue())
    assert [(f.kind, f.payload) for f in frames] == [
        (f.kind, f.payload) for f in Decoder().feed(checked.getvalue())
    ]
    # AND one that has no checksum has a zero there, or is damaged
    damaged = bytearray(plain.getvalue())
    damaged[12] ^= 1
    with pytest.raises(StreamError, match="damaged at byte 0"):
        Decoder().feed(bytes(damaged))
