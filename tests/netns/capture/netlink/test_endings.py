# SPDX-License-Identifier: GPL-2.0-only
"""However a trace over netlink ends, its summary is right and nothing is left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Kind
from ipttrace.trace.session import Trace
from tests.netns.loopback import (
    HANG,
    LEGACY,
    ROWS,
    TABLES,
    LoopbackNamespace,
    children,
    summary,
    until,
    wait_gone,
)
from tests.program import PROGRAM, Command


@pytest.fixture
def legacy(namespace: LoopbackNamespace) -> LoopbackNamespace:
    namespace.run("iptables-legacy-restore", text=LEGACY)
    return namespace


def tracing(
    folder: Path, namespace: LoopbackNamespace, *more: str, verb: str = "print", **options: Any
) -> Command:
    ready = ["--ready-file", str(folder / "ready")]
    where = ["--engine", "netlink", "--netns", namespace.name]
    how = ["--format", "jsonl"] if verb == "print" else []
    return Command(folder, [verb, *where, *how, *ready, *more], **options)


def flip_table_gone(namespace: LoopbackNamespace) -> bool:
    return namespace.tables() == TABLES


# -- kill -9


@pytest.mark.parametrize("which", ["print", "agent"])
def test_kill_9_leaves_no_table_and_the_log_setting_as_it_was(
    legacy: LoopbackNamespace, tmp_path: Path, which: str
) -> None:
    # GIVEN a trace of nftables and legacy rules
    before = legacy.loggers()
    with tracing(tmp_path, legacy) as command:
        command.wait_ready()
        legacy.send(3)
        assert len(command.read_lines(2 * ROWS * 3)) == 12
        (agent,) = children(command.process.pid)
        guards = children(agent)
        assert legacy.tables() != TABLES
        assert legacy.loggers() == ["nfnetlink_log"] * 2
        # WHEN one of its processes is killed
        os.kill(command.process.pid if which == "print" else agent, signal.SIGKILL)
        # THEN the other ends by itself
        wait_gone(agent)
        command.process.wait(HANG)
        for guard in guards:
            wait_gone(guard)
        printed = command.stderr()
    # AND nothing is left behind
    assert flip_table_gone(legacy)
    assert legacy.loggers() == before
    if which == "agent":
        assert command.process.returncode == 1
        found, why = printed
        assert summary(found)["rows"] == "12"
        # AND its last books are not taken for those that never came
        assert (summary(found)["lost"], summary(found)["missed"]) == ("unknown", "unknown")
        assert why == "ipttrace: the agent was killed"


# -- requested ends


def test_ctrl_c_ends_it_with_all_rows_printed(legacy: LoopbackNamespace, tmp_path: Path) -> None:
    before = legacy.loggers()
    with tracing(tmp_path, legacy) as command:
        command.wait_ready()
        legacy.send(23)
        command.read_lines(2 * ROWS * 23)
        command.interrupt()
        status, rest = command.finish()
        (line,) = command.stderr()
    assert (status, rest) == (130, "")
    found = summary(line)
    assert (found["rows"], found["lost"], found["missed"], found["engine"]) == (
        *(str(2 * ROWS * 23), "0", "0"),
        "netlink",
    )
    assert flip_table_gone(legacy)
    assert legacy.loggers() == before


def test_it_ends_when_its_reader_closes_the_pipe(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    # GIVEN print, and a reader of three lines
    with tracing(tmp_path, namespace) as command:
        command.wait_ready()
        namespace.send(23)
        command.read_lines(3)
        # WHEN the reader closes the pipe
        assert command.process.stdout
        command.process.stdout.close()
        # THEN it ends, though no more packets come
        assert command.process.wait(HANG) == 0
        (line,) = command.stderr()
    assert line.startswith("rows=")
    assert flip_table_gone(namespace)


def test_it_ends_after_its_duration(namespace: LoopbackNamespace, tmp_path: Path) -> None:
    with tracing(tmp_path, namespace, "--duration", "0.5") as command:
        command.wait_ready()
        namespace.send(23)
        status, out = command.finish()
        (line,) = command.stderr()
    assert status == 0
    assert int(summary(line)["rows"]) == len(out.splitlines()) == ROWS * 23
    assert flip_table_gone(namespace)


@pytest.mark.parametrize("how", ["--count", "--until", "--stop-after", "--max-rate"])
def test_it_ends_with_as_many_rows_as_its_options_request(
    namespace: LoopbackNamespace, tmp_path: Path, how: str
) -> None:
    value = {"--count": "7", "--until": "hook=INPUT", "--stop-after": "7", "--max-rate": "10"}[how]
    with tracing(tmp_path, namespace, how, value) as command:
        command.wait_ready()
        namespace.send(23)
        status, out = command.finish()
        *notes, line = command.stderr()
    rows = list(map(json.loads, out.splitlines()))
    assert status == 0
    assert int(summary(line)["rows"]) == len(rows)
    if how == "--count":
        assert len(rows) == 7
    elif how == "--until":
        assert [row["hook"] for row in rows].index("INPUT") == len(rows) - 1
    else:
        assert len(rows) >= int(value)
        assert all(note.startswith("ipttrace: disarmed") for note in notes)
    assert flip_table_gone(namespace)


def test_a_recording_gives_the_same_rows_at_every_replay(
    legacy: LoopbackNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "one.iptr"
    with tracing(tmp_path, legacy, str(file), verb="record") as command:
        command.wait_ready()
        legacy.send(23)
        until(lambda: file.stat().st_size > 23 * 1000, "records")
        command.interrupt()
        assert command.finish()[0] == 130
        printed = command.stderr()

    def replayed() -> tuple[str, str]:
        argv = [PROGRAM, "replay", str(file), "--format", "jsonl"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    out, err = replayed()
    rows = list(map(json.loads, out.splitlines()))
    assert len(rows) == int(summary(printed[-1])["rows"]) == 2 * ROWS * 23
    assert {(row["table"], row["chain"], row["rulenum"]) for row in rows} == {
        *(("t", "out", 2), ("t", "in", 1), ("filter", "OUTPUT", 1), ("filter", "INPUT", 1)),
    }
    assert all(row["engine"] == "netlink" for row in rows)
    assert summary(err.splitlines()[-1])["records"] == summary(printed[-1])["records"]
    assert replayed()[0] == out


# -- the control line


class ControlledAgent:
    """`ipttrace agent` with a control line, and the trace that its stream makes."""

    def __init__(self, namespace: LoopbackNamespace, *more: str) -> None:
        argv = [PROGRAM, "agent", "--control", "--engine", "netlink", "--netns", namespace.name]
        self.process = subprocess.Popen(
            [*argv, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.trace = Trace()
        self.states: list[dict[str, Any]] = []
        self._decoder = Decoder()

    def __enter__(self) -> ControlledAgent:
        self.wait(lambda: bool(self.states), "the first books")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def read(self) -> bool:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], HANG)[0]
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        for frame in self._decoder.feed(data):
            self.trace.feed(frame)
            if frame.kind in (Kind.BOOKS, Kind.END):
                self.states.append(frame.json)
        return bool(data)

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        while not reached():
            assert self.read(), f"{what} never came: {self.trace.notes}"

    def wait_rows(self, count: int) -> None:
        self.wait(lambda: self.trace.rows >= count, f"row {count}")

    def send(self, line: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(line).encode() + b"\n")

    def command(self, name: str, state: str, **more: Any) -> dict[str, Any]:
        """Sends a command, waits until it is carried out; returns the books after it."""
        before = len(self.states)
        self.send({"cmd": name, **more})
        self.wait(
            lambda: any(
                one["state"] == state and one["expr"] == more.get("expr", one["expr"])
                for one in self.states[before:]
            ),
            f"{name}: {state}",
        )
        return self.states[-1]

    def ports(self) -> dict[int | None, int]:
        store = self.trace.store
        rows = store.rows(range(store.first, store.end))
        return {port: [row.sport for row in rows].count(port) for port in {r.sport for r in rows}}

    def finish(self) -> dict[str, Any]:
        self.send({"cmd": "stop"})
        while self.read():
            pass
        assert self.process.wait(HANG) == 0
        assert self.process.stderr
        assert self.process.stderr.read() == b""
        assert self.trace.ended is not None
        return self.trace.ended


def balanced(books: dict[str, Any]) -> None:
    got = sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
    assert sum(books["due"]) == got, books


def test_the_control_line_disarms_and_arms_again(legacy: LoopbackNamespace) -> None:
    before = legacy.loggers()
    with ControlledAgent(legacy) as agent:
        wanted = {}
        for turn in range(3):
            wanted[legacy.send(7)] = 2 * ROWS * 7
            agent.wait_rows(2 * ROWS * 7 * (turn + 1))
            # WHEN it is disarmed THEN nothing is flipped
            books = agent.command("disarm", "disarmed")
            balanced(books)
            assert flip_table_gone(legacy)
            assert (books["lost"], books["missed"]) == ([0, 0, 0], 0)
            flipped = books["flipped"]
            legacy.send(5)
            # AND once it is armed again, packets are
            assert agent.command("arm", "armed")["flipped"] == flipped
            assert not flip_table_gone(legacy)
        end = agent.finish()
    balanced(end)
    assert agent.ports() == wanted
    assert flip_table_gone(legacy)
    assert legacy.loggers() == before


def test_the_control_line_changes_the_filter_which_outlives_a_disarm(
    namespace: LoopbackNamespace,
) -> None:
    with ControlledAgent(namespace) as agent:
        wanted = {namespace.send(7): ROWS * 7}
        agent.wait_rows(ROWS * 7)
        agent.command("filter", "armed", expr="udp dst port 53")
        namespace.send(11)
        # an invalid filter changes nothing
        agent.send({"cmd": "filter", "expr": "udp prot 9"})
        agent.wait(lambda: any(level == "error" for level, _ in agent.trace.notes), "an error")
        namespace.send(11)
        agent.command("disarm", "disarmed")
        agent.command("arm", "armed")
        namespace.send(11)
        agent.command("disarm", "disarmed")
        agent.command("filter", "disarmed", expr="udp dst port 9")
        agent.command("arm", "armed")
        wanted[namespace.send(13)] = ROWS * 13
        agent.wait_rows(ROWS * 20)
        end = agent.finish()
    assert agent.ports() == wanted
    assert end["expr"] == "udp dst port 9"
    balanced(end)
