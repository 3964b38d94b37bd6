# SPDX-License-Identifier: GPL-2.0-only
"""The program as a user starts it, in a session of its own.  Waits for events only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

PROGRAM = str(Path(sys.executable).with_name("ipttrace"))
# Of a kernel with lock debugging; the VM's debug kernel is several times slower.
_LOCKDEP = Path("/proc/lockdep_stats")
# Seconds.  Long, because the guest is slow: importing bcc alone takes ten.
PATIENCE = 180.0 if not _LOCKDEP.exists() else 600.0
NO_BTF = f"kernel {os.uname().release} has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)"
_SUMMARY = r"rows=(\d+) records=(\d+) lost=0 missed=0 engine=kernel(?:\+(?:netlink|bpf))?"
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x008, 0x080  # inotify(7)


class Command:
    """`ipttrace ARGUMENTS`, or the command `argv`; killed at the end of the block.

    `ready`: a file in `folder` that the command must write once it is armed.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        *,
        argv: Sequence[str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
    ) -> None:
        self.ready = folder / "ready"
        self._begun = b""  # a line of which the rest has not been read
        self._stderr = folder / "stderr"
        self._watch = _watch(folder)
        with self._stderr.open("wb") as stderr:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                argv or [PROGRAM, *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for file in (self.process.stdout, self.process.stdin):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        os.close(self._watch)
        os.close(self.pidfd)

    def wait_ready(self) -> None:
        """Waits until the ready file is written."""
        deadline = time.monotonic() + PATIENCE
        while not self.ready.exists():
            left = max(0.0, deadline - time.monotonic())
            came, _, _ = select.select([self._watch, self.pidfd], [], [], left)
            assert self._watch in came, f"not armed: {self.stderr()}"
            os.read(self._watch, 4096)

    def read_lines(self, count: int) -> list[str]:
        """The next `count` lines of its stdout, and those after them that are there."""
        stdout: Any = self.process.stdout
        deadline = time.monotonic() + PATIENCE
        lines: list[bytes] = []
        while len(lines) < count:
            left = max(0.0, deadline - time.monotonic())
            came, _, _ = select.select([stdout], [], [], left)
            assert came, f"{len(lines)} of {count} lines: {self.stderr()}"
            data = os.read(stdout.fileno(), 1 << 16)
            assert data, f"ended after {len(lines)} of {count} lines: {self.stderr()}"
            *complete, self._begun = (self._begun + data).split(b"\n")
            lines += complete
        return [line.decode() for line in lines]

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to every process of the command line."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        """Waits for its end; returns the exit status and the rest of its stdout."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, (self._begun + (out or b"")).decode()

    def stderr(self) -> list[str]:
        """The lines it has written to stderr."""
        return self._stderr.read_text().splitlines()


def _watch(folder: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    added = libc.inotify_add_watch(fd, os.fsencode(folder), _IN_CLOSE_WRITE | _IN_MOVED_TO)
    assert min(fd, added) >= 0, os.strerror(ctypes.get_errno())
    return fd


def ipttrace(
    *arguments: str, hidden: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, with an empty file system mounted over `hidden` if given."""
    argv = [sys.executable, "-m", "ipttrace", *arguments]
    if hidden:
        argv = [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'mount -t tmpfs none {hidden} && exec "$@"',
            "sh",
            *argv,
        ]
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )


def summary(lines: list[str]) -> tuple[int, int]:
    """Rows and records of a trace by the kernel engine, from the only line on stderr."""
    assert len(lines) == 1, lines
    found = re.fullmatch(_SUMMARY, lines[0])
    assert found, lines[0]
    return int(found[1]), int(found[2])
