# SPDX-License-Identifier: GPL-2.0-only
"""Tells what the guard denies to programs on this host that trace sockets, if they are root's.

capture/sockets/guards.py reads it, and has the format.  A reader that does not read loses
lines, which are counted; it never keeps the guard waiting.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ipttrace.capture.sockets.guards import ADDRESSES, is_of_root

_MOST_READERS: Final = 8
_MOST_HELD: Final = 1 << 20  # bytes for each
_RECENT: Final = 2.0  # s: a reader that comes gets the lines of so long before
_MOST_RECENT: Final = 1024  # lines


@dataclass(slots=True)
class _Reader:
    socket: socket.socket
    held: bytearray = field(default_factory=bytearray)
    lost: int = 0

    def add(self, line: bytes) -> None:
        if self.lost:
            line = json.dumps({"lost": self.lost}).encode() + b"\n" + line
        if len(self.held) + len(line) > _MOST_HELD:
            self.lost += 1
        else:
            self.held += line
            self.lost = 0

    def write(self) -> bool:
        """Writes what the reader takes; returns whether it is still there."""
        try:
            while self.held:
                del self.held[: self.socket.send(self.held)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class Sharing:
    """Listens from when it is made until `close`, or until the process ends in any way."""

    def __init__(self, addresses: tuple[str, ...] = ADDRESSES) -> None:
        self._readers: list[_Reader] = []
        self._recent: deque[tuple[float, bytes]] = deque(maxlen=_MOST_RECENT)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        for address in addresses:
            with contextlib.suppress(OSError):
                self._socket.bind(address)
                self._socket.listen(_MOST_READERS)
                return
        # All are taken: nobody reads.
        self._socket.close()

    def accept(self) -> None:
        """Takes new readers."""
        while self._socket.fileno() >= 0:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            one.setblocking(False)
            if len(self._readers) < _MOST_READERS and is_of_root(one):
                self._readers.append(_Reader(one))
                since = time.monotonic() - _RECENT
                for at, line in self._recent:
                    if at >= since:
                        self._readers[-1].add(line)
            else:
                one.close()

    def send(self, event: Mapping[str, Any]) -> None:
        """Adds a line for each reader."""
        line = json.dumps(event).encode() + b"\n"
        self._recent.append((time.monotonic(), line))
        for one in self._readers:
            one.add(line)

    def flush(self, upto: int) -> None:
        """Writes what readers take, and forgets those that are gone.

        `upto`: what was denied before has been sent, CLOCK_MONOTONIC, ns.
        """
        left = []
        for one in self._readers:
            if len(one.held) < _MOST_HELD // 2:
                one.held += b'{"upto": %d}\n' % upto
            if one.write():
                left.append(one)
            else:
                one.socket.close()
        self._readers = left

    def close(self) -> None:
        """Ends it for all."""
        for one in self._readers:
            with contextlib.suppress(OSError):
                one.socket.send(one.held)
            one.socket.close()
        self._readers = []
        self._socket.close()
