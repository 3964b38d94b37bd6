# SPDX-License-Identifier: GPL-2.0-only
"""Sets namespaces' loggers to nfnetlink_log, for lines of traced legacy rules, or to none.

The old logger is always restored: by `restore`; after kill -9 at once, by a guard process
(logger_guard.py); if that was killed too, by `repair` at the next start.  Must not read
log messages, and must not keep a namespace alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ipttrace.capture import netns
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.legacy import logger_guard as guard
from ipttrace.capture.netlink.legacy.logger_guard import NFNETLINK_LOG, NONE, State
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6
from ipttrace.ready import readable

FAMILIES: Final = (NFPROTO_IPV4, NFPROTO_IPV6)
_ALL_NAMESPACES: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_SYSLOG: Final = Path("/sys/module/nf_log_syslog")
_PATIENCE: Final = 20.0  # s, for the guard to start, or to end


class LogSetting:
    """The loggers that this process has set.  One object serves all namespaces."""

    def __init__(self) -> None:
        """Starts the guard, which stays in the calling thread's namespace and keeps it alive.

        Raises CaptureError.
        """
        folder = guard.folder()
        if folder is None:
            raise CaptureError(
                f"no folder for notes of the loggers to restore: "
                f"one of {', '.join(guard.folders())} must be writable"
            )
        self._folder = folder
        self._lock = threading.Lock()
        self._states: dict[int, State] = {}  # by inode, of the namespaces changed
        self._ready = False
        command = [sys.executable, "-I", "-S", guard.__file__, folder, str(os.getpid())]
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
            raise CaptureError(f"cannot start {command[0]}: {error}") from error

    @property
    def guard(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    def take(
        self,
        path: str,
        inode: int,
        families: Iterable[int] = FAMILIES,
        set_to: str = NFNETLINK_LOG,
    ) -> None:
        """Sets the calling thread's namespace's loggers of these families (NFPROTO_*).

        The namespace has `inode`, and `path` leads to it; `set_to`: NFNETLINK_LOG or NONE.
        Bind to group 0 before (decode.bind), so that only one process sets the loggers, and
        restore before the group is released.  Raises CaptureError, with nothing changed.
        """
        with self._lock:
            self._wait_for_guard()
            try:
                with guard.locked(self._folder):
                    self._take(path, inode, families, set_to)
            except BlockingIOError as error:
                raise CaptureError(f"another process holds {self._folder}/nf_log.lock") from error
            except OSError as error:
                raise CaptureError(str(error)) from error

    def _take(self, path: str, inode: int, families: Iterable[int], set_to: str) -> None:
        old = {}
        for family in families:
            try:
                old[family] = guard.logger(family)
            except FileNotFoundError:
                raise CaptureError(
                    "/proc/sys/net/netfilter/nf_log is missing (CONFIG_NETFILTER)"
                ) from None
        state = State(path, inode, guard.cookie(), old, set_to)
        for other in guard.states(self._folder, inode):
            # Another run, or this one, has set its logger already: its old one counts.
            if other.same_namespace(state):
                for family, name in other.old.items():
                    if old.get(family, other.set) == other.set:
                        old[family] = name
        changing = [family for family in old if guard.logger(family) != set_to]
        if not changing and all(name == set_to for name in old.values()):
            return
        if (
            any(old[family] not in (NONE, NFNETLINK_LOG) for family in changing)
            and not guard.writable()
        ):
            raise CaptureError(
                "/proc/sys is read-only, so that the current logger could not be "
                "restored: make it writable"
            )
        guard.write(self._folder, state)
        self._states[inode] = state
        try:
            for family in changing:
                guard.set_logger(family, set_to)
        except OSError as error:
            with contextlib.suppress(OSError):
                guard.settle(self._folder, state)
                del self._states[inode]
            if error.errno == errno.ENOENT:
                raise CaptureError(
                    "this kernel has no nfnetlink_log (modprobe nfnetlink_log)"
                ) from error
            raise

    def restore(self, inode: int | None = None) -> list[str]:
        """Restores the loggers that are still as `take` set them.

        Of the namespace `inode`, or with None of all, and ends the guard.  Returns a
        message for each namespace that failed: the next start tries again.
        """
        problems = []
        with self._lock:
            for state in list(self._states.values()):
                if inode is not None and state.inode != inode:
                    continue
                try:
                    with guard.locked(self._folder):
                        guard.settle(self._folder, state)
                except OSError as error:
                    problems.append(
                        f"cannot restore {_settings(state.old)} of network namespace "
                        f"{state.title}: {error.strerror}"
                    )
                del self._states[state.inode]
            if inode is None:
                self._end_guard()
        return problems

    def _wait_for_guard(self) -> None:
        pipe = self._guard.stdout
        if not self._ready and pipe is not None:
            if readable(pipe, timeout=_PATIENCE):
                self._ready = pipe.read(1) == b"\n"
            pipe.close()
            self._guard.stdout = None
        if not self._ready or self._guard.poll() is not None:
            raise CaptureError("the process that would restore the loggers after a crash has ended")

    def _end_guard(self) -> None:
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._guard.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def silent(inode: int) -> str:
    """What to set as the logger of the namespace `inode`, so that nothing is logged.

    Without a logger the kernel does not even compose the lines of traced packets.  But the
    module that writes to the kernel's log puts itself in the place of none when it is loaded;
    lines of namespaces other than the initial one it writes only if it is told to.
    """
    try:
        everywhere = _ALL_NAMESPACES.read_text().strip() != "0"
    except OSError:
        everywhere = True  # not seen from here
    quiet = inode != netns.initial() and not everywhere
    return NONE if quiet or _SYSLOG.exists() else NFNETLINK_LOG


def repair() -> list[str]:
    """Restores the loggers that runs left behind when they and their guards were killed.

    The calling thread enters the namespaces and returns.  Returns a message for each
    namespace that was repaired.
    """
    repaired = []
    for folder in filter(guard.usable, guard.folders()):
        with contextlib.suppress(OSError), guard.locked(folder):
            for state in guard.states(folder):
                if state.alive:
                    continue
                if state.boot != guard.boot_id():
                    guard.remove(folder, state)
                    continue
                with contextlib.suppress(OSError):
                    if done := guard.settle(folder, state):
                        repaired.append(
                            f"restored {_settings(done)} of network namespace {state.title}, "
                            f"left by process {state.pid}, which was killed"
                        )
    return repaired


def _settings(families: Iterable[int]) -> str:
    return " and ".join(f"nf_log.{family}" for family in families)
