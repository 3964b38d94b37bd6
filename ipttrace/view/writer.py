# SPDX-License-Identifier: GPL-2.0-only
"""Writes to a file descriptor, and the line that ends every run.

The writer survives the reader of a pipe: after `| head` it is silently `closed`,
so that the run still ends with its summary and exit status 0.  Must not know the
format of what it writes.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Mapping

from ipttrace.ready import writable
from ipttrace.text import escape


class OutputError(Exception):
    """Writing failed (disk full, terminal gone); the message is one line."""


class Writer:
    """Writes text or bytes to a file descriptor, immediately and completely.

    It bypasses Python's buffers, so that nothing is left that could fail at exit.
    Text is encoded as `encoding`, that of the terminal; characters that it lacks
    become escapes.
    """

    def __init__(self, fd: int = 1, encoding: str = "utf-8") -> None:
        self._fd = fd
        self._encoding = encoding
        self.closed = False

    def write(self, text: str | bytes) -> bool:
        """Writes all of `text`; returns False if the reader has gone (`closed`).

        Raises OutputError if writing fails for any other reason.
        """
        if self.closed:
            return False
        data = text.encode(self._encoding, "backslashreplace") if isinstance(text, str) else text
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Another process sharing this pipe made it non-blocking.
                writable(self._fd)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise OutputError(f"cannot write the rows: {error.strerror}") from error
                self.closed = True
                return False
        return True

    def reader_gone(self) -> bool:
        """Has the reader of a pipe gone?  Works without writing, before there are rows."""
        if not self.closed:
            poll = select.poll()
            poll.register(self._fd, 0)
            # POLLERR: a pipe without a reader.  POLLHUP would be a terminal that hung up.
            self.closed = any(seen & select.POLLERR for _, seen in poll.poll(0))
        return self.closed


def summary(figures: Mapping[str, object]) -> str:
    """Returns the line that ends every run: `rows=… records=… lost=… missed=… engine=…`.

    A figure that is None, empty or absent is `unknown`, never 0.  ` incomplete=…` follows
    if there are calls of which some records came, and no row could be made.
    """
    words = []
    for name in ("rows", "records", "lost", "missed", "engine"):
        value = figures.get(name)
        text = "unknown" if value is None or value == "" else escape(str(value))
        words.append(f"{name}={text.replace(' ', '_')}")
    if figures.get("incomplete"):
        words.append(f"incomplete={figures['incomplete']}")
    return " ".join(words)
