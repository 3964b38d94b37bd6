# SPDX-License-Identifier: GPL-2.0-only
"""The user's terminal, lent to a command in the guest.

The guest's command has a terminal of its own (script(1)); this one is raw
meanwhile, so that Ctrl-C and the arrows reach the guest.

Must give the terminal back as it was, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import threading
import tty
from typing import Any, Final

CHUNK: Final = 4096


def at_a_terminal() -> bool:
    """Whether a person sits at both ends of this process."""
    return os.isatty(0) and os.isatty(1)


def size() -> tuple[int, int]:
    """Rows and columns."""
    with contextlib.suppress(OSError):
        columns, rows = os.get_terminal_size(0)
        if rows and columns:
            return rows, columns
    return 24, 80


class Terminal:
    """Carries what is typed to ``port`` until closed."""

    def __init__(self, port: socket.socket, descriptor: int = 0) -> None:
        self._port = port
        self._descriptor = descriptor
        self._before: list[Any] | None = None
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="vm-keys", daemon=True)

    def open(self) -> None:
        """Make the terminal raw, and begin."""
        self._before = termios.tcgetattr(self._descriptor)
        tty.setraw(self._descriptor)
        self._thread.start()

    def close(self) -> None:
        """Give the terminal back; may be called often."""
        if self._before is None:
            return
        before, self._before = self._before, None
        os.write(self._waker, b"x")
        self._thread.join()
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)
        os.close(self._wake)
        os.close(self._waker)
        sys.stderr.flush()

    def _carry(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([self._descriptor, self._wake], [], [])
                if self._wake in ready:
                    return
                keys = os.read(self._descriptor, CHUNK)
                if not keys:
                    break
                self._port.sendall(keys)
            # Not closed: QEMU would drop what it has not yet read.
            self._port.shutdown(socket.SHUT_WR)
