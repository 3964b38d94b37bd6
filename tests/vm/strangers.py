# SPDX-License-Identifier: GPL-2.0-only
"""Processes that have nothing to do with ipttrace, on a host where it traces."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm.forked import fork

NOBODY = 65534
NETLINK_GENERIC = 16  # linux/netlink.h
NEWUSER, NEWNET = 0x10000000, 0x40000000  # linux/sched.h


def as_nobody(run: Callable[[], int | None], apart: bool = False) -> int:
    """The pid of a child that runs `run` without privileges.

    `apart`: in a user and a network namespace of its own, where it may do as it likes.
    """

    def child() -> int | None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        if apart and ctypes.CDLL(None, use_errno=True).unshare(NEWUSER | NEWNET) != 0:
            return 77
        return run()

    return fork(child)


def result(pid: int) -> int:
    """The exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def generic_socket() -> socket.socket:
    """A socket of generic netlink, bound."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    sock.bind((0, 0))
    return sock


def families(sock: socket.socket) -> bytes:
    """Asks the kernel for all its families; returns the first part of the answer."""
    body = struct.pack("=BBH", 3, 1, 0)  # linux/genetlink.h: CTRL_CMD_GETFAMILY
    sock.send(struct.pack("=IHHII", 16 + len(body), 16, 0x301, 1, 0) + body)
    return sock.recv(1 << 16)


class Timed:
    """How often a child has done something, and how long it took at most, for its parent."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._values = memoryview(self._shared).cast("d")

    def run(self, act: Callable[[], object]) -> None:
        self._values[1] = begun = time.monotonic()
        act()
        self._values[2] = max(self._values[2], time.monotonic() - begun)
        self._values[0] += 1

    @property
    def count(self) -> int:
        return int(self._values[0])

    def restart(self) -> None:
        """Forgets the longest time."""
        self._values[2] = 0.0

    def longest(self, since: float) -> float:
        """The longest time since `restart`, which was then; that of the current one too, s."""
        return max(self._values[2], time.monotonic() - max(self._values[1], since))


@contextlib.contextmanager
def repeating(act: Callable[[], object]) -> Iterator[Timed]:
    """A child that does it again and again, and measures how long it takes."""
    timed = Timed()

    def run() -> None:
        while True:
            timed.run(act)

    pid = fork(run)
    try:
        yield timed
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def replacing(rules: str) -> Iterator[Callable[[], int]]:
    """An unprivileged user who replaces his own rules in a loop; yields how often he did."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    (folder / "rules").write_text(rules)
    done = folder / "done"
    loop = f"cd {folder}; while iptables-legacy-restore < rules; do echo x >> done; done; echo end"
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    argv += ["unshare", "-Urn", "sh", "-c", loop]
    lock = {"XTABLES_LOCKFILE": str(folder / "lock")}
    process = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **lock},
        start_new_session=True,
    )
    try:
        yield lambda: done.stat().st_size // 2 if done.exists() else 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        shutil.rmtree(folder)
    assert not errors, errors
