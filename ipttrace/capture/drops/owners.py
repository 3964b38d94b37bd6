# SPDX-License-Identifier: GPL-2.0-only
"""The processes that have sockets open, by the sockets' inodes, from /proc.

The kernel keeps no way from a socket to its processes: their descriptors are read, which takes
long on a host with many processes.  So it happens for sockets not met before alone, and for a
small part of the time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.messages import Owner
from ipttrace.text import clean

Words = npt.NDArray[np.uint64]

_PART: Final = 1 / 20  # of the time, for reading descriptors
_LONGEST_READ: Final = 0.2  # s, of one time; the next one goes on behind the last process
_MOST: Final = 1 << 16  # sockets, and owners that get a number
_LONGEST: Final = 64  # characters of a name
_SOCKET: Final = re.compile(r"socket:\[([0-9]{1,20})\]")


class Owners:
    """Gives numbers from 1 on."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, int] = {}  # inode → number
        self._named: dict[tuple[int, str, int], int] = {}
        self._next = 0.0  # when descriptors may be read again
        self._last = 0  # the process that was read last

    def numbers(self, inodes: Words) -> tuple[Words, dict[str, Owner]]:
        """The numbers of the owners, 0: unknown; and those that are new."""
        each, of = np.unique(inodes, return_inverse=True)
        wanted = {one for one in each.tolist() if one and one not in self._known}
        new: dict[str, Owner] = {}
        if wanted and time.monotonic() >= self._next:
            new = self._find(wanted)
        found = np.array([self._known.get(one, 0) for one in each.tolist()], np.uint64)
        return found[of], new

    def _find(self, wanted: set[int]) -> dict[str, Owner]:
        began = time.monotonic()
        until = began + _LONGEST_READ
        holders: dict[int, list[int]] = {}
        pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        for pid in sorted(pids, key=lambda one: (one <= self._last, one)):
            if time.monotonic() > until:
                break
            self._last = pid
            for inode in self._sockets(pid, until) & wanted:
                holders.setdefault(inode, []).append(pid)
        else:
            self._last = 0
        new: dict[str, Owner] = {}
        for inode, own in holders.items():
            if len(self._known) >= _MOST:
                self._known.clear()
            key = (min(own), self._comm(min(own)), len(own) - 1)
            number = self._named.get(key)
            if number is None:
                if len(self._named) >= _MOST:
                    continue
                number = self._named[key] = len(self._named) + 1
                new[str(number)] = {"pid": key[0], "comm": key[1], "others": key[2]}
            self._known[inode] = number
        now = time.monotonic()
        self._next = now + (now - began) / _PART
        return new

    def _sockets(self, pid: int, until: float) -> set[int]:
        """The inodes of sockets that the process has, as far as they can be read in time."""
        found: set[int] = set()
        folder = self._proc / str(pid) / "fd"
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if time.monotonic() > until:
                    break
                with contextlib.suppress(OSError):
                    if match := _SOCKET.fullmatch(os.readlink(entry.path)):
                        found.add(int(match[1]))
        return found

    def _comm(self, pid: int) -> str:
        try:
            text = (self._proc / str(pid) / "comm").read_bytes()
        except OSError:
            return ""
        return clean(text.rstrip(b"\n").decode("utf-8", "replace"), _LONGEST)
