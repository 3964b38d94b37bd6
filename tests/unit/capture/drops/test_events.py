# SPDX-License-Identifier: GPL-2.0-only
"""What the programs write becomes records, and the layout is that of the header."""

from __future__ import annotations

import io
import re

import numpy as np

from ipttrace.capture.drops import events
from ipttrace.stream.record import STATION, STATION_DTYPE
from ipttrace.stream.writer import Writer
from tests.data.stations import PACKET, station
from tests.paths import PROJECT


def test_the_header_has_as_many_frames() -> None:
    text = (PROJECT / "bpf" / "station.h").read_text()
    found = re.search(r"#define FRAMES\s+(\d+)", text)
    assert found is not None
    assert int(found[1]) == events.FRAMES


def test_drops_have_stacks_and_other_stations_none() -> None:
    # GIVEN a station and a drop as they are in the ring, each behind its header
    station, drop = np.zeros(1, STATION_DTYPE), np.zeros(1, STATION_DTYPE)
    station["what"], drop["what"], drop["reason"] = 2, 1, 7
    stack = np.arange(1, events.FRAMES + 1, dtype=np.uint64)
    words = np.concatenate([[0], station.view(np.uint64), [0], drop.view(np.uint64), stack]).astype(
        np.uint64
    )
    size = STATION_DTYPE.itemsize
    starts, lengths = np.array([1, 2 + size // 8]), np.array([size, size + 8 * events.FRAMES])
    # THEN both are read
    found = events.read(words, starts, lengths)
    assert found["what"].tolist() == [2, 1]
    assert found["reason"].tolist() == [0, 7]
    assert events.stacks(words, starts, lengths).tolist() == [[0] * events.FRAMES, stack.tolist()]


def test_nothing_is_nothing() -> None:
    empty = np.zeros(0, np.int64)
    assert len(events.read(np.zeros(0, np.uint64), empty, empty)) == 0


def test_stations_that_were_read_in_two_portions_can_be_written() -> None:
    one, other = station(1, "dropped", 0, PACKET), station(2, "received", 5, PACKET)
    joined = events.joined(events.joined(one[:0], one), other)
    Writer(io.BytesIO()).records(STATION, joined)
    assert joined["call"].tolist() == [1, 2]
    assert joined.tobytes() == one.tobytes() + other.tobytes()
