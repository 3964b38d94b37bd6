# SPDX-License-Identifier: GPL-2.0-only
"""The privileged half: an engine on one side, the stream on the other.

Thin: it moves records and answers the control line, which is one JSON object a
line: ``{"cmd": "filter", "expr": "tcp port 80"}``, ``{"cmd": "disarm"}``,
``{"cmd": "arm"}``, ``{"cmd": "stop"}``.  The end of the control line means
stop, so that an agent never outlives who started it.  Must not import a view.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ipttrace import __version__
from ipttrace.capture import doctor, namespaces, pcapfilter
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.host import Host
from ipttrace.capture.neighbours import NeighbourWatch
from ipttrace.capture.ruleset import Rules
from ipttrace.capture.watch import Watcher
from ipttrace.stream.frames import Kind, Writer

# How often buffers are looked at, s: short enough for eyes, long enough to cost
# an idle host nothing and to take many records at once.  A flood wakes us sooner.
_PAUSE: Final = 0.05
# The same once nothing has come for a second.
_REST: Final = 0.2
_BOOKS_EVERY: Final = 1.0
# Seconds that a reader may stand still once we were told to end.
_STALLS: Final = 4
# How long what is there already may take to be read before we say that we are ready.
_FIRST_LOOK: Final = 1.0
# A step of the wall clock that is worth telling, ns.
_STEP: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for."""

    expr: str = ""
    engine: str = "auto"
    netns: str | None = None
    buffer: int | None = None
    maxactive: int | None = None
    duration: float | None = None
    ready_file: Path | None = None


class Descriptor:
    """A sink on a file descriptor: all of the data, whatever write(2) takes at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._writing = False
        self._taken = 0
        self._seen = -1
        self._stalls = 0

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        self._writing = True
        try:
            while rest:
                try:
                    count = os.write(self._fd, rest)
                except BlockingIOError:
                    # Somebody whose pipe it is too made it so.
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
                    continue
                rest = rest[count:]
                self._taken += count
        finally:
            self._writing = False
        return len(data)

    def check(self) -> None:
        """To be called by a timer's signal.  Raises CaptureError if the reader stands still.

        By exception, because a write(2) that blocks is gone on with after any
        other signal.
        """
        if not self._writing:
            return
        self._stalls = self._stalls + 1 if self._taken == self._seen else 0
        self._seen = self._taken
        if self._stalls >= _STALLS:
            raise CaptureError("nobody reads the stream: its end is missing")


class _Stop:
    """Set by signals; a flag, so that a frame is never cut in two.

    From then on a reader that stands still is given up after a while.
    """

    def __init__(self, sink: Descriptor) -> None:
        self.reason = ""
        self._sink = sink
        signal.signal(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup(1) means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on)

    def _on(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def over(self) -> None:
        """To be called last: python sets signals back to their default, and is then killed by
        an alarm or a second Ctrl-C if it takes long to be gone."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._sink.check()


def _clock() -> tuple[int, int]:
    """CLOCK_MONOTONIC and CLOCK_REALTIME of one moment, ns."""
    best: tuple[int, int, int] | None = None
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        took = time.monotonic_ns() - before
        if best is None or took < best[0]:
            best = (took, before + took // 2, wall)
    assert best is not None
    return best[1], best[2]


def _hello(request: Request, engine: Any) -> dict[str, Any]:
    mono, wall = _clock()
    return {
        "engine": engine.name,
        "version": __version__,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "host": socket.gethostname(),
        "cpus": engine.buffers.cpus,
        "expr": request.expr,
        "netns": {str(inode): name for inode, name in namespaces.names().items()},
        "only_netns": request.netns,
        "clock": {"mono": mono, "wall": wall},
    }


def open_engine(request: Request) -> Any:
    """The engine that the request asks for, armed.  Raises CaptureError, FilterError."""
    from ipttrace.capture.kernel import DEFAULT_BUFFER, KernelEngine, Options

    if request.engine == "netlink":
        raise CaptureError("this version has no netlink engine: use --engine kernel")
    return KernelEngine(
        Options(
            program=pcapfilter.compile(request.expr),
            netns=None if request.netns is None else namespaces.inode(request.netns),
            buffer=request.buffer or DEFAULT_BUFFER,
            maxactive=request.maxactive,
        )
    )


class Agent:
    """One run: from an armed engine to the stream's last frame."""

    def __init__(
        self,
        request: Request,
        engine: Any,
        writer: Writer,
        watcher: Watcher | None = None,
        first: threading.Event | None = None,
    ) -> None:
        """`first`: set once what rows need has been read for the first time."""
        self._request = request
        self._engine = engine
        self._writer = writer
        self._watcher = watcher
        self._first = first
        self._offset = 0
        self._armed = True
        self._control = b""

    def run(self, stop: Any, control: int | None) -> dict[str, Any]:
        """Until `stop` has a reason, time is up or the control line ends.

        Returns the last books.  `control` is a descriptor or None.
        """
        engine, writer = self._engine, self._writer
        watched = [] if self._watcher is None else [self._watcher.fd]
        watched += [] if control is None else [control]
        for fd in watched:
            engine.buffers.watch(fd)
        hello = _hello(self._request, engine)
        self._offset = hello["clock"]["wall"] - hello["clock"]["mono"]
        writer.hello(hello)
        for level, text in engine.notes:
            writer.note(level, text)
        writer.books(engine.books())
        self._first_look(stop)
        if self._request.ready_file is not None:
            self._request.ready_file.write_text(f"{os.getpid()}\n")

        began = time.monotonic()
        books_due = began
        came = began
        while not stop.reason:
            busy = time.monotonic() - came < 1
            ready = engine.buffers.wait(_PAUSE if busy else _REST)
            if control is not None and control in ready and not self._obey(control):
                stop.reason = "stopped"
            now = time.monotonic()
            self._relay()
            if self._pump():
                came = now
            if now >= books_due:
                books_due = now + _BOOKS_EVERY
                self._tick()
            if self._request.duration is not None and now - began >= self._request.duration:
                stop.reason = "duration"
        for fd in watched:
            engine.buffers.unwatch(fd)
        return self._finish(stop.reason)

    def _first_look(self, stop: Any) -> None:
        """Waits a little for the rules; records that come meanwhile come after them."""
        if self._first is None:
            return
        taken = []
        deadline = time.monotonic() + _FIRST_LOOK
        while not stop.reason and time.monotonic() < deadline and not self._first.wait(0.02):
            taken.append(self._engine.take())
        self._relay()
        for records in taken:
            self._write(records)

    def _pump(self) -> int:
        return self._write(self._engine.take())

    def _write(self, taken: Any) -> int:
        came = 0
        for kind, records in enumerate(taken):
            if len(records):
                came += len(records)
                self._writer.records(kind, records)
        return came

    def _relay(self) -> None:
        """Writes what the watches have seen."""
        if self._watcher is None:
            return
        for kind, value in self._watcher.take():
            if kind == Kind.NOTE:
                self._writer.note(value["level"], value["text"])
            else:
                self._writer.about(kind, value)

    def _tick(self) -> None:
        mono, wall = _clock()
        if abs(wall - mono - self._offset) > _STEP:
            self._offset = wall - mono
            self._writer.clock(mono, wall)
        self._writer.books(self._engine.books())

    def _finish(self, reason: str) -> dict[str, Any]:
        if self._armed:
            self._engine.disarm()
        while self._pump():
            pass
        books: dict[str, Any] = self._engine.books()
        self._writer.end({**books, "reason": reason})
        return books

    def _obey(self, control: int) -> bool:
        """Carries out what stands on the control line; False when it has ended."""
        data = os.read(control, 65536)
        if not data:
            return False
        *lines, self._control = (self._control + data).split(b"\n")
        if len(self._control) > 1 << 20:
            raise CaptureError("the control line has no end")
        return all(self._command(line) for line in lines if line.strip())

    def _command(self, line: bytes) -> bool:
        try:
            command = json.loads(line)
            name = command["cmd"]
            if name == "stop":
                return False
            if name == "filter":
                expr = str(command["expr"])
                self._engine.filter(pcapfilter.compile(expr))
                self._request = replace(self._request, expr=expr)
                self._writer.note("info", f"filter: {expr or 'none'}")
            elif name == "disarm" and self._armed:
                self._engine.disarm()
                self._armed = False
                self._writer.note("info", "disarmed")
            elif name == "arm" and not self._armed:
                raise CaptureError("arming again is done by starting again")
            else:
                raise CaptureError(f"unknown or untimely command {name!r}")
        except (ValueError, KeyError, TypeError):
            self._writer.note("error", "a line on the control line is no command")
        except (CaptureError, pcapfilter.FilterError) as error:
            self._writer.note("error", str(error))
        return True


def _refuse_in_vain(host: Host) -> None:
    """Raises CaptureError, one line, where the engine could not run anyway.

    Before anything is touched, and before bcc is imported, which takes seconds.
    """
    if (lacking := doctor.why_not(host)) is not None:
        raise CaptureError(lacking.line())
    if (pid := host.pins_holder) is not None:
        raise CaptureError(
            f"another ipttrace (pid {pid}) traces on this host already: stop it first"
        )


def main(request: Request, out: int, control: int | None) -> int:
    """Runs an agent with its stream on `out`.  Returns the exit status."""
    sink = Descriptor(out)
    stop = _Stop(sink)
    try:
        return _run(request, sink, stop, control)
    finally:
        stop.over()


def _run(request: Request, sink: Descriptor, stop: _Stop, control: int | None) -> int:
    try:
        if request.engine != "netlink":
            _refuse_in_vain(Host.here())
        engine = open_engine(request)
    except CaptureError as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    watcher = Watcher()
    rules = Rules(request.netns)
    watcher.add(rules.make, "rules")
    watcher.add(lambda: NeighbourWatch(request.netns), "neighbours")
    try:
        Agent(request, engine, Writer(sink), watcher, rules.first).run(stop, control)
    except BrokenPipeError:
        # Nobody reads any more: that is how a reader says goodbye.
        return 0
    except (CaptureError, OSError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    finally:
        rules.end()
        watcher.close()
        engine.close()
    return 130 if stop.reason == "SIGINT" else 0
