# SPDX-License-Identifier: GPL-2.0-only
"""How often iptables' lock was taken, as a bound of how often tables were replaced.

The kernel does not announce that a legacy table was replaced, but iptables opens a lock file
before each replacement (xtables_lock() of its xshared.c), and closes it behind it.  Programs
that do without the lock, or have a /run of their own, are not seen.  Must not open the file,
or create it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

_PATH: Final = Path(os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock"))

# linux/inotify.h
_OPEN: Final = 0x20
_CLOSE: Final = 0x18
_GONE: Final = 0xC00  # IN_DELETE_SELF, IN_MOVE_SELF
_IGNORED: Final = 0x8000
_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("=iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Moment(NamedTuple):
    """`opened`: how often the lock was opened until then; `open`: times it is open now."""

    opened: int
    open: int
    doubts: int  # times that something about the lock was unknown


class LockWatch:
    """Counts who opens the lock file, from whichever namespace.

    The kernel merges an event with the one before it if they are equal, as two processes that
    wait for the lock would make them.  The file's directory is therefore watched, too: of each
    open and each close it has an event first, which is never equal to the file's.
    """

    def __init__(self, path: Path = _PATH) -> None:
        self._path = path
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._file = self._directory = -1  # watch descriptors
        self._opened = self._open = self._doubts = 0
        self._watch()

    def close(self) -> None:
        """Ends the watch."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """A descriptor that is readable when something has happened; -1 if there is none."""
        return int(self._fd)

    def now(self) -> Moment:
        """What has happened until now."""
        if self._fd < 0:
            self._doubts += 1
        else:
            if self._file < 0 and self._watch():
                self._doubts += 1  # it was made, and perhaps used, since the last look
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._fd, 1 << 16):
                    self._count(data)
        return Moment(self._opened, self._open, self._doubts)

    def _watch(self) -> bool:
        if self._directory < 0:
            self._directory = self._add(self._path.parent, _OPEN | _CLOSE)
        self._file = self._add(self._path, _OPEN | _CLOSE | _GONE)
        return self._file >= 0

    def _add(self, path: Path, mask: int) -> int:
        return int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def _count(self, data: bytes) -> None:
        at = 0
        while at + _EVENT.size <= len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & _OVERFLOW:
                self._doubts += 1
            elif watch == self._file:
                self._count_file(mask)
            elif watch == self._directory and mask & _IGNORED:
                self._directory = -1
        if self._directory < 0:
            self._doubts += 1  # equal events may have been merged

    def _count_file(self, mask: int) -> None:
        if mask & _OPEN:
            self._opened += 1
            self._open += 1
        if mask & _CLOSE:
            self._open -= 1
            if self._open < 0:
                # It was open before the watch, or two were opened at the same moment.
                self._open = 0
                self._doubts += 1
        if mask & _GONE:
            self._doubts += 1
        if mask & _IGNORED:
            self._file, self._open = -1, 0
            self._doubts += 1
