# SPDX-License-Identifier: GPL-2.0-only
"""Starts and ends the demo's three processes.

The command forks a process that enters new namespaces and waits; its child, the
first process in the new process namespace, becomes the agent; the agent's child
sets up the network and sends.  Each is killed when its parent dies, and all end
with the agent.  They are forked, not executed, so that the network is set up
while the command imports the rest.

Must not import tui, view or textual.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Final, NoReturn

from ipttrace import namespaces
from ipttrace.lab.network.addresses import SERVER4
from ipttrace.lab.network.nft import HTTPS
from ipttrace.namespaces import NamespaceError
from ipttrace.ready import readable

__all__ = ["PUZZLE", "Demo", "DemoError", "running"]

PUZZLE: Final = f"why does {SERVER4} not answer on TCP port {HTTPS}?"

_STOP: Final = b'{"cmd":"stop"}\n'  # see capture/agent.py
_CLOSE_TIMEOUT: Final = 10.0  # s
# Folders that an ordinary user's PATH lacks.
_SYSTEM_PATH: Final = ("/usr/sbin", "/sbin")
_PROGRAMS: Final = {"ip": "iproute2", "nft": "nftables", "iptables-nft-restore": "iptables"}


class DemoError(Exception):
    """The demo cannot run on this host; the text is one line, with what to do."""


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of running(), for the processes of the demo."""

    expr: str
    duration: float | None
    checked: bool
    path: str  # PATH of the demo's processes


class Demo:
    """A running demo: its agent's stream, to read, and control line, to write."""

    def __init__(self, child: int, stream: int, control: int) -> None:
        self._child = child
        self._status: int | None = None
        self.stream: BinaryIO = os.fdopen(stream, "rb", 0)
        self.control: BinaryIO = os.fdopen(control, "wb", 0)

    def stop(self) -> None:
        """Asks the agent to end its stream, with its final books."""
        with contextlib.suppress(OSError, ValueError):
            self.control.write(_STOP)
            self.control.close()

    def close(self, timeout: float = _CLOSE_TIMEOUT) -> int:
        """Waits up to `timeout` s for the end of all processes, then kills them.

        Returns the agent's exit status, negative if a signal killed it.
        """
        for pipe in (self.control, self.stream):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
        if self._status is None:
            pidfd = os.pidfd_open(self._child)
            if not readable(pidfd, timeout=timeout):
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
    stderr: IO[bytes] | None = None,
) -> Iterator[Demo]:
    """A context manager: a demo that leaves nothing behind.

    `expr` is the filter, `duration` (s) ends the agent; `checked` adds checksums
    to the stream, for a recording; `stderr` receives the processes' errors,
    default: this process's stderr.  Must be entered while this process has one
    thread.  Raises DemoError if the host forbids namespaces or lacks programs.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATH])
    missing = {package for name, package in _PROGRAMS.items() if not shutil.which(name, path=path)}
    if missing:
        names = " ".join(sorted(missing))
        raise DemoError(f"the demo needs {names}: apt-get install {names}, or your host's packages")
    options = _Options(expr, duration, checked, path)
    demo = _start(options, None if stderr is None else stderr.fileno())
    try:
        yield demo
    except BaseException:
        demo.close(0)
        raise
    finally:
        demo.close()


def _start(options: _Options, stderr: int | None) -> Demo:
    stream_read, stream_write = os.pipe()
    control_read, control_write = os.pipe()
    error_read, error_write = os.pipe()
    parent = os.getpid()
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()
    child = os.fork()
    if child == 0:
        ends = [control_read, stream_write, 2 if stderr is None else stderr, error_write]
        _run_child(lambda: _enter_namespaces(parent, ends, options))
    for fd in (stream_write, control_read, error_write):
        os.close(fd)
    demo = Demo(child, stream_read, control_write)
    with os.fdopen(error_read, "rb") as file:
        error = file.read().decode(errors="replace")
    if error:
        demo.close()
        raise DemoError(error)
    return demo


def _run_child(run: Callable[[], int]) -> NoReturn:
    """Runs a forked child: calls `run` and exits without unwinding the parent's stack."""
    status = 1
    try:
        status = run()
    except BaseException as error:
        print(f"ipttrace: the demo ended early: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _enter_namespaces(parent: int, ends: list[int], options: _Options) -> int:
    """The command's child: creates the namespaces and waits for the agent, its child.

    `ends` become its descriptors 0, 1, …, its only ones: control line, stream,
    stderr, and a pipe for the error message if the namespaces cannot be created.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    namespaces.die_with(parent)
    os.environ["PATH"] = options.path
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, len(ends)) for fd in ends]):
        os.dup2(fd, number)
    os.closerange(len(ends), os.sysconf("SC_OPEN_MAX"))
    error_pipe = len(ends) - 1
    try:
        unprivileged = namespaces.unshare_all(_remedy())
    except NamespaceError as error:
        os.write(error_pipe, str(error).encode())
        return 1
    namespaces.die_with(parent)  # the kernel clears it on some changes of credentials
    os.close(error_pipe)
    child = os.fork()
    if child == 0:
        _run_child(lambda: _agent(options, unprivileged))
    for number in (0, 1):
        os.close(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def _remedy() -> str:
    lab = "`ipttrace lab`, which boots a virtual machine"
    return f"use {lab}" if os.geteuid() == 0 else f"use `sudo ipttrace demo`, or {lab}"


def _agent(options: _Options, unprivileged: bool) -> int:
    """The first process of the new namespaces: the agent, once the network is up."""
    # Not ignored any more: as the namespace's first process it is immune to SIGINT
    # until the agent installs its handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    namespaces.die_with(0)
    try:
        namespaces.mount_proc(unprivileged, _remedy())
    except NamespaceError as error:
        print(f"ipttrace: {error}", file=sys.stderr, flush=True)
        return 1
    ready_read, ready_write = os.pipe()
    if os.fork() == 0:
        os.close(ready_read)
        _run_child(lambda: _network(ready_write))
    os.close(ready_write)
    from ipttrace.capture.agent import main
    from ipttrace.capture.request import Request
    from ipttrace.lab.demo.network import ROUTER
    from ipttrace.lab.network.ns import enter

    with os.fdopen(ready_read, "rb") as ready:
        if ready.readline() != b"ready\n":
            return 1
    enter(ROUTER)
    # "all" means the namespaces of the processes in here, and the named ones.
    request = Request(
        expr=options.expr,
        engine="netlink",
        netns="all",
        duration=options.duration,
        checked=options.checked,
    )
    return main(request, 1, 0)


def _network(ready: int) -> int:
    """The agent's child: the network and its traffic, until killed with the namespaces."""
    from ipttrace.lab.demo import network
    from ipttrace.lab.network.ns import NetworkError

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(ready, 1)
    os.close(ready)
    try:
        network.run()
    except NetworkError as error:
        print(f"ipttrace: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
