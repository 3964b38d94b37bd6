# SPDX-License-Identifier: GPL-2.0-only
"""An agent obeys the control line and keeps to its budget; its engine needs no kernel."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.agent import Agent
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.output import Descriptor
from ipttrace.capture.request import Request
from ipttrace.capture.signals import Stop
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame, Kind
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import DTYPES, ENTRY, EXIT, Records
from ipttrace.stream.writer import Writer
from tests.data import messages
from tests.data.stop import StopFlag

SIGNALS = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Buffers:
    """Calls `arrive` at each wait, then returns the watched descriptors that are readable."""

    cpus = 1

    def __init__(self, arrive: Callable[[], None]) -> None:
        self._arrive = arrive
        self._fds: list[int] = []

    def watch(self, fd: int, /) -> None:
        self._fds.append(fd)

    def unwatch(self, fd: int, /) -> None:
        self._fds.remove(fd)

    def wait(self, seconds: float, /) -> set[int]:
        self._arrive()
        return set(select.select(self._fds, [], [], 0)[0])


class Engine:
    """Brings `rows` rows at each look while armed; each call in `script` happens at one look."""

    name = "kernel"

    def __init__(self, rows: int = 0, fail: str = "") -> None:
        self.notes: list[tuple[Level, str]] = []
        self.names: dict[str, str] = {}
        self.over = ""
        self.before = 0
        self.addresses = HiddenAddresses()
        self.rows = rows
        self.fail = fail
        self.done: list[str] = []
        self.armed = True
        self.program = b""
        self.count = 0
        self.waiting = 0
        self.lost = 0
        self.script: list[Callable[[], object]] = []
        self.buffers = Buffers(self._look)

    def _look(self) -> None:
        if self.armed:
            self.waiting += self.rows
        if self.script:
            self.script.pop(0)()

    def take(self) -> list[Records]:
        count, self.waiting = self.waiting, 0
        self.count += count
        taken = [np.zeros(0, dtype) for dtype in DTYPES]
        for kind in (ENTRY, EXIT):
            taken[kind] = np.zeros(count, DTYPES[kind])
        return taken

    def lost_exits(self) -> int:
        return self.lost

    def books(self) -> Books:
        due = self.count + self.waiting + self.lost
        return messages.books(
            state="armed" if self.armed else "disarmed",
            due=[due, 0, due],
            delivered=[self.count, 0, self.count],
            lost=[self.lost, 0, self.lost],
        )

    def arm(self) -> None:
        if self.fail:
            raise CaptureError(self.fail)
        assert not self.armed
        self.armed = True
        self.done.append("arm")

    def disarm(self) -> None:
        assert self.armed
        self.armed = False
        self.done.append("disarm")

    def filter(self, program: bytes, /) -> None:
        self.program = program
        self.done.append("filter")

    def close(self) -> None:
        self.done.append("close")


class Run:
    """A complete run of an agent; one of `lines` arrives on the control line at each look."""

    def __init__(self, engine: Engine, *lines: bytes, looks: int = 3, **options: Any) -> None:
        control, self.control = os.pipe()
        self.data = b""
        self.engine = engine
        engine.script += [partial(os.write, self.control, line + b"\n") for line in lines]
        engine.script += [lambda: None] * looks + [partial(os.close, self.control)]
        stop = StopFlag()
        self.end = Agent(Request(**options), engine, Writer(self)).run(stop, control)
        os.close(control)
        self.reason = stop.reason
        self.frames = Decoder().feed(self.data)

    def write(self, data: bytes | memoryview, /) -> None:
        self.data += bytes(data)

    def of(self, kind: Kind) -> list[dict[str, Any]]:
        return [frame.json for frame in self.frames if frame.kind == kind]

    @property
    def notes(self) -> list[tuple[str, str]]:
        return [(note["level"], note["text"]) for note in self.of(Kind.NOTE)]

    def after_note(self, text: str) -> Frame:
        """The frame that follows the note with this text."""
        for frame, following in zip(self.frames, self.frames[1:], strict=False):
            if frame.kind == Kind.NOTE and text in frame.json["text"]:
                return following
        raise AssertionError(self.notes)

    def exits(self) -> int:
        return sum(len(frame.records) for frame in self.frames if frame.kind == Kind.EXIT)


def balance(books: dict[str, Any]) -> None:
    assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]


def command(name: str, **more: Any) -> bytes:
    return json.dumps({"cmd": name, **more}).encode()


def test_one_stream_survives_any_number_of_disarms_and_arms() -> None:
    # GIVEN an agent whose every look brings three rows
    engine = Engine(rows=3)
    # WHEN it is disarmed and armed again, twice
    run = Run(engine, *[command("disarm"), command("arm")] * 2, looks=2)
    # THEN one stream contains all of it: each state at once, with books that balance
    assert engine.done == ["disarm", "arm"] * 2 + ["disarm"]
    assert [text for _, text in run.notes] == ["disarmed", "armed; filter: none"] * 2
    states = [books["state"] for books in run.of(Kind.BOOKS)]
    assert states[-4:] == ["disarmed", "armed", "disarmed", "armed"]
    for books in [*run.of(Kind.BOOKS), *run.of(Kind.END)]:
        assert books["expr"] == ""
        if books["state"] == "disarmed":
            balance(books)
    assert run.exits() == engine.count > 0
    assert run.reason == "stopped"


def test_disarming_or_arming_twice_does_nothing() -> None:
    engine = Engine()
    run = Run(engine, command("arm"), command("disarm"), command("disarm"))
    assert engine.done == ["disarm"]
    assert all(level == "info" for level, _ in run.notes)


def test_a_filter_set_while_disarmed_applies_once_armed_again() -> None:
    engine = Engine()
    run = Run(engine, command("disarm"), command("filter", expr="udp port 53"), command("arm"))
    assert engine.program == pcapfilter.compile("udp port 53")
    assert run.notes[-1] == ("info", "armed; filter: udp port 53")
    last = run.of(Kind.BOOKS)[-1]
    assert (last["state"], last["expr"]) == ("armed", "udp port 53")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (command("filter", expr="udp prot 53"), "syntax error"),
        (command("filter", expr="udp prot 53"), ", at character 5"),
        (command("filter", expr="host no-such.invalid"), "unknown host"),
        (command("filter", expr=7), "the filter on the control line is not a string"),
        (command("filter"), "malformed command"),
        (command("jump"), "unknown command on the control line: 'jump'"),
        (b'{"cmd": ["arm"]}', "unknown command"),
        (b"[" * 20000, "malformed command"),
        (b'"arm"', "malformed command"),
        (b"\xff\xfe", "malformed command"),
    ],
)
def test_a_bad_line_on_the_control_line_is_noted_and_changes_nothing(
    line: bytes, expected: str
) -> None:
    # GIVEN a filter that applies
    engine = Engine()
    good = command("filter", expr="udp port 53")
    # WHEN a bad line arrives
    run = Run(engine, good, line)
    # THEN a note says so in one line, and the filter still applies
    level, text = run.notes[-1]
    assert (level, expected in text, "\n" in text) == ("error", True, False), text
    assert engine.done == ["filter", "disarm"]
    assert {books["expr"] for books in run.of(Kind.BOOKS)[-1:]} == {"udp port 53"}
    assert run.reason == "stopped"


def test_an_engine_that_cannot_be_armed_again_leaves_the_agent_disarmed() -> None:
    engine = Engine(fail="another ipttrace (pid 7) is already tracing on this host")
    run = Run(engine, command("disarm"), command("arm"))
    assert run.notes[-1] == ("error", engine.fail)
    assert engine.done == ["disarm"]
    assert run.end["state"] == "disarmed"


def test_a_rate_above_the_limit_disarms_and_the_stream_goes_on() -> None:
    # GIVEN far more rows than --max-rate allows
    engine = Engine(rows=400)
    # WHEN they arrive, and it is armed again after a while
    run = Run(engine, b"", b"", b"", b"", command("arm"), max_rate=1000, looks=5)
    # THEN it is disarmed each time, with a warning, and books that balance
    assert engine.done == ["disarm", "arm", "disarm"]
    warnings = [text for level, text in run.notes if level == "warn"]
    assert (
        warnings
        == ["disarmed: 1,200 rows/s is more than --max-rate 1000; arm again with a narrower filter"]
        * 2
    )
    books = run.after_note("disarmed: 1,200")
    assert books.kind == Kind.BOOKS
    assert books.json["state"] == "disarmed"
    balance(books.json)
    # AND the stream contains all that was delivered
    assert run.exits() == engine.count == 2400
    assert run.reason == "stopped"


def test_stop_after_notes_how_many_rows_were_traced() -> None:
    engine = Engine(rows=10)
    run = Run(engine, stop_after=23, looks=9)
    assert engine.done == ["disarm"]
    assert [text for _, text in run.notes] == [
        "disarmed after 30 rows (--stop-after 23); arm again for as many more"
    ]
    assert run.exits() == 30


def test_a_stalled_reader_does_not_extend_the_budget() -> None:
    # GIVEN an agent whose write is blocked
    engine = Engine(rows=10)
    one = Agent(Request(stop_after=100), engine, Writer(BytesIO()))
    one._begin_budget()
    engine.waiting = 99
    one.spend_aside()
    assert engine.armed
    # WHEN the timer checks the budget meanwhile, and enough rows are due
    engine.waiting = 100
    one.spend_aside()
    # THEN it is disarmed at once; a second check does nothing more
    one.spend_aside()
    assert engine.done == ["disarm"]


def test_a_call_while_blocked_is_not_nested_in_itself() -> None:
    # GIVEN a blocked write, and a function that takes until after the next alarm
    sink = Descriptor(-1)
    sink.writing = True
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGALRM)

    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        stop = Stop(sink)
        stop.while_blocked(slow)
        signal.setitimer(signal.ITIMER_REAL, 0)
        # WHEN the alarm rings
        signal.raise_signal(signal.SIGALRM)
        # THEN it is called once each time
        assert len(calls) == 1
        signal.raise_signal(signal.SIGALRM)
        assert len(calls) == 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_a_line_without_an_end_on_the_control_line_ends_the_agent() -> None:
    engine = Engine()
    # A pipe holds 64 KB: the agent reads as much at each look.
    control, lines = os.pipe()
    engine.script += [partial(os.write, lines, b"x" * 65536)] * 18
    one = Agent(Request(), engine, Writer(BytesIO()))
    with pytest.raises(CaptureError, match="longer than 1,048,576 bytes"):
        one.run(StopFlag(), control)
    os.close(control)
    os.close(lines)
