# SPDX-License-Identifier: GPL-2.0-only
"""Batches that are joined give the rows that they give one by one."""

from __future__ import annotations

import io

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame, Kind, joined
from ipttrace.trace.session import Trace
from ipttrace.view.formats import output
from tests.data import synth


def _lines(frames: list[Frame]) -> list[bytes]:
    trace, csv = Trace(), output("csv")
    for frame in frames:
        trace.feed(frame)
    return csv.rows(trace.store, range(trace.store.end))[0].splitlines()


def test_joined_batches_give_the_same_rows() -> None:
    # GIVEN a stream of batches of which many cut a call, or a packet's way, in two
    sink = io.BytesIO()
    synth.write(sink, synth.make(500, flows=20), 37)
    frames = Decoder().feed(sink.getvalue())
    # WHEN they are joined, up to a frame of another kind
    some = joined(frames)
    # THEN there is one of each kind, and the rows are the same: those of REJECT's answer too
    assert [frame.kind for frame in some] == [
        Kind.HELLO,
        Kind.ENTRY,
        Kind.RULE,
        Kind.EXIT,
        Kind.BOOKS,
        Kind.END,
    ]
    lines = _lines(some)
    assert len(lines) >= 500
    assert sorted(lines) == sorted(_lines(frames))
    # AND in order of time
    times = [line.split(b",", 1)[0] for line in lines]
    assert times == sorted(times)
