# SPDX-License-Identifier: GPL-2.0-only
"""How a stream's reader ends: in a backlog, with an agent that is killed, or silent."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipttrace.cli import interrupts
from ipttrace.cli import pump as module
from ipttrace.cli.pump import Pump
from ipttrace.link import local
from ipttrace.link.local import LocalLink
from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.view.output import Output
from tests.data import streams

GRACE = 0.4


class _Slow(Output):
    """An output that takes longer for some rows than a silent agent is given."""

    def __init__(self) -> None:
        pass

    def begin(self, hello: object) -> bytes:
        return b""

    def rows(self, store: object, seqs: object) -> tuple[bytes, int]:
        time.sleep(GRACE * 1.5)
        return b"", 0

    def pause(self) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


@contextlib.contextmanager
def agent(send: Callable[[int], None]) -> Iterator[io.FileIO]:
    """The stream of an agent that writes with `send` in a thread."""
    read, write = os.pipe()

    def run() -> None:
        send(write)
        os.close(write)

    thread = threading.Thread(target=run)
    thread.start()
    with open(read, "rb", buffering=0) as stream:
        yield stream
    thread.join()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", GRACE)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_backlog_after_the_stop_is_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    # GIVEN an agent that was asked to stop, and sends what it has for longer than the patience
    stopped = threading.Event()

    def send(fd: int) -> None:
        os.write(fd, streams.hello() + streams.rows(4))
        stopped.wait(10)
        for number in range(8):
            time.sleep(GRACE / 4)
            os.write(fd, streams.rows(4, start=4 + 4 * number))
        os.write(fd, streams.end())

    with agent(send) as stream:
        pump = Pump(None, stop=stopped.set)
        pump._finish()  # as Ctrl-C does
        status = pump.run(stream)
    # THEN every row and the last books are there
    assert (status, pump.errors) == (0, [])
    assert last_line(capsys).startswith("rows=36 records=108 lost=0 missed=0 engine=")


def test_rows_that_are_written_slowly_do_not_count_as_silence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # GIVEN two busy CPUs: writing the rows of one portion takes longer than the patience
    def send(fd: int) -> None:
        os.write(fd, streams.hello() + streams.rows(8))
        time.sleep(GRACE)
        os.write(fd, streams.rows(8, start=8))
        time.sleep(GRACE)
        os.write(fd, streams.end())

    with agent(send) as stream:
        pump = Pump(_Slow(), stop=lambda: None)
        pump._finish()
        status = pump.run(stream)
    assert (status, pump.errors) == (0, [])
    assert last_line(capsys).startswith("rows=16 records=48 lost=0 missed=0 engine=")


def test_a_silent_agent_is_given_up_and_its_losses_are_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = threading.Event()

    def send(fd: int) -> None:
        os.write(fd, streams.hello() + streams.books() + streams.rows(4))
        closed.wait(10)

    with agent(send) as stream:
        pump = Pump(None, stop=lambda: None)
        pump._finish()
        status = pump.run(stream)
        closed.set()
    assert status == 1
    assert pump.errors == ["the agent does not respond: its last counts are missing"]
    assert last_line(capsys).startswith("rows=4 records=12 lost=unknown missed=unknown engine=")


def test_a_recording_without_an_end_has_unknown_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN the recording of an agent that was killed in a backlog: its last books said lost=0
    path = tmp_path / "trace.iptr"
    path.write_bytes(streams.hello() + streams.books() + streams.rows(40))
    with path.open("rb", buffering=0) as file:
        assert Pump(None).run(file) == 0
    assert last_line(capsys).startswith("rows=40 records=120 lost=unknown missed=unknown engine=")


def test_calls_without_a_row_are_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.iptr"
    entries, rules, exits = streams.records(40)
    stream = streams.frames(entries, rules, exits[:-3])
    path.write_bytes(streams.hello() + stream + streams.end(lost=[0, 0, 3]))
    with path.open("rb", buffering=0) as file:
        Pump(None).run(file)
    line = last_line(capsys)
    assert line.startswith("rows=37 records=117 lost=3 missed=0 engine=")
    assert line.endswith(" incomplete=3")


def test_one_frame_with_more_rows_than_are_held_gives_them_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # GIVEN one EXIT frame of 300,000 calls, and room for 262,144 rows
    entries, rules, exits = streams.records(300_000)
    sink = io.BytesIO()
    Writer(sink)._frame(Kind.EXIT, exits.view("u1").data)

    def send(fd: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            file.write(streams.hello() + streams.frames(entries, rules))
            file.write(sink.getvalue() + streams.end())

    class Count(_Slow):
        count = 0

        def rows(self, store: object, seqs: object) -> tuple[bytes, int]:
            self.count += len(seqs)  # type: ignore[arg-type]
            return b"", 0

    output = Count()
    with agent(send) as stream:
        assert Pump(output).run(stream) == 0
    assert output.count == 300_000
    assert last_line(capsys).startswith("rows=300000 records=900000 lost=0 missed=0 engine=")


class _Rows(_Slow):
    """An output that tells how many rows it was given, each time."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.came = threading.Event()

    def rows(self, store: object, seqs: object) -> tuple[bytes, int]:
        self.counts.append(len(seqs))  # type: ignore[arg-type]
        self.came.set()
        return b"", 0


def test_batches_that_come_close_together_are_printed_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a time between two looks that no slow machine exceeds
    monkeypatch.setattr(module, "_GATHER", 60.0)
    output = _Rows()
    first: list[bool] = []

    def send(fd: int) -> None:
        os.write(fd, streams.hello() + streams.rows(4))
        # THEN rows after a rest are printed at once
        first.append(output.came.wait(30))
        # WHEN many batches follow, the last of which is cut off by the end of the stream
        data = b"".join(streams.rows(4, start=4 + 4 * number) for number in range(20))
        for at in range(0, len(data), 1000):
            os.write(fd, data[at : at + 1000])
        os.write(fd, streams.end())

    with agent(send) as stream:
        assert Pump(output, stop=lambda: None).run(stream) == 0
    # THEN they are printed at once, and none is missing
    assert (first, output.counts) == ([True], [4, 80])
    assert last_line(capsys).startswith("rows=84 records=252 lost=0 missed=0 engine=")


def test_rows_wait_no_longer_than_nobody_notices(capsys: pytest.CaptureFixture[str]) -> None:
    output = _Rows()

    def send(fd: int) -> None:
        os.write(fd, streams.hello() + streams.rows(4))
        assert output.came.wait(30)
        output.came.clear()
        # WHEN four rows follow at once, then a batch without its exits, and nothing more
        entries, _, exits = streams.records(1, start=8)
        os.write(fd, streams.rows(4, start=4) + streams.frames(entries))
        # THEN those that are whole are printed without anything that follows
        assert output.came.wait(30)
        rest = io.BytesIO()
        Writer(rest)._frame(Kind.EXIT, exits.view("u1").data)
        os.write(fd, rest.getvalue() + streams.end())

    with agent(send) as stream:
        assert Pump(output, stop=lambda: None).run(stream) == 0
    assert sum(output.counts) == 9
    assert last_line(capsys).startswith("rows=9 ")


BACKLOG = """
import sys, time
for line in range(12):
    sys.stdout.buffer.write(b"x" * 1000)
    sys.stdout.flush()
    time.sleep(0.1)
"""


def test_an_agent_whose_stream_moves_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.6)
    monkeypatch.setattr(local, "_CLEANUP", 10.0)
    link = LocalLink.__new__(LocalLink)
    link._process = subprocess.Popen(
        [sys.executable, "-c", BACKLOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert link._process.stdin is not None
    assert link._process.stdout is not None
    link.control, link.stream = link._process.stdin, link._process.stdout  # type: ignore[assignment]
    # WHEN it sends for twice as long as a silent agent is given
    os.read(link.stream.fileno(), 1)
    # THEN it ends by itself
    assert link.close() == 0


def test_an_agent_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.1)
    monkeypatch.setattr(local, "_CLEANUP", 0.1)
    link = LocalLink.__new__(LocalLink)
    link._process = subprocess.Popen(
        ["sleep", "1000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert link._process.stdin is not None
    assert link._process.stdout is not None
    link.control, link.stream = link._process.stdin, link._process.stdout  # type: ignore[assignment]
    assert link.close() == -signal.SIGKILL


def test_ctrl_c_before_the_stream_is_read_ends_it_with_its_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # GIVEN an agent that has traced, while the command still imports what it needs
    read, write = os.pipe()
    os.write(write, streams.hello() + streams.rows(4))

    def stop() -> None:
        os.write(write, streams.end())
        os.close(write)

    with open(read, "rb", buffering=0) as stream, interrupts.held():
        # WHEN the user ends it
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        status = Pump(None, stop=stop).run(stream)
    # THEN all rows are there, and the line that ends every command
    assert status == 130
    assert last_line(capsys).startswith("rows=4 records=12 lost=0 missed=0 engine=")


def test_ctrl_c_that_is_held_comes_through_where_nothing_is_read() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
