# SPDX-License-Identifier: GPL-2.0-only
"""The user's terminal, connected to a command in the guest.

In the guest, script(1) gives the command a terminal.  The user's terminal is in
raw mode meanwhile, so that Ctrl-C and arrow keys reach the guest.

Must restore the terminal's settings in every case.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import termios
import threading
import tty
from typing import Any, Final

from ipttrace.ready import readable

CHUNK: Final = 4096


def on_terminal() -> bool:
    """Returns whether both stdin and stdout are a terminal."""
    return os.isatty(0) and os.isatty(1)


def terminal_size() -> tuple[int, int]:
    """Returns rows and columns of the terminal on stdin; 24 × 80 if there is none."""
    with contextlib.suppress(OSError):
        columns, rows = os.get_terminal_size(0)
        if rows and columns:
            return rows, columns
    return 24, 80


class Terminal:
    """Sends typed bytes to ``port`` until closed."""

    def __init__(self, port: socket.socket, descriptor: int = 0) -> None:
        self._port = port
        self._descriptor = descriptor
        self._saved: list[Any] | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._forward, name="vm-keys", daemon=True)

    def open(self) -> None:
        """Switches the terminal to raw mode and starts forwarding."""
        self._saved = termios.tcgetattr(self._descriptor)
        tty.setraw(self._descriptor)
        self._thread.start()

    def close(self) -> None:
        """Stops forwarding and restores the terminal; may be called more than once."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        os.write(self._wake_write, b"x")
        self._thread.join()
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, saved)
        os.close(self._wake_read)
        os.close(self._wake_write)
        sys.stderr.flush()

    def _forward(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready = readable(self._descriptor, self._wake_read)
                if self._wake_read in ready:
                    return
                keys = os.read(self._descriptor, CHUNK)
                if not keys:
                    break
                self._port.sendall(keys)
            # Shut down, not closed: QEMU would drop bytes that it has not read.
            self._port.shutdown(socket.SHUT_WR)
