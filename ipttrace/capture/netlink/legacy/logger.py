# SPDX-License-Identifier: GPL-2.0-only
"""Makes a namespace send what legacy rules log to nfnetlink_log, and puts it back.

What was there comes back on every way out: `give_back`; after kill -9 a guard process
does it at once (logger_guard.py); and if that was killed too, `repair` at the next
start.  Must not read the messages, and must not keep a namespace alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.legacy import logger_guard as guard
from ipttrace.capture.netlink.legacy.logger_guard import NONE, OURS, State

FAMILIES: Final = (2, 10)  # NFPROTO_IPV4, NFPROTO_IPV6
# A guard that takes longer, s, will not come or go any more.
_PATIENCE: Final = 20.0
_WITHOUT: Final = "legacy rules are not traced: "


class LogSetting:
    """The settings that this process has changed.  One is enough for all namespaces."""

    def __init__(self) -> None:
        """Starts the guard, in the calling thread's namespace: it must be no traced one,
        or one that the process is in anyway.  Raises CaptureError."""
        place = guard.folder()
        if place is None:
            raise CaptureError(
                f"{_WITHOUT}there is no folder to note in what to put back afterwards: "
                f"one of {', '.join(guard.folders())} must be writable"
            )
        self._place = place
        self._lock = threading.Lock()
        self._taken: dict[int, State] = {}
        self._ready = False
        command = [sys.executable, "-I", "-S", guard.__file__, place, str(os.getpid())]
        try:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise CaptureError(f"{_WITHOUT}{command[0]} does not start: {error}") from error

    @property
    def guard(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    def take(self, path: str, inode: int, families: Iterable[int] = FAMILIES) -> None:
        """Sets nfnetlink_log for these families (NFPROTO) of the calling thread's namespace.

        That is the one with `inode`, and `path` leads to it.  To be called when group 0
        is ours (nflog.open), so that two processes do not both want it; and to be given
        back before that group is.  Raises CaptureError, with nothing changed.
        """
        with self._lock:
            self._wait_for_guard()
            try:
                with guard.locked(self._place):
                    self._take(path, inode, families)
            except BlockingIOError as error:
                raise CaptureError(
                    f"{_WITHOUT}another process holds {self._place}/nf_log.lock"
                ) from error
            except OSError as error:
                raise CaptureError(f"{_WITHOUT}{error}") from error

    def _take(self, path: str, inode: int, families: Iterable[int]) -> None:
        old = {}
        for family in families:
            try:
                old[family] = guard.logger(family)
            except FileNotFoundError:
                raise CaptureError(
                    f"{_WITHOUT}/proc/sys/net/netfilter/nf_log is missing (CONFIG_NETFILTER)"
                ) from None
        state = State(path, inode, guard.cookie(), old)
        for other in guard.states(self._place):
            # Of another run, or of ours before: what was there before that.
            if other.same_namespace(state):
                for family, name in other.old.items():
                    if old.get(family, OURS) == OURS:
                        old[family] = name
        changing = [family for family in old if guard.logger(family) != OURS]
        if all(name == OURS for name in old.values()):
            return
        if any(old[family] != NONE for family in changing) and not guard.writable():
            raise CaptureError(
                f"{_WITHOUT}/proc/sys cannot be written, so that what logs now could not be "
                "put back afterwards: make it writable"
            )
        guard.write(self._place, state)
        self._taken[inode] = state
        try:
            for family in changing:
                guard.set_logger(family, OURS)
        except OSError as error:
            with contextlib.suppress(OSError):
                guard.settle(self._place, state)
                del self._taken[inode]
            if error.errno == errno.ENOENT:
                raise CaptureError(
                    f"{_WITHOUT}this kernel has no nfnetlink_log (modprobe nfnetlink_log)"
                ) from error
            raise

    def give_back(self, inode: int | None = None) -> list[str]:
        """What was there before is there again, where it is still ours.

        Of the namespace `inode`; None: of all, and the guard ends.  Returns a sentence
        for each that could not be put back: the next start tries again.
        """
        problems = []
        with self._lock:
            for state in list(self._taken.values()):
                if inode is not None and state.inode != inode:
                    continue
                try:
                    with guard.locked(self._place):
                        guard.settle(self._place, state)
                except OSError as error:
                    problems.append(
                        f"{_settings(state.old)} of network namespace {state.title} could not "
                        f"be put back: {error.strerror}"
                    )
                del self._taken[state.inode]
            if inode is None:
                self._end_guard()
        return problems

    def _wait_for_guard(self) -> None:
        said = self._guard.stdout
        if not self._ready and said is not None:
            if select.select([said], [], [], _PATIENCE)[0]:
                self._ready = said.read(1) == b"\n"
            said.close()
            self._guard.stdout = None
        if not self._ready or self._guard.poll() is not None:
            raise CaptureError(
                f"{_WITHOUT}the process that would put the logging back after a crash has ended"
            )

    def _end_guard(self) -> None:
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._guard.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def repair() -> list[str]:
    """Puts back what runs have left that were killed together with their guards.

    The calling thread enters namespaces and comes back.  Returns a sentence for each
    namespace where something was put back.
    """
    said = []
    for place in filter(guard.usable, guard.folders()):
        with contextlib.suppress(OSError), guard.locked(place):
            for state in guard.states(place):
                if state.alive:
                    continue
                if state.boot != guard.boot_id():
                    guard.remove(place, state)
                    continue
                with contextlib.suppress(OSError):
                    if done := guard.settle(place, state):
                        said.append(
                            f"put back {_settings(done)} of network namespace {state.title}, "
                            f"left by process {state.pid}, which was killed"
                        )
    return said


def _settings(families: Iterable[int]) -> str:
    return " and ".join(f"nf_log.{family}" for family in families)
