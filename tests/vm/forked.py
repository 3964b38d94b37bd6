# SPDX-License-Identifier: GPL-2.0-only
"""Agents and floods in processes of their own, which a test can kill.

Forked from the tests' process, which has imported everything an agent needs: starting
another Python takes ten seconds or more in a slow guest.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ipttrace.capture.kernel.engine
from ipttrace.capture import agent
from ipttrace.capture.request import Request
from ipttrace.lab import traffic
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame, Kind
from tests.vm.patience import PATIENCE

assert ipttrace.capture.kernel.engine


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Polls until `reached()`; False after that many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def wait_gone(pid: int, seconds: float = PATIENCE) -> bool:
    """Waits until the process has ended, a child or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def fork(run: Callable[[], int | None]) -> int:
    """The pid of a child that runs `run` and ends with its result."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = run() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


class Agent:
    """`ipttrace agent` with these options, without drops; its stream is read only by `read`."""

    def __init__(self, **options: Any) -> None:
        self._stderr_file = tempfile.TemporaryFile()  # noqa: SIM115
        self._stream, out = os.pipe()
        control, self._control = os.pipe()
        self._decoder = Decoder()
        self.frames: list[Frame] = []
        self._status: int | None = None
        options.setdefault("drops", False)  # most tests count an engine's records alone

        def run() -> int:
            os.close(self._stream)
            os.close(self._control)
            os.dup2(self._stderr_file.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            return agent.main(Request(**options), out, control)

        self.pid = fork(run)
        os.close(out)
        os.close(control)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            self.signal(signal.SIGKILL)
            self.wait()
        for fd in (self._stream, self._control):
            if fd >= 0:
                os.close(fd)
        self._stderr_file.close()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def send(self, line: bytes) -> None:
        """Writes a line to its control line."""
        os.write(self._control, line + b"\n")

    @property
    def stderr(self) -> str:
        """What it has written to stderr."""
        return os.pread(self._stderr_file.fileno(), 1 << 20, 0).decode()

    def read(self, seconds: float) -> bool:
        """Reads what has arrived of the stream; False if it has ended, or after `seconds`."""
        if not select.select([self._stream], [], [], seconds)[0]:
            return False
        data = os.read(self._stream, 1 << 20)
        self.frames += self._decoder.feed(data)
        return bool(data)

    def wait_for_hello(self) -> None:
        """Waits until it is armed."""
        self.wait_for(Kind.HELLO)

    def close_stream(self) -> None:
        """Closes the reading end of the stream."""
        os.close(self._stream)
        self._stream = -1

    def wait_for(self, kind: Kind) -> Frame:
        """Reads until there is a frame of that kind."""
        while True:
            for frame in self.frames:
                if frame.kind == kind:
                    return frame
            assert self.read(PATIENCE), f"no {kind.name} frame: {self.stderr}"

    def notes(self) -> list[str]:
        return [frame.json["text"] for frame in self.frames if frame.kind == Kind.NOTE]

    def drain(self) -> None:
        """Reads the stream to its end."""
        while self.read(PATIENCE):
            pass
        self._decoder.finish()

    def wait(self) -> int:
        """Its exit status, negative if a signal killed it."""
        if self._status is None:
            assert wait_gone(self.pid), f"the agent does not end: {self.stderr}"
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


@contextlib.contextmanager
def flooding(ns: str, dst: str = "127.0.0.1", port: int = 9) -> Iterator[int]:
    """Packets from `ns` to `dst` without a pause; yields the pid of their sender."""

    def flood() -> int:
        os.nice(5)  # so that others can arm and disarm meanwhile
        return traffic.flood(ns, dst, port, duration=3600.0).sent * 0

    pid = fork(flood)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
