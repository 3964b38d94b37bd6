# SPDX-License-Identifier: GPL-2.0-only
"""From a stream to lines: what print, record, replay and export have in common.

Ends with the summary whatever happens on the way: a reader that goes (`| head`),
Ctrl-C, a damaged stream, an agent that dies.  Must not touch the kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ipttrace.stream.frames import Decoder, Kind, StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.session import Trace
from ipttrace.view.output import Output
from ipttrace.view.writer import OutputError, Writer, summary

if TYPE_CHECKING:
    from ipttrace.trace.query import Query
    from ipttrace.trace.query.until import Until

_PORTION: Final = 1 << 20
# Rows made into lines at a time: bounds memory, and the wait for the first.
_BATCH: Final = 5000
# How long an agent that was asked to stop may take for its last books, s.
_GRACE: Final = 10.0


class _Stream(Protocol):
    def fileno(self) -> int: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Recording:
    """The file that takes a stream: what it held before stays until the first byte comes.

    The path ``-`` is stdout.  Raises OSError where it cannot be written to.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._begun = path == "-"
        self._new = not self._begun and not os.path.lexists(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.dup(1) if self._begun else os.open(path, flags, 0o666)

    def write(self, data: bytes, /) -> None:
        if not self._begun:
            self._begun = True
            with contextlib.suppress(OSError):  # a pipe or a device
                os.ftruncate(self._fd, 0)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        """Closes it; one that was made for nothing is gone again."""
        os.close(self._fd)
        if self._new and not self._begun:
            os.unlink(self._path)


class Pump:
    """Reads one stream to its end, or to where the user ends it."""

    def __init__(
        self,
        output: Output | None,
        *,
        count: int | None = None,
        query: Query | None = None,
        until: Query | None = None,
        copy: _Sink | None = None,
        stop: Callable[[], None] | None = None,
        names: dict[int, str] | None = None,
    ) -> None:
        """`query` takes the rows to show, of which `count` are enough.

        The first row that `until` takes is the last one.

        `copy` takes the bytes as they are; `stop` asks the far end to finish.

        `names` is filled with the namespaces' names once they are known.
        """
        self.trace = Trace(capacity=4 * 65536)
        self.interrupted = False
        self._output = output
        self._count = count
        self._query = query
        self._wanted = until
        self._until: Until | None = None
        self._copy = copy
        self._ask = stop
        self._names = names
        self._decoder = Decoder()
        self._writer = Writer()
        self._begun = False
        self._looked = 0  # the row after the last one that was looked at
        self.rows = 0  # shown, or made where nothing is shown
        self._stopping = False
        self._deadline = 0.0
        self._said = 0
        # An agent that never began has said why, on a line of its own.
        self._silent = False
        self.errors: list[str] = []

    def run(self, stream: _Stream) -> int:
        """Pumps until the end; prints errors and the summary.  Returns the exit status."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        term = signal.signal(signal.SIGTERM, self._on_interrupt)
        try:
            try:
                self._read(stream.fileno())
            except StreamError as error:
                self.errors.append(str(error))
                self.trace.finish()
                self._rows()
            if self._output is not None and self._begun:
                self._write(self._output.end())
        except (OutputError, OSError) as error:
            self.errors.append(str(error))
            self._finish()
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, term)
        return self._close()

    def _read(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        came = False
        while True:
            ready = poll.poll(200)
            if self._stopping and time.monotonic() > self._deadline:
                self.errors.append("the agent does not answer: its last books are missing")
                return
            if not ready:
                if not self._stopping and self._output is not None:
                    if self._writer.reader_gone():
                        self._finish()
                    self._write(self._output.pause())
                continue
            data = os.read(fd, _PORTION)
            if not data:
                break
            came = True
            if self._copy is not None:
                self._copy.write(data)
            for frame in self._decoder.feed(data):
                self.trace.feed(frame)
                if frame.kind == Kind.HELLO:
                    self._hello()
                elif frame.kind == Kind.BOOKS:
                    self._books()
                self._rows()
            self._notes()
        if self.trace.ended is None and self.trace.hello:
            self.trace.finish()
            self._rows()
        if self._ask is not None and not came:
            self._silent = True
        else:
            self._decoder.finish()

    def _hello(self) -> None:
        named = self.trace.hello.get("netns")
        if self._names is not None and isinstance(named, dict):
            # An inode has at most ten digits; the stream may say anything.
            inodes = {int(k): v for k, v in named.items() if re.fullmatch("[0-9]{1,10}", k)}
            self._names.update({inode: clean(str(name)) for inode, name in inodes.items()})
        if self._wanted is not None and self._until is None:
            from ipttrace.trace.query.until import Until

            self._until = Until(self._wanted, netns=self._names, hosts=(self._host(),))
        if self._output is not None and not self._begun:
            self._begun = True
            self._write(self._output.begin(self.trace.hello))

    def _books(self) -> None:
        # Nobody arms it again from here: its budget is used up, as a note says.
        if self._ask is not None and self.trace.books.get("state") == "disarmed":
            self._finish()

    def _host(self) -> str:
        return clean(str(self.trace.hello.get("host", "")))

    def _rows(self) -> None:
        store = self.trace.store
        end = self._last_row()
        while self._looked < end:
            first = max(self._looked, store.first)
            last = min(first + _BATCH, end)
            seqs = self._picked(first, last)
            if self._count is not None:
                seqs = seqs[: self._count - self.rows]
            if self._output is not None and len(seqs) and not self._writer.closed:
                self._write(self._output.rows(store, seqs)[0])
            self._looked = last
            self.rows += len(seqs)
            if self._count is not None and self.rows >= self._count:
                self._finish()
                self._looked = store.end
                return
        self._looked = store.end

    def _last_row(self) -> int:
        """One past the last row that is wanted; ends the run where that is certain."""
        store = self.trace.store
        found = None if self._until is None else self._until.feed(store)
        if found is None:
            return store.end
        self._finish()
        # What only takes the bytes has taken all of them.
        return store.end if self._output is None else found + 1

    def _picked(self, first: int, last: int) -> Sequence[int] | Array:
        """Sequence numbers of the rows to show among those from `first` to `last`."""
        if self._query is None:
            return range(first, last)
        from ipttrace.trace.query import context_of

        store = self.trace.store
        context = context_of(store, netns=self._names, hosts=(self._host(),))
        found = [
            np.flatnonzero(self._query.mask(part, context)) + part.first
            for part in store.parts(first, last)
        ]
        return np.concatenate(found) if found else range(0)

    def _write(self, data: bytes) -> None:
        if data and not self._writer.write(data):
            self._finish()

    def _notes(self) -> None:
        for level, text in self.trace.notes[self._said :]:
            if level != "info":
                print(f"ipttrace: {text}", file=sys.stderr)
        self._said = len(self.trace.notes)

    def _finish(self) -> None:
        """Enough was seen: the far end may write its last books."""
        if self._stopping:
            return
        self._stopping = True
        self._deadline = time.monotonic() + _GRACE
        if self._ask is not None:
            self._ask()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self._finish()

    def _close(self) -> int:
        if self.trace.hello:
            # Rows reach the terminal first.
            sys.stdout.flush()
            for error in self.errors:
                print(f"ipttrace: {error}", file=sys.stderr)
            print(summary({**self.trace.summary(), "rows": self.rows}), file=sys.stderr)
        elif not self.interrupted:
            for error in self.errors:
                print(f"ipttrace: {error}", file=sys.stderr)
        if self.errors or (self._silent and not self.interrupted):
            return 1
        return 130 if self.interrupted else 0
