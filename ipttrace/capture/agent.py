# SPDX-License-Identifier: GPL-2.0-only
"""The privileged half: an engine on one side, the stream on the other.

Thin: it moves records, carries out what the control line says (orders.py), and
keeps to the budget.  Must not import a view.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ipttrace import __version__
from ipttrace.capture import doctor
from ipttrace.capture import netns as namespaces
from ipttrace.capture.budget import Budget
from ipttrace.capture.control_line import ControlLine, Order, parse
from ipttrace.capture.doctor.machine import Host
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.neighbours.watch import NeighbourWatch
from ipttrace.capture.output import Descriptor
from ipttrace.capture.rules.kernel_watch import Rules
from ipttrace.capture.signals import Stop
from ipttrace.capture.watch import Watcher
from ipttrace.stream.frames import Kind, Writer
from ipttrace.stream.record import EXIT

# How often buffers are looked at, s: short enough for eyes, long enough to cost
# an idle host nothing and to take many records at once.  A flood wakes us sooner.
_PAUSE: Final = 0.05
# The same once nothing has come for a second.
_REST: Final = 0.2
_BOOKS_EVERY: Final = 1.0
# How long what is there already may take to be read before we say that we are ready.
_FIRST_LOOK: Final = 1.0
# And at the end, what the last of it says.
_LAST_LOOK: Final = 1.0
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
    checked: bool = True  # frames have checksums: for all that is kept, or crosses a network
    max_rate: int | None = None
    stop_after: int | None = None


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
    program = pcapfilter.compile(request.expr)
    if request.engine == "netlink":
        return _netlink_engine(request, program)
    # Before anything is touched, and before bcc is imported, which takes seconds.
    host = Host.here()
    lacking = doctor.why_not(host)
    if lacking is None:
        kernel = _kernel_engine(request, program, host)
        return kernel if request.engine == "kernel" else _beside(request, program, kernel, host)
    if request.engine == "kernel":
        raise CaptureError(lacking.line())
    try:
        engine = _netlink_engine(request, program)
    except CaptureError as error:
        raise CaptureError(f"{error}; the kernel engine cannot run: {lacking.text}") from error
    where = "" if request.netns else " in this network namespace (--netns all: in every one)"
    said = f"tracing over netlink{where}; no kernel engine: {lacking.text}"
    engine.notes.insert(0, ("warn", said))
    return engine


def _kernel_engine(request: Request, program: bytes, host: Host) -> Any:
    if (pid := host.pins_holder) is not None:
        raise CaptureError(
            f"another ipttrace (pid {pid}) traces on this host already: stop it first"
        )
    from ipttrace.capture.kernel.engine import DEFAULT_BUFFER, KernelEngine, Options

    everywhere = request.netns in (None, namespaces.ALL)
    return KernelEngine(
        Options(
            program=program,
            netns=None if everywhere else namespaces.inode(request.netns or ""),
            buffer=request.buffer or DEFAULT_BUFFER,
            maxactive=request.maxactive,
        )
    )


def _beside(request: Request, program: bytes, kernel: Any, host: Host) -> Any:
    """The kernel engine, and the other beside it for nftables, where that is possible."""
    if "nf_tables" not in host.modules:
        return kernel  # nobody uses it here, and it is not to be loaded for that
    from ipttrace.capture import combined as both
    from ipttrace.capture.filter import nft as nft_filter
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options

    try:
        both.refuse_inexact(nft_filter.compile(program))
        where = request.netns or namespaces.ALL  # as the kernel engine takes it
        options = Options(program, where, DEFAULT_BUFFER, legacy=False, first=both.FIRST)
        return both.BothEngines(kernel, NetlinkEngine(options))
    except CaptureError as error:
        kernel.notes.append(("warn", f"nftables is not traced: {error}"))
        return kernel
    except BaseException:
        kernel.close()
        raise


def _netlink_engine(request: Request, program: bytes) -> Any:
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options

    return NetlinkEngine(Options(program, request.netns, request.buffer or DEFAULT_BUFFER))


class Agent:
    """One run: from an armed engine to the stream's last frame."""

    def __init__(
        self,
        request: Request,
        engine: Any,
        writer: Writer,
        watcher: Watcher | None = None,
        rules: Sequence[Any] = (),
    ) -> None:
        """`rules`: the watches of what rows need, see nltexts.Texts."""
        self._request = request
        self._engine = engine
        self._writer = writer
        self._watcher = watcher
        self._rules = rules
        self._offset = 0
        self._armed = True
        self._budget = Budget(request.max_rate, request.stop_after)
        self._exits = 0
        self._spent = False  # the budget has disarmed, which is still to be told

    def run(self, stop: Any, control: int | None) -> dict[str, Any]:
        """Until `stop` has a reason, time is up or the control line ends.

        Returns the last books.  `control` is a descriptor or None.
        """
        engine, writer = self._engine, self._writer
        watched = [] if self._watcher is None else [self._watcher.fd]
        watched += [] if control is None else [control]
        line = None if control is None else ControlLine(control)
        for fd in watched:
            engine.buffers.watch(fd)
        self._begin_budget()
        hello = _hello(self._request, engine)
        self._offset = hello["clock"]["wall"] - hello["clock"]["mono"]
        writer.hello(hello)
        self._tell()
        writer.books(self._books())
        self._first_look(stop)
        if self._request.ready_file is not None:
            self._request.ready_file.write_text(f"{os.getpid()}\n")

        began = time.monotonic()
        books_due = began
        came = began
        while not stop.reason:
            busy = time.monotonic() - came < 1
            ready = engine.buffers.wait(_PAUSE if busy else _REST)
            if line is not None and line.fd in ready and not self._obey(line):
                stop.reason = "stopped"
            now = time.monotonic()
            self._relay()
            if self._pump():
                came = now
            if self._spent:
                self._tell_spent()
            self._tell()
            if self._engine.over:
                stop.reason = self._engine.over
            if now >= books_due:
                books_due = now + _BOOKS_EVERY
                self._tick()
            if self._request.duration is not None and now - began >= self._request.duration:
                stop.reason = "duration"
        for fd in watched:
            engine.buffers.unwatch(fd)
        return self._finish(stop.reason)

    def _tell(self) -> None:
        """Writes what the engine has to say."""
        while self._engine.notes:
            self._writer.note(*self._engine.notes.pop(0))

    def _first_look(self, stop: Any) -> None:
        """Waits a little for the rules; records that come meanwhile come after them."""
        taken = []
        deadline = time.monotonic() + _FIRST_LOOK
        for one in self._rules:
            while not stop.reason and time.monotonic() < deadline and not one.first.wait(0.02):
                taken.append(self._take())
        self._relay()
        for records in taken:
            self._write(records)

    def _take(self) -> Any:
        taken = self._engine.take()
        self._exits += sum(map(len, taken[EXIT:]))
        if self._armed and self._budget.limited:
            self._spend(self._exits, self._engine.lost_exits())
        return taken

    def _pump(self) -> int:
        return self._write(self._take())

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
        self._writer.books(self._books())

    def _books(self) -> dict[str, Any]:
        return {**self._engine.books(), "expr": self._request.expr}

    # -- the budget

    def _begin_budget(self) -> None:
        if self._budget.limited:
            self._budget.begin(self._exits, self._engine.lost_exits(), time.monotonic())

    def _spend(self, came: int, lost: int) -> None:
        """At once, before anything is written: the reader may be slow."""
        if self._budget.spent(came, lost, time.monotonic()):
            self._engine.disarm()
            self._armed = False
            self._spent = True

    def spend_aside(self) -> None:
        """To be called by a timer's signal while the stream is being written.

        A reader that stands still must not make the budget last longer.
        """
        if not self._armed:
            return
        # What fails here fails again in the loop, which says so.
        with contextlib.suppress(CaptureError):
            books = self._engine.books()
            lost = books["lost"][EXIT]
            self._spend(books["due"][EXIT] - lost, lost)

    def _tell_spent(self) -> None:
        self._spent = False
        self._drain()
        self._writer.note(*self._budget.words(self._exits))
        self._writer.books(self._books())

    def _drain(self) -> None:
        """What was written before the disarm, so that the books balance."""
        taken = self._take()
        # After what the rules were, of which this may be the first to tell.
        deadline = time.monotonic() + _LAST_LOOK
        for one in self._rules:
            while not one.settled(0.02) and time.monotonic() < deadline:
                self._relay()
        self._relay()
        self._write(taken)
        while self._pump():
            pass

    def _finish(self, reason: str) -> dict[str, Any]:
        if self._armed:
            self._engine.disarm()
            self._armed = False
        self._drain()
        if self._spent:
            self._tell_spent()
        books = self._books()
        self._writer.end({**books, "reason": reason})
        return books

    # -- the control line

    def _obey(self, line: ControlLine) -> bool:
        """Carries out what stands on the control line; False when it is over."""
        lines = line.lines()
        return lines is not None and all(map(self._command, lines))

    def _command(self, line: bytes) -> bool:
        try:
            order = parse(line)
            if order.name == "stop":
                return False
            self._carry_out(order)
        except pcapfilter.FilterError as error:
            at = error.position
            where = "" if at is None else f", at character {at + 1}"
            self._writer.note("error", f"{error.message}{where}")
        except CaptureError as error:
            self._writer.note("error", str(error))
        return True

    def _carry_out(self, order: Order) -> None:
        """Raises CaptureError; then all is as before."""
        if order.name == "filter":
            self._engine.filter(pcapfilter.compile(order.expr))
            self._request = replace(self._request, expr=order.expr)
            said = f"filter: {order.expr or 'none'}"
        elif order.name == "arm":
            if self._spent:
                self._tell_spent()
            if not self._armed:
                self._engine.arm()
                self._armed = True
                self._begin_budget()
            said = f"armed; filter: {self._request.expr or 'none'}"
        else:
            if self._armed:
                self._engine.disarm()
                self._armed = False
            self._drain()
            said = "disarmed"
        self._writer.note("info", said)
        self._writer.books(self._books())


def _rules(request: Request, engine: Any) -> list[Any]:
    """What watches the rules that the engine's rows are of."""
    found: list[Any] = []
    if engine.name != "netlink":
        found.append(Rules(None if request.netns == namespaces.ALL else request.netns))
    if engine.name != "kernel":
        from ipttrace.capture.rules.netlink_watch import Texts

        found.append(Texts(engine.changes))
    return found


def _whose(request: Request, engine: Any) -> str | None:
    """The namespace that is traced, None where it is more than one."""
    if request.netns is None and engine.name == "netlink":
        return "/proc/self/ns/net"
    return None if request.netns == namespaces.ALL else request.netns


def main(request: Request, out: int, control: int | None) -> int:
    """Runs an agent with its stream on `out`.  Returns the exit status."""
    sink = Descriptor(out)
    stop = Stop(sink)
    try:
        return _run(request, sink, stop, control)
    finally:
        stop.over()


def _run(request: Request, sink: Descriptor, stop: Stop, control: int | None) -> int:
    try:
        engine = open_engine(request)
    except CaptureError as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    watcher = Watcher()
    rules = _rules(request, engine)
    for one in rules:
        watcher.add(one.make, "rules")
    watcher.add(lambda: NeighbourWatch(_whose(request, engine)), "neighbours")
    try:
        agent = Agent(request, engine, Writer(sink, checked=request.checked), watcher, rules)
        if request.max_rate is not None or request.stop_after is not None:
            stop.meanwhile(agent.spend_aside)
        agent.run(stop, control)
    except BrokenPipeError:
        # Nobody reads any more: that is how a reader says goodbye.
        return 0
    except (CaptureError, OSError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    finally:
        for one in rules:
            one.end()
        watcher.close()
        engine.close()
    return 130 if stop.reason == "SIGINT" else 0
