# SPDX-License-Identifier: GPL-2.0-only
"""From a stream to lines: what print, record, replay and export have in common.

Ends with the summary whatever happens on the way: a reader that goes (`| head`),
Ctrl-C, a damaged stream, an agent that dies.  Must not touch the kernel.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import BinaryIO, Final, Protocol

from ipttrace.stream.frames import Decoder, Kind, StreamError
from ipttrace.trace.session import Trace
from ipttrace.view.lines import LineWriter, OutputError, View, summary

_PORTION: Final = 1 << 20
# Rows made into lines at a time: bounds memory, and the wait for the first.
_BATCH: Final = 5000
# How long an agent that was asked to stop may take for its last books, s.
_GRACE: Final = 10.0


class _Stream(Protocol):
    def fileno(self) -> int: ...


class Pump:
    """Reads one stream to its end, or to where the user ends it."""

    def __init__(
        self,
        view: View | None,
        *,
        count: int | None = None,
        copy: BinaryIO | None = None,
        stop: Callable[[], None] | None = None,
        names: dict[int, str] | None = None,
    ) -> None:
        """`copy` takes the bytes as they are; `stop` asks the far end to finish.

        `names` is filled with the namespaces' names once they are known.
        """
        self.trace = Trace(capacity=4 * 65536)
        self.interrupted = False
        self._view = view
        self._count = count
        self._copy = copy
        self._ask = stop
        self._names = names
        self._decoder = Decoder()
        self._writer = LineWriter()
        self._shown = 0
        self._stopping = False
        self._deadline = 0.0
        self._said = 0
        self.errors: list[str] = []

    def run(self, stream: _Stream) -> int:
        """Pumps until the end; prints errors and the summary.  Returns the exit status."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        term = signal.signal(signal.SIGTERM, self._on_interrupt)
        try:
            if self._view is not None:
                self._write(self._view.header())
            self._read(stream.fileno())
        except StreamError as error:
            self.trace.finish()
            self._rows()
            self.errors.append(str(error))
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
        while True:
            ready = poll.poll(200)
            if self._stopping and time.monotonic() > self._deadline:
                self.errors.append("the agent does not answer: its last books are missing")
                return
            if not ready:
                if not self._stopping and self._view is not None and self._writer.reader_gone():
                    self._finish()
                continue
            data = os.read(fd, _PORTION)
            if not data:
                break
            if self._copy is not None:
                self._copy.write(data)
            for frame in self._decoder.feed(data):
                self.trace.feed(frame)
                if frame.kind == Kind.HELLO and self._names is not None:
                    named = self.trace.hello.get("netns", {})
                    self._names.update(
                        {int(k): str(v) for k, v in named.items() if str(k).isdigit()}
                    )
                self._rows()
            self._notes()
        if self.trace.ended is None and self.trace.hello:
            self.trace.finish()
            self._rows()
        if self.trace.hello or self._copy is None:
            self._decoder.finish()

    def _rows(self) -> None:
        store = self.trace.store
        while self._shown < store.end:
            first = max(self._shown, store.first)
            last = min(first + _BATCH, store.end)
            if self._count is not None:
                last = min(last, self._count)
            if self._view is not None and first < last and not self._writer.closed:
                self._write(self._view.lines(store.rows(range(first, last))))
            self._shown = last
            if self._count is not None and self._shown >= self._count:
                self._finish()
                self._shown = store.end
                return

    def _write(self, text: str) -> None:
        if text and not self._writer.write(text):
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

    @property
    def rows(self) -> int:
        """Rows shown, or made where nothing is shown."""
        end = self.trace.store.end
        return end if self._count is None else min(end, self._count)

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
        if self.errors:
            return 1
        return 130 if self.interrupted else 0
