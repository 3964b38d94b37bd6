# SPDX-License-Identifier: GPL-2.0-only
"""Agents and floods in processes of their own, to be killed.

Forked from the tests' process, which has imported all that an agent needs:
starting a Python anew takes ten seconds and more in a slow guest.
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
from ipttrace.lab import traffic
from ipttrace.stream.frames import Decoder, Frame, Kind

PATIENCE = 60.0
"""Seconds after which something is taken never to happen; a slow guest needs a part of it."""

assert ipttrace.capture.kernel.engine


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Looks again and again; whether it was reached in time."""
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
    """`ipttrace agent` with these options; whoever holds it reads the stream, or does not."""

    def __init__(self, **options: Any) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._stream, out = os.pipe()
        control, self._control = os.pipe()
        self._decoder = Decoder()
        self.frames: list[Frame] = []
        self._status: int | None = None

        def run() -> int:
            os.close(self._stream)
            os.close(self._control)
            os.dup2(self._said.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            return agent.main(agent.Request(**options), out, control)

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
        self._said.close()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def tell(self, line: bytes) -> None:
        """A line on the control line."""
        os.write(self._control, line + b"\n")

    @property
    def said(self) -> str:
        """Its stderr."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode()

    def read(self, seconds: float) -> bool:
        """Reads one portion of the stream; False when it has ended, or nothing comes."""
        if not select.select([self._stream], [], [], seconds)[0]:
            return False
        data = os.read(self._stream, 1 << 20)
        self.frames += self._decoder.feed(data)
        return bool(data)

    def wait_for_hello(self) -> None:
        """Until it is armed."""
        self.wait_for(Kind.HELLO)

    def close_stream(self) -> None:
        """Closes this end of it."""
        os.close(self._stream)
        self._stream = -1

    def wait_for(self, kind: Kind) -> Frame:
        """Reads until a frame of that kind has come."""
        while True:
            for frame in self.frames:
                if frame.kind == kind:
                    return frame
            assert self.read(PATIENCE), f"no {kind.name} comes: {self.said}"

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
            assert wait_gone(self.pid), f"the agent does not end: {self.said}"
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


@contextlib.contextmanager
def flooding(ns: str, dst: str = "127.0.0.1", port: int = 9) -> Iterator[int]:
    """Packets from `ns` to `dst` without a pause; gives the flooder's pid."""

    def flood() -> int:
        os.nice(5)  # others shall come to arm and disarm meanwhile
        return traffic.flood(ns, dst, port, duration=3600.0).sent * 0

    pid = fork(flood)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
