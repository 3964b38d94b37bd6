# SPDX-License-Identifier: GPL-2.0-only
"""What guards on this host deny, each time with the rule: read from `ipttrace guard` by root.

A guard listens at the first of ADDRESSES that is free, and sends a line of JSON for each call:
the fields of its output, `mono` (CLOCK_MONOTONIC, ns) and `cgroup`; or `lost`, for how many calls
it had no room; or `upto`: all that was denied before that time has been sent.  Must not change
anything.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from typing import Any, Final

ADDRESSES: Final = tuple(f"\0ipttrace-guard-{number}" for number in range(8))
"""Abstract addresses of sockets, in the network namespace of the guard."""
CHECK_PORT: Final = 9
"""Of the call by which a guard finds out whether the kernel asks it; it is denied to its thread,
which for that moment has a name like this:"""
CHECK_COMM: Final = re.compile(rb"ipt[0-9a-f]{12}")
_EVERY: Final = 1.0  # s, for more guards than one
_PIECE: Final = 1 << 16  # bytes
_LONGEST: Final = 1 << 16  # bytes of a line
_MOST_PIECES: Final = 16  # that are read of a guard at once
_UCRED: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


def is_of_root(one: socket.socket) -> bool:
    """Whether the other end of this socket belongs to root."""
    with contextlib.suppress(OSError):
        about = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid: int = _UCRED.unpack(about)[1]
        return uid == 0
    return False


class Guards:
    """The guards that are there."""

    def __init__(self, addresses: tuple[str, ...] = ADDRESSES) -> None:
        self._addresses = addresses
        self._open: dict[str, tuple[socket.socket, bytearray]] = {}
        self._upto: dict[str, int] = {}
        self._due = 0.0

    def take(self) -> list[dict[str, Any]]:
        """The objects that have arrived, in order of each guard; their values are not checked.

        Not those of `upto`.
        """
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _EVERY
            self._find(self._addresses)
        else:
            # Where the only guard will be: a failing attempt costs a few microseconds.
            self._find(self._addresses[:1])
        found: list[dict[str, Any]] = []
        for address in list(self._open):
            one, held = self._open[address]
            if not self._read(one, held):
                one.close()
                del self._open[address], self._upto[address]
            *lines, rest = held.split(b"\n")
            held[:] = rest if len(rest) <= _LONGEST else b""
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    about = json.loads(line)
                    if isinstance(about, dict) and isinstance(about.get("upto"), int):
                        self._upto[address] = about["upto"]
                    elif isinstance(about, dict):
                        found.append(about)
        self._upto = {address: self._upto[address] for address in self._open}
        return found

    @property
    def upto(self) -> int | None:
        """What guards have denied before this time was taken, ns; None: there are none."""
        return min(self._upto.values(), default=None)

    def close(self) -> None:
        """Closes the connections."""
        for one, _ in self._open.values():
            one.close()
        self._open.clear()

    def _find(self, addresses: tuple[str, ...]) -> None:
        for address in addresses:
            if address in self._open:
                continue
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with contextlib.suppress(OSError):
                one.connect(address)
                if is_of_root(one):
                    self._open[address] = (one, bytearray())
                    self._upto[address] = 0
                    continue
            one.close()

    @staticmethod
    def _read(one: socket.socket, held: bytearray) -> bool:
        """Adds what has arrived; returns whether the guard is still there."""
        try:
            for _ in range(_MOST_PIECES):
                piece = one.recv(_PIECE)
                if not piece:
                    return False
                held += piece
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
