# SPDX-License-Identifier: GPL-2.0-only
"""What an agent takes after a stall is written in slices of complete calls."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np

from ipttrace.capture import slices
from ipttrace.capture.agent import Agent
from ipttrace.capture.request import Request
from ipttrace.stream.decoder import read
from ipttrace.stream.frames import Kind
from ipttrace.stream.record import ENTRY, EXIT, Records
from ipttrace.stream.writer import Writer
from ipttrace.trace.arrays import join
from ipttrace.trace.session import Trace
from tests.data import messages, streams


def taken(calls: int) -> list[Records]:
    """All records of `calls` calls, in the order of two CPUs."""
    return [join([kind[1::2], kind[::2]], kind.dtype) for kind in streams.records(calls)]


def test_a_call_is_never_cut_and_slices_are_in_order_of_time() -> None:
    found = list(slices.whole_calls(taken(10_000), 1000))
    assert [len(some[ENTRY]) for some in found] == [1000] * 10
    for some in found:
        calls = [np.sort(records["call"]) for records in some]
        assert (calls[0] == calls[1]).all()
        assert (calls[0] == calls[2]).all()
    times = np.concatenate([some[ENTRY]["time"] for some in found])
    assert (np.diff(times.astype(np.int64)) >= 0).all()


def test_every_record_is_in_one_slice_if_some_are_lost() -> None:
    rng = np.random.default_rng(1)
    records = [kind[rng.random(len(kind)) < 0.7] for kind in taken(10_000)]
    found = list(slices.whole_calls(records, 1000))
    assert len(found) == 7
    for kind, wanted in enumerate(records):
        got = join([some[kind] for some in found], wanted.dtype)
        assert np.sort(got, order=["call"]).tobytes() == np.sort(wanted, order=["call"]).tobytes()
        assert {some[kind].dtype for some in found} == {wanted.dtype}


def test_a_call_that_began_earlier_ends_in_the_first_slice() -> None:
    entries, rules, exits = taken(10_000)
    late = entries["call"] == 9_999
    first = next(iter(slices.whole_calls([entries[~late], rules, exits], 1000)))
    assert 9_999 in first[EXIT]["call"]


class _Engine:
    """One take of 50,000 calls, then the end."""

    name, over = "kernel", ""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.names: dict[str, str] = {}
        self._takes = [taken(50_000)]
        self.buffers = SimpleNamespace(
            cpus=2, wait=lambda _: set(), watch=lambda _: None, unwatch=lambda _: None
        )

    def take(self) -> list[Records]:
        if self._takes:
            return self._takes.pop()
        self.over = "done"
        return []

    def books(self) -> dict[str, Any]:
        return {**messages.books()}

    def disarm(self) -> None:
        return None


def test_the_rows_of_a_backlog_come_before_its_last_records() -> None:
    # GIVEN an agent that takes 50,000 calls at once
    out = io.BytesIO()
    engine: Any = _Engine()
    stop: Any = SimpleNamespace(reason="")
    Agent(Request(), engine, Writer(out)).run(stop, None)
    out.seek(0)
    trace = Trace()
    most = 0
    # WHEN its stream is read
    for frame in read(out):
        trace.feed(frame)
        if frame.kind == Kind.ENTRY:
            most = max(most, trace.records // 3 - trace.rows)
    # THEN all calls become rows, and only few ever wait
    assert trace.summary()["rows"] == 50_000
    assert most <= slices.MOST
