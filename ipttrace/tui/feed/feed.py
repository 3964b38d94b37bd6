# SPDX-License-Identifier: GPL-2.0-only
"""One source on its way to rows: source, intake and trace, and how it ended.

The screen may have several, one for each host; they share a store.  All of it
belongs to the app's thread but what the intake does.  Must not touch widgets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, BinaryIO

from ipttrace.stream.frames import StreamError
from ipttrace.stream.tap import Tap
from ipttrace.text import clean
from ipttrace.trace.session import Trace
from ipttrace.tui import situation as at
from ipttrace.tui.feed.intake import Intake
from ipttrace.tui.feed.source import Source


class Line:
    """The line that the data of one source travels."""

    def __init__(self, source: Source, trace: Trace, notify: Callable[[], object]) -> None:
        self.source = source
        self.trace = trace
        self.intake = Intake(source, notify)
        self.error: str | None = None
        self.over = False
        self.stopping = False
        self.tap = Tap()
        self.recorded = ""  # the file that the tap writes to, or wrote to last
        self.word = ""  # what a person must know of the recording
        self._file: BinaryIO | None = None

    def feed_one(self) -> bool:
        """Feed one frame; False when there is none, or the stream has ended or is broken."""
        if self.done or (frame := self.intake.take()) is None:
            return False
        try:
            self.tap.feed(frame)
        except OSError as error:
            self._let_go(error)
        try:
            self.trace.feed(frame)
        except StreamError as error:
            self.error = clean(str(error))
        if self.done:
            # A serial line would stay open for ever.
            self.intake.close()
        return True

    @property
    def done(self) -> bool:
        """The stream has said its last, or cannot be read on."""
        return self.error is not None or self.trace.ended is not None

    @property
    def dry(self) -> bool:
        """Nothing more will come."""
        return self.done or self.intake.drained

    def end(self) -> int:
        """Take note that it is over; returns how many rows came out of what was waiting."""
        if self.over:
            return 0
        self.over = True
        if not self.done and self.intake.error is not None:
            self.error = clean(self.intake.error)
        # Without an END frame the rows that still waited for one come now.
        return self.trace.finish() if self.trace.ended is None else 0

    def stop(self) -> bool:
        """Ask the far side to end in order.  True: its last books may still come."""
        self.stopping = True
        return not self.over and self.source.stop()

    def close(self, patience: float = 1.0) -> None:
        """Let go of the source, with what a live one has sent by now."""
        self.intake.close()
        until = monotonic() + patience
        while self.source.live and monotonic() < until and self.feed_one():
            pass
        if self.trace.ended is None:
            self.trace.finish()
        self.end_recording()

    def record(self, path: str) -> None:
        """Write the stream to `path`, too, from here on.  Raises OSError."""
        file = open(path, "xb")  # noqa: SIM115  closed when the recording ends
        try:
            self.tap.start(file)
        except OSError:
            file.close()
            raise
        self._file, self.recorded = file, clean(path)

    def end_recording(self) -> None:
        """End it in order."""
        if self._file is None:
            return
        try:
            self.tap.stop(self.trace.books)
            self._file.close()
        except OSError as error:
            self._let_go(error)
        self._file = None

    def _let_go(self, error: OSError) -> None:
        """The recording cannot go on; what it has so far is kept."""
        self.word = f"the recording to {self.recorded} ended: {error.strerror}"
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    @property
    def state(self) -> str:
        """The one word for it: see `situation`."""
        return at.state_of(
            self.trace.hello,
            self.trace.books,
            live=self.source.live,
            over=self.over,
            error=self.error,
            stopping=self.stopping,
        )

    @property
    def reason(self) -> str:
        """Why it ended or broke, in one line; "" while it goes on."""
        if self.error is not None:
            return f"{self.error}; the rows before it are kept"
        if not self.over:
            return ""
        if self.trace.ended is None:
            if self.source.live:
                return "The agent went away without its last counts; nothing stays armed"
            return "The recording has no end: it was cut off"
        return at.text_of(self.trace.ended.get("reason"))

    @property
    def host(self) -> str:
        """The host's name as its stream gives it, or the source's."""
        return at.text_of(self.trace.hello.get("host")) or clean(self.source.name)

    @property
    def expr(self) -> str:
        """The filter in the kernel by now; "" takes all packets."""
        books: dict[str, Any] = self.trace.books
        return at.text_of(books.get("expr", self.trace.hello.get("expr")))

    @property
    def filtered(self) -> str:
        """Where the filter runs, in a few words; "" where nobody says, or there is none."""
        return at.text_of(self.trace.books.get("filter")) if self.expr else ""


def engines(lines: Sequence[Line]) -> str:
    """The engines of all lines, as a stream that has several names them: kernel+netlink."""
    names = {name for line in lines for name in line.trace.engine.split("+") if name}
    return "+".join(sorted(names))


def add_up(lines: list[Line], hosts: Sequence[str] = ()) -> dict[str, Any]:
    """The summary of all lines: figures added, engines named, the first error.

    `hosts`: names by number, for the error where there are several.
    """
    each = [line.trace.summary() for line in lines]
    total: dict[str, Any] = {
        name: sum(one[name] for one in each)
        for name in ("rows", "records", "lost", "missed", "incomplete")
    }
    total["engine"] = engines(lines)
    errors = [
        f"{hosts[line.trace.host]}: {line.error}" if len(hosts) > 1 else line.error
        for line in lines
        if line.error
    ]
    total["error"] = errors[0] if errors else None
    return total
