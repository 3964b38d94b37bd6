# SPDX-License-Identifier: GPL-2.0-only
"""The privileged half: an engine on one side, the stream on the other.

Thin: it moves records, obeys the control line (control_line.py) and keeps to the
budget (budget.py).  One thread runs all of it; what watches find (watch.py) is taken
from their queue.  Must not import a view.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ipttrace import files
from ipttrace.capture import hello, netns, slices
from ipttrace.capture.budget import Budget
from ipttrace.capture.choice import only_netns, open_engine, rule_texts, sources_of
from ipttrace.capture.control_line import Command, ControlLine, parse
from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap
from ipttrace.capture.neighbours.watch import NeighbourWatch
from ipttrace.capture.output import Descriptor
from ipttrace.capture.request import Request
from ipttrace.capture.rules.base import RuleTexts
from ipttrace.capture.signals import Stop
from ipttrace.capture.sources import Sources
from ipttrace.capture.tables.watch import TableWatch
from ipttrace.capture.watch import Watcher
from ipttrace.stream.messages import Books, Places
from ipttrace.stream.record import EXIT, SOCKET, STATION, Records
from ipttrace.stream.writer import Writer

# How often buffers are read, s: short enough for eyes, long enough to cost an idle
# host nothing and to take many records at once.  A flood wakes the agent sooner.
_BUSY_WAIT: Final = 0.05
_IDLE_WAIT: Final = 0.2  # once nothing has arrived for a second
_BOOKS_EVERY: Final = 1.0
# How long the agent waits for the rules to be read before it reports that it is ready, s: no
# reading takes so long, unless a command hangs.
_RULES_AT_START: Final = 30.0
_MOST_HELD: Final = 64 << 20  # bytes of records that wait for that
_RULES_AT_END: Final = 1.0
_NEVER: Final = 1 << 63  # ns
_CLOCK_STEP: Final = 1_000_000  # ns by which the wall clock must step to be reported

Stations = tuple[Records, Places | None] | None
"""Stations, and what their numbers mean, if that is new; None: there are none."""


class Agent:
    """One run: from an armed engine to the stream's last frame."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        writer: Writer,
        watcher: Watcher | None = None,
        rules: Sequence[RuleTexts] = (),
        sources: Sources | None = None,
    ) -> None:
        """`rules`: the watches of `watcher` whose first and last findings rows wait for.

        `sources`: the engine with drops beside it; None: it alone.
        """
        self._request = request
        self._engine = engine
        self._sources = sources or Sources(engine)
        self._writer = writer
        self._watcher = watcher
        self._rules = rules
        self._offset = 0  # wall clock - monotonic clock, ns
        self._netns_names = netns.NewNames({})
        self._budget = Budget(request.max_rate, request.stop_after)
        self._spent = False  # the budget has disarmed, and no note says so yet

    def run(self, stop: Stop, control: int | None) -> Books:
        """Runs until `stop` has a reason, the duration is over or the control line ends.

        `control`: a descriptor, None for no control line.  Returns the last books.
        """
        engine, writer = self._engine, self._writer
        watched = [] if self._watcher is None else [self._watcher.fd]
        watched += [] if control is None else [control]
        line = None if control is None else ControlLine(control)
        for fd in watched:
            engine.buffers.watch(fd)
        self._begin_budget()
        about = hello.hello(
            self._request, engine, self._sources.no_drops, sockets=self._sources.has_sockets
        )
        self._netns_names = netns.NewNames({int(one): of for one, of in about["netns"].items()})
        self._offset = about["clock"]["wall"] - about["clock"]["mono"]
        writer.hello(about)
        self._write_notes()
        writer.books(self._books())
        self._read_rules_first(stop, line)
        if self._request.ready_file is not None:
            _write_ready(self._request.ready_file)

        began = time.monotonic()
        books_due = began
        last_records = began
        while not stop.reason:
            busy = time.monotonic() - last_records < 1
            ready = engine.buffers.wait(_BUSY_WAIT if busy else _IDLE_WAIT)
            if line is not None and line.fd in ready and not self._obey(line):
                stop.reason = "stopped"
            now = time.monotonic()
            if self._pump():
                last_records = now
            if self._spent:
                self._report_spent()
            self._write_notes()
            if engine.over:
                stop.reason = engine.over
            if now >= books_due:
                books_due = now + _BOOKS_EVERY
                self._tick()
            if self._request.duration is not None and now - began >= self._request.duration:
                stop.reason = "duration"
        for fd in watched:
            engine.buffers.unwatch(fd)
        return self._finish(stop.reason)

    def _write_notes(self) -> None:
        while self._engine.notes:
            self._writer.note(*self._engine.notes.pop(0))

    def _read_rules_first(self, stop: Stop, line: ControlLine | None) -> None:
        """Waits until the rules are read; records that arrive meanwhile are written after them.

        A command, too many records or a spent budget end the wait.
        """
        held: list[list[Records]] = []
        size = 0
        began = books_due = time.monotonic()
        commands = select.poll()
        if line is not None:
            commands.register(line.fd, select.POLLIN)
        self._write_findings()
        while not (stop.reason or self._spent or size > _MOST_HELD):
            if all(one.first.is_set() for one in self._rules):
                break
            if time.monotonic() - began > _RULES_AT_START:
                break
            if commands.poll(0):
                break
            self._rules_wait()
            if time.monotonic() >= books_due + _BOOKS_EVERY:
                books_due = time.monotonic()
                self._tick()
            taken = self._take()
            size += sum(part.nbytes for part in taken)
            held.append(taken)
            self._write_findings()
        for records in held:
            self._write(records)
        self._write_stations(self._sources.take_stations())

    def _rules_wait(self) -> None:
        """Waits briefly for a watch of rules that has not read them yet."""
        for one in self._rules:
            if not one.first.is_set():
                one.first.wait(0.02)
                return

    def _take(self) -> list[Records]:
        taken = self._sources.take()
        if self._sources.armed and self._budget.limited:
            self._spend(*self._sources.rows())
        return taken

    def _pump(self) -> int:
        """Moves the records that have arrived; returns how many."""
        taken = self._take()
        # What these records depend on comes before them.
        self._write_findings()
        return self._write(taken, self._sources.take_stations()) + self._write_sockets()

    def _write(self, taken: list[Records], stations: Stations = None) -> int:
        """Writes records, and stations before the exits, which end a batch; returns how many."""
        if self._engine.names:
            self._writer.names(self._engine.names)
            self._engine.names.clear()
        calls = list(slices.whole_calls(taken))
        for number, some in enumerate(calls, 1):
            for kind, records in enumerate(some):
                if kind == EXIT and number == len(calls):
                    self._write_stations(stations)
                if len(records):
                    self._writer.records(kind, records)
        if not calls:
            self._write_stations(stations)
        return sum(map(len, taken)) + (0 if stations is None else len(stations[0]))

    def _write_stations(self, found: Stations) -> None:
        if found is not None:
            stations, places = found
            if places is not None:
                self._writer.places(places)
            self._writer.records(STATION, stations)

    def _write_sockets(self) -> int:
        """Moves the stages of sockets that have arrived; returns how many."""
        found = self._sources.take_sockets()
        if found is None:
            return 0
        stages, processes = found
        if processes:
            self._writer.processes({"processes": processes})
        self._writer.records(SOCKET, stages)
        return len(stages)

    def _write_findings(self) -> None:
        found = [] if self._watcher is None else self._watcher.take()
        for one in self._rules:
            found += one.report()
        for kind, message in found:
            self._writer.message(kind, message)

    def _tick(self) -> None:
        clock = hello.clock()
        if abs(clock["wall"] - clock["mono"] - self._offset) > _CLOCK_STEP:
            self._offset = clock["wall"] - clock["mono"]
            self._writer.clock(clock["mono"], clock["wall"])
        if names := self._netns_names.take():
            self._writer.netns_names(names)
        self._writer.books(self._books())

    def _books(self) -> Books:
        return {**self._sources.books(), "expr": self._request.expr}

    # -- the budget

    def _begin_budget(self) -> None:
        if self._budget.limited:
            self._budget.begin(*self._sources.rows(), time.monotonic())

    def _spend(self, arrived: int, lost: int) -> None:
        """Disarms once the budget is spent; before anything is written, which may block."""
        if self._budget.spent(arrived, lost, time.monotonic()):
            self._sources.disarm()
            self._spent = True

    def spend_aside(self) -> None:
        """Checks the budget from a timer's signal while a write to the stream blocks.

        A reader that has stopped must not make the budget last longer.
        """
        if not self._sources.armed:
            return
        # A failure here repeats in the loop, which reports it.
        with contextlib.suppress(CaptureError):
            self._spend(*self._sources.counted_rows())

    def _report_spent(self) -> None:
        self._spent = False
        self._drain()
        self._writer.note(*self._budget.note(self._sources.rows()[0]))
        self._writer.books(self._books())

    def _drain(self) -> None:
        """Writes what was recorded before the disarm, so that the books balance."""
        taken = self._take()
        # After the rules' last changes, which these records may depend on.
        deadline = time.monotonic() + _RULES_AT_END
        for one in self._rules:
            while not one.settled(0.02) and time.monotonic() < deadline:
                self._write_findings()
        self._write_findings()
        self._write(taken)
        while self._pump():
            pass
        self._write_stations(self._sources.take_stations(_NEVER))

    def _finish(self, reason: str) -> Books:
        if self._sources.armed:
            self._sources.disarm()
        self._drain()
        if self._spent:
            self._report_spent()
        self._write_notes()
        books = self._books()
        self._writer.end({**books, "reason": reason})
        return books

    # -- the control line

    def _obey(self, line: ControlLine) -> bool:
        """Carries out the commands that have arrived; False once there will be no more."""
        lines = line.lines()
        return lines is not None and all(map(self._command, lines))

    def _command(self, line: bytes) -> bool:
        try:
            command = parse(line)
            if command.name == "stop":
                return False
            self._carry_out(command)
        except pcap.FilterError as error:
            where = "" if (at := error.position) is None else f", at character {at + 1}"
            self._writer.note("error", f"{error.message}{where}")
        except CaptureError as error:
            self._writer.note("error", str(error))
        return True

    def _carry_out(self, command: Command) -> None:
        """Raises CaptureError; then nothing has changed."""
        if command.name == "filter":
            if self._request.from_rules:
                raise CaptureError("--from-rules traces what rules mark: there is no filter")
            self._sources.filter(pcap.compile(command.expr))
            self._request = replace(self._request, expr=command.expr)
            done = f"filter: {command.expr or 'none'}"
        elif command.name == "arm":
            if self._spent:
                self._report_spent()
            if not self._sources.armed:
                self._sources.arm()
                self._begin_budget()
            done = f"armed; filter: {self._request.expr or 'none'}"
        elif command.name == "stations":
            self._sources.show_stations(command.on)
            done = f"stations: {'on' if command.on else 'off'}"
        elif command.name == "sockets":
            self._sources.show_sockets(command.on)
            done = f"sockets: {'on' if command.on else 'off'}"
        else:
            if self._sources.armed:
                self._sources.disarm()
            self._drain()
            done = "disarmed"
        self._writer.note("info", done)
        self._writer.books(self._books())


def _write_ready(path: Path) -> None:
    try:
        files.write(path, b"%d\n" % os.getpid())
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror}") from error


def main(request: Request, out: int, control: int | None) -> int:
    """Runs an agent with its stream on the descriptor `out`.  Returns the exit status."""
    # Each namespace takes several descriptors.
    files.raise_limit()
    sink = Descriptor(out)
    stop = Stop(sink)
    try:
        return _run(request, sink, stop, control)
    finally:
        stop.ignore_signals()


def _run(request: Request, sink: Descriptor, stop: Stop, control: int | None) -> int:
    try:
        engine = open_engine(request)
    except CaptureError as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    try:
        sources = sources_of(request, engine)
        watcher = Watcher()
    except (CaptureError, OSError) as error:
        engine.close()
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    rules = rule_texts(request, engine)
    for one in rules:
        watcher.add(one.make, "rules")
    only = only_netns(request, engine)
    watcher.add(lambda: NeighbourWatch(only), "neighbours")
    watcher.add(lambda: TableWatch(only), "tables")
    try:
        writer = Writer(sink, checked=request.checked)
        agent = Agent(request, engine, writer, watcher, rules, sources)
        if request.max_rate is not None or request.stop_after is not None:
            stop.while_blocked(agent.spend_aside)
        agent.run(stop, control)
    except BrokenPipeError:
        return 0  # the reader has closed the stream: its way to stop the agent
    except (CaptureError, OSError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    finally:
        for one in rules:
            one.end()
        watcher.close()
        sources.close()
    return 130 if stop.reason == "SIGINT" else 0
