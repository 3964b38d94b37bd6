# SPDX-License-Identifier: GPL-2.0-only
"""--until: the run ends with the first row that a query matches, which is still shown."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import numpy as np
import pytest

from ipttrace.cli.pump import Pump
from ipttrace.stream import record
from ipttrace.stream.decoder import read_file
from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.trace import query
from ipttrace.trace.query import context_of
from ipttrace.trace.query.until import Until
from ipttrace.trace.session import Trace
from ipttrace.view import formats
from tests.data import messages, synth
from tests.data.traces import feed_records
from tests.paths import LAB


def first_of(trace: Trace, text: str) -> int | None:
    """The first matching row, from all rows at once."""
    asked = query.compile(text)
    names = {int(inode): name for inode, name in trace.hello.get("netns", {}).items()}
    for part in trace.store.parts():
        hits = asked.mask(part, context_of(trace.store, netns=names))
        if hits.any():
            return part.first + int(np.argmax(hits))
    return None


@pytest.mark.parametrize(
    "text", ["verdict=DROP", "netns=ipt-server and proto=icmp", "dport=1 and sport=2", ""]
)
def test_the_first_match_is_the_same_when_rows_arrive_one_frame_at_a_time(text: str) -> None:
    # GIVEN a lab run that is read frame by frame
    trace, names = Trace(), dict[int, str]()
    until = Until(query.compile(text), netns=names)
    found: list[int] = []
    for frame in read_file(LAB):
        trace.feed(frame)
        if frame.kind == Kind.HELLO:
            names.update({int(i): name for i, name in frame.json["netns"].items()})
        seq = until.feed(trace.store)
        found += [] if seq is None else [seq]
    # THEN it is the first match of all rows, and stays so
    assert set(found) == {first_of(trace, text)} - {None}
    assert until.found == (found[0] if found else None)


def test_rows_that_the_store_has_dropped_are_skipped() -> None:
    trace = Trace(64)
    until = Until(query.compile("verdict=none"))
    for batch in synth.make(3_000, flows=40).batches(700):
        feed_records(trace, *batch)
        assert until.feed(trace.store) is None


class Agent:
    """An agent on a pipe: rows in three batches, then books; ends when told to."""

    def __init__(self, state: str = "armed") -> None:
        self.stream, self._out = os.pipe()
        self.asked = threading.Event()
        self._state = state
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def fileno(self) -> int:
        return self.stream

    def _run(self) -> None:
        with os.fdopen(self._out, "wb", buffering=0) as file:
            writer = Writer(file)
            writer.hello(synth.hello())
            for entries, rules, exits in synth.make(300, flows=40).batches(300):
                writer.records(record.ENTRY, entries)
                writer.records(record.RULE, rules)
                writer.records(record.EXIT, exits)
            writer.note("warn", "disarmed: why")
            writer.books(messages.books(state=self._state))
            assert self.asked.wait(60)
            writer.end(messages.end("stopped"))

    def close(self) -> None:
        self.asked.set()
        self._thread.join()
        os.close(self.stream)


def printed(capfd: pytest.CaptureFixture[str], **options: Any) -> tuple[list[Any], str]:
    """The rows that print writes, and the last line on stderr."""
    agent = Agent()
    names: dict[int, str] = {}
    output = formats.output("jsonl", names, columns=None, colour=False)
    pump = Pump(output, stop=agent.asked.set, names=names, **options)
    try:
        assert pump.run(agent) == 0
        assert agent.asked.is_set()
    finally:
        agent.close()
    said = capfd.readouterr()
    assert said.err.splitlines()[0] == "ipttrace: disarmed: why"
    return [json.loads(line) for line in said.out.splitlines()], said.err.splitlines()[-1]


def test_print_ends_with_the_first_match(capfd: pytest.CaptureFixture[str]) -> None:
    everything, _ = printed(capfd, count=290)
    at = next(n for n, row in enumerate(everything) if row["verdict"] == "DROP")
    assert 0 < at < 200
    # WHEN print runs until the first drop
    rows, said = printed(capfd, until=query.compile("verdict=DROP"))
    # THEN that is the last row
    assert rows == everything[: at + 1]
    assert said.startswith(f"rows={at + 1} ")


def test_print_shows_only_rows_of_its_query_before_the_match(
    capfd: pytest.CaptureFixture[str],
) -> None:
    everything, _ = printed(capfd, count=290)
    at = next(n for n, row in enumerate(everything) if row["verdict"] == "DROP")
    wanted = [row for row in everything[: at + 1] if row["proto"] == "TCP"]
    asked = {"query": query.compile("proto=tcp"), "until": query.compile("verdict=DROP")}
    rows, _ = printed(capfd, **asked)
    assert rows == wanted


def test_record_keeps_all_records_and_ends_with_the_match(
    capfd: pytest.CaptureFixture[str],
) -> None:
    agent, taken = Agent(), bytearray()
    sink = type("Sink", (), {"write": staticmethod(taken.extend)})()
    pump = Pump(None, copy=sink, until=query.compile("verdict=DROP"), stop=agent.asked.set)
    assert pump.run(agent) == 0
    agent.close()
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"rows={pump.trace.rows} ")
    assert pump.trace.ended is not None


def test_a_run_ends_cleanly_when_the_agent_has_disarmed_itself(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN an agent that has disarmed itself and keeps running
    agent = Agent("disarmed")
    names: dict[int, str] = {}
    output = formats.output("jsonl", names, columns=None, colour=False)
    pump = Pump(output, stop=agent.asked.set, names=names)
    # THEN print ends it, shows all rows, and exits with status 0
    assert pump.run(agent) == 0
    agent.close()
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == pump.trace.rows > 250
    assert said.err.splitlines()[0] == "ipttrace: disarmed: why"
    assert said.err.splitlines()[1].startswith(f"rows={pump.trace.rows} ")


def test_a_recording_with_a_disarmed_stretch_is_read_to_its_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN a recorded stream, which cannot be told to end
    agent = Agent("disarmed")
    agent.asked.set()
    pump = Pump(None)
    assert pump.run(agent) == 0
    assert pump.trace.ended is not None
    assert not pump._stopping
    agent.close()
    capfd.readouterr()
