# SPDX-License-Identifier: GPL-2.0-only
"""--until: the run ends with the first row that a query takes, and that row is shown."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import numpy as np
import pytest

from ipttrace.cli.pump import Pump
from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind, Writer, read_file
from ipttrace.trace import query
from ipttrace.trace.query import context_of
from ipttrace.trace.query.until import Until
from ipttrace.trace.session import Trace
from ipttrace.view import formats
from tests.data import synth
from tests.paths import LAB

BOOKS = {"due": [0, 0, 0], "delivered": [0, 0, 0], "lost": [0, 0, 0], "missed": 0}


def first_of(trace: Trace, text: str) -> int | None:
    """Of all rows at once."""
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
def test_the_first_row_is_found_however_the_rows_come(text: str) -> None:
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
    # THEN it is the row that one finds afterwards, found once and for all
    assert set(found) == {first_of(trace, text)} - {None}
    assert until.found == (found[0] if found else None)


def test_rows_that_have_left_the_store_are_passed_over() -> None:
    trace = Trace(64)
    until = Until(query.compile("verdict=none"))
    for batch in synth.make(3_000, flows=40).batches(700):
        for kind, some in zip((Kind.ENTRY, Kind.RULE, Kind.EXIT), batch, strict=True):
            trace.feed(Frame(kind, some.tobytes()))
        assert until.feed(trace.store) is None


class Agent:
    """The far end of a pipe: rows in three portions, and books; ends when it is asked to."""

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
            clock = {"mono": synth.MONO, "wall": synth.WALL}
            writer.hello({"engine": "kernel", "host": "there", "clock": clock})
            for entries, rules, exits in synth.make(300, flows=40).batches(300):
                writer.records(record.ENTRY, entries)
                writer.records(record.RULE, rules)
                writer.records(record.EXIT, exits)
            writer.note("warn", "disarmed: why")
            writer.books({**BOOKS, "state": self._state})
            assert self.asked.wait(60)
            writer.end({**BOOKS, "reason": "stopped"})

    def close(self) -> None:
        self.asked.set()
        self._thread.join()
        os.close(self.stream)


def printed(capfd: pytest.CaptureFixture[str], **options: Any) -> tuple[list[Any], str]:
    """What print shows, and says at its end, which is in order."""
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


def test_print_ends_with_the_row_that_it_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    everything, _ = printed(capfd, count=290)
    at = next(n for n, row in enumerate(everything) if row["verdict"] == "DROP")
    assert 0 < at < 200
    # WHEN the first drop is waited for
    rows, said = printed(capfd, until=query.compile("verdict=DROP"))
    # THEN it is the last row, and the far end was asked to finish
    assert rows == everything[: at + 1]
    assert said.startswith(f"rows={at + 1} ")


def test_print_shows_only_rows_of_its_query_until_then(capfd: pytest.CaptureFixture[str]) -> None:
    everything, _ = printed(capfd, count=290)
    at = next(n for n, row in enumerate(everything) if row["verdict"] == "DROP")
    wanted = [row for row in everything[: at + 1] if row["proto"] == "TCP"]
    asked = {"query": query.compile("proto=tcp"), "until": query.compile("verdict=DROP")}
    rows, _ = printed(capfd, **asked)
    assert rows == wanted


def test_record_keeps_all_that_came_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    agent, taken = Agent(), bytearray()
    sink = type("Sink", (), {"write": staticmethod(taken.extend)})()
    pump = Pump(None, copy=sink, until=query.compile("verdict=DROP"), stop=agent.asked.set)
    assert pump.run(agent) == 0
    agent.close()
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"rows={pump.trace.rows} ")
    assert pump.trace.ended is not None


def test_a_run_whose_budget_is_used_up_ends_in_order_and_says_why(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN an agent that has disarmed by itself and goes on
    agent = Agent("disarmed")
    names: dict[int, str] = {}
    output = formats.output("jsonl", names, columns=None, colour=False)
    pump = Pump(output, stop=agent.asked.set, names=names)
    # THEN print asks it to end, shows all that came, and ends with status 0
    assert pump.run(agent) == 0
    agent.close()
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == pump.trace.rows > 250
    assert said.err.splitlines()[0] == "ipttrace: disarmed: why"
    assert said.err.splitlines()[1].startswith(f"rows={pump.trace.rows} ")


def test_a_recording_in_which_it_was_disarmed_for_a_while_is_read_to_its_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN a recorded stream: nobody is there to be asked to end
    agent = Agent("disarmed")
    agent.asked.set()
    pump = Pump(None)
    assert pump.run(agent) == 0
    assert pump.trace.ended is not None
    assert not pump._stopping
    agent.close()
    capfd.readouterr()
