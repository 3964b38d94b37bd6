# SPDX-License-Identifier: GPL-2.0-only
"""Rows out as bytes: what a view and an output are, and the writer that stdout needs.

The writer outlives its reader: behind `| head` it becomes quietly `closed`,
so that the run still ends with its summary and exit status 0.  Must not
import textual, nor know which format it carries.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ipttrace.trace.row import Row
from ipttrace.view.cells import safe

if TYPE_CHECKING:
    from ipttrace.trace.arrays.hashing import Array
    from ipttrace.trace.store import Store


class View(Protocol):
    """Rows → lines.  Both methods return whole lines, their ends included."""

    def header(self) -> str:
        """What comes once, before the first row; empty where a format has none."""

    def lines(self, rows: Iterable[Row]) -> str:
        """One line a row, in the order given."""


class Output(Protocol):
    """Held rows → the bytes of a file, in portions.

    Unlike a `View` it reads the store itself, so that it can write what rows
    do not carry: the bytes of the packets.  It may keep some rows back until
    others have come.
    """

    def begin(self, about: Mapping[str, object]) -> bytes:
        """What comes once, before all rows.  `about`: the stream's HELLO, not to be believed."""

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        """Rows `seqs`, and how many of them were, and were still, held."""

    def pause(self) -> bytes:
        """No row came for a while: what was kept back should be seen now."""

    def end(self) -> bytes:
        """What comes after all rows."""


class Lines:
    """A `View` as an `Output`: UTF-8, nothing kept back."""

    def __init__(self, view: View) -> None:
        self._view = view

    def begin(self, about: Mapping[str, object]) -> bytes:
        return _encoded(self._view.header())

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        found = store.rows(seqs)
        return _encoded(self._view.lines(found)) if found else b"", len(found)

    def pause(self) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding, "backslashreplace")


class OutputError(Exception):
    """The output cannot take what is written (disk full, terminal gone): one clear line."""


class LineWriter:
    """Text, as UTF-8, or bytes to a file descriptor, at once and whole.

    It writes past Python's buffers: nothing is left over that could fail at
    exit.  `encoding` is for a terminal that is not UTF-8; what it has no
    character for is shown as an escape.
    """

    def __init__(self, fd: int = 1, encoding: str = "utf-8") -> None:
        self._fd = fd
        self._encoding = encoding
        self.closed = False

    def write(self, text: str | bytes) -> bool:
        """Write all of `text`; False when the reader has gone (`closed`).

        Raises OutputError when the output fails in any other way.
        """
        if self.closed:
            return False
        left = memoryview(_encoded(text, self._encoding) if isinstance(text, str) else text)
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
