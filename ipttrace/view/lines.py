# SPDX-License-Identifier: GPL-2.0-only
"""Rows out as lines: what a line view is, and the writer that stdout needs.

The writer outlives its reader: behind `| head` it becomes quietly `closed`,
so that the run still ends with its summary and exit status 0.  Must not
import textual, nor know which format it carries.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from ipttrace.trace.row import Row
from ipttrace.view.cells import safe

FORMATS: Final = ("text", "csv", "jsonl")


class View(Protocol):
    """Rows → lines.  Both methods return whole lines, their ends included."""

    def header(self) -> str:
        """What comes once, before the first row; empty where a format has none."""

    def lines(self, rows: Iterable[Row]) -> str:
        """One line a row, in the order given."""


class OutputError(Exception):
    """The output cannot take what is written (disk full, terminal gone): one clear line."""


class LineWriter:
    """Text to a file descriptor, as UTF-8, at once and whole.

    It writes past Python's buffers: nothing is left over that could fail at
    exit.  `encoding` is for a terminal that is not UTF-8; what it has no
    character for is shown as an escape.
    """

    def __init__(self, fd: int = 1, encoding: str = "utf-8") -> None:
        self._fd = fd
        self._encoding = encoding
        self.closed = False

    def write(self, text: str) -> bool:
        """Write all of `text`; False when the reader has gone (`closed`).

        Raises OutputError when the output fails in any other way.
        """
        if self.closed:
            return False
        left = memoryview(text.encode(self._encoding, "backslashreplace"))
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Somebody who shares this pipe made it non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise OutputError(f"cannot write the rows: {error.strerror}") from error
                self.closed = True
                return False
        return True

    def reader_gone(self) -> bool:
        """Has the reader of a pipe left?  Asks without writing, for a run that has no rows yet."""
        if not self.closed:
            poll = select.poll()
            poll.register(self._fd, 0)
            # A pipe without reader says POLLERR; POLLHUP is a terminal that hung up.
            self.closed = any(seen & select.POLLERR for _, seen in poll.poll(0))
        return self.closed


def summary(figures: Mapping[str, object]) -> str:
    """The line that ends every run: `rows=… records=… lost=… missed=… engine=…`.

    A figure that is None or absent is `unknown`, never 0.
    """
    words = []
    for name in ("rows", "records", "lost", "missed", "engine"):
        value = figures.get(name)
        text = "unknown" if value is None or value == "" else safe(str(value))
        words.append(f"{name}={text.replace(' ', '_')}")
    return " ".join(words)
