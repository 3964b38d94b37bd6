# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace demo`: a lab network, its traffic and an agent, apart from the host.

Three processes.  The command forks one that leaves for namespaces of its own
(lab/demo/space.py) and waits; the first process in these becomes the agent; its
child makes the network and sends.  Each is killed when the one before it dies,
and the agent's end is the end of all.  They are forked, not started anew, so
that the network comes up beside the imports.  Must not import a user interface.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Final, NoReturn

from ipttrace.lab.demo import space as demo_space
from ipttrace.lab.demo.space import SpaceError
from ipttrace.lab.network.nft import HTTPS
from ipttrace.lab.network.rules import SERVER4

__all__ = ["PUZZLE", "Demo", "SpaceError", "running"]

PUZZLE: Final = f"why does {SERVER4} not answer on TCP port {HTTPS}?"

_STOP: Final = b'{"cmd":"stop"}\n'  # see capture/agent.py
_PATIENCE: Final = 10.0  # s
# Where an ordinary user's PATH does not look.
_SYSTEM: Final = ("/usr/sbin", "/sbin")
_PROGRAMS: Final = {"ip": "iproute2", "nft": "nftables", "iptables-nft-restore": "iptables"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    expr: str
    duration: float | None
    checked: bool
    path: str  # where programs are looked for


class Demo:
    """A running demo: its stream and the control line of its agent."""

    def __init__(self, child: int, stream: int, control: int) -> None:
        self._child = child
        self._status: int | None = None
        self.stream: BinaryIO = os.fdopen(stream, "rb", 0)
        self.control: BinaryIO = os.fdopen(control, "wb", 0)

    def stop(self) -> None:
        """Asks the agent to end its stream in order."""
        with contextlib.suppress(OSError, ValueError):
            self.control.write(_STOP)
            self.control.close()

    def close(self, patience: float = _PATIENCE) -> int:
        """Waits up to `patience` s for the end of all, then makes it; the agent's exit status.

        Negative if a signal killed it.
        """
        for pipe in (self.control, self.stream):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
        if self._status is None:
            pidfd = os.pidfd_open(self._child)
            if not select.select([pidfd], [], [], patience)[0]:
                os.kill(self._child, signal.SIGKILL)
            os.close(pidfd)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        return self._status


@contextlib.contextmanager
def running(
    expr: str = "",
    duration: float | None = None,
    *,
    checked: bool = False,
    said: IO[bytes] | None = None,
) -> Iterator[Demo]:
    """A demo, of which nothing is left behind.

    `expr` filters, `duration` (s) ends it, as for an agent; `checked`: the stream
    has checksums, for whoever keeps it; `said` takes what goes wrong in there,
    else stderr.  To be entered before this process has other threads.  Raises
    SpaceError where the host has no namespaces or programs for it.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM])
    lacking = {package for name, package in _PROGRAMS.items() if not shutil.which(name, path=path)}
    if lacking:
        names = " ".join(sorted(lacking))
        raise SpaceError(f"the demo needs {names}: apt-get install {names}, or what your host has")
    demo = _start(_Wanted(expr, duration, checked, path), None if said is None else said.fileno())
    try:
        yield demo
    except BaseException:
        demo.close(0)
        raise
    finally:
        demo.close()


def _start(wanted: _Wanted, said: int | None) -> Demo:
    stream_read, stream_write = os.pipe()
    control_read, control_write = os.pipe()
    told_read, told_write = os.pipe()
    parent = os.getpid()
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()
    child = os.fork()
    if child == 0:
        ends = [control_read, stream_write, 2 if said is None else said, told_write]
        _forked(lambda: _apart(parent, ends, wanted))
    for fd in (stream_write, control_read, told_write):
        os.close(fd)
    demo = Demo(child, stream_read, control_write)
    with os.fdopen(told_read, "rb") as file:
        error = file.read().decode(errors="replace")
    if error:
        demo.close()
        raise SpaceError(error)
    return demo


def _forked(run: Callable[[], int]) -> NoReturn:
    """What a forked child does: `run`, and nothing of what its parent was about to do."""
    status = 1
    try:
        status = run()
    except BaseException as error:
        print(f"ipttrace: the demo broke off: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _apart(parent: int, ends: list[int], wanted: _Wanted) -> int:
    """The process between: its child is the first of the new process namespace.

    `ends` become its descriptors 0, 1, …, and it has no others; the last is told
    what goes wrong until the namespaces are there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    demo_space.die_with(parent)
    os.environ["PATH"] = wanted.path
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, len(ends)) for fd in ends]):
        os.dup2(fd, number)
    os.closerange(len(ends), os.sysconf("SC_OPEN_MAX"))
    told = len(ends) - 1
    try:
        apart = demo_space.leave()
    except SpaceError as error:
        os.write(told, str(error).encode())
        return 1
    demo_space.die_with(parent)  # some changes of credentials forget it
    os.close(told)
    child = os.fork()
    if child == 0:
        _forked(lambda: _first(wanted, apart))
    for number in (0, 1):
        os.close(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def _first(wanted: _Wanted, apart: bool) -> int:
    """The first process of the new namespaces: the agent, once the network is there."""
    # The kernel spares a first process the signals that it does not catch; and
    # the agent will.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    demo_space.die_with(0)
    try:
        demo_space.own_proc(apart)
    except SpaceError as error:
        print(f"ipttrace: {error}", file=sys.stderr, flush=True)
        return 1
    ready_read, ready_write = os.pipe()
    if os.fork() == 0:
        os.close(ready_read)
        _forked(lambda: _network(ready_write))
    os.close(ready_write)
    from ipttrace.capture.agent import main
    from ipttrace.capture.request import Request
    from ipttrace.lab.demo.network import ROUTER
    from ipttrace.lab.network.ns import enter

    with os.fdopen(ready_read, "rb") as ready:
        if ready.readline() != b"ready\n":
            return 1
    enter(ROUTER)
    # All namespaces are those of the processes in here, and the named ones.
    request = Request(
        expr=wanted.expr,
        engine="netlink",
        netns="all",
        duration=wanted.duration,
        checked=wanted.checked,
    )
    return main(request, 1, 0)


def _network(ready: int) -> int:
    """The network and its traffic, until it is killed with its process namespace."""
    from ipttrace.lab.demo import network as demo_network
    from ipttrace.lab.network.ns import NetworkError

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(ready, 1)
    os.close(ready)
    try:
        demo_network.run()
    except NetworkError as error:
        print(f"ipttrace: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
