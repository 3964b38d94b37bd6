# SPDX-License-Identifier: GPL-2.0-only
"""One source on its way to rows: source, intake and trace, and how it ended.

A screen has one feed per host; their traces share a store.  Everything here runs
on the app's thread, except the intake's reader.  Must not touch widgets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from time import monotonic
from typing import Any, BinaryIO

from ipttrace.files import create
from ipttrace.stream.frames import StreamError
from ipttrace.stream.tap import Tap
from ipttrace.text import clean
from ipttrace.trace.session import Trace
from ipttrace.tui import situation as at
from ipttrace.tui.feed.intake import Intake
from ipttrace.tui.feed.source import Source


class Feed:
    """Feeds the frames of one source to its trace."""

    def __init__(self, source: Source, trace: Trace, notify: Callable[[], object]) -> None:
        """`notify`: see `Intake`."""
        self.source = source
        self.trace = trace
        self.intake = Intake(source, notify)
        self.error: str | None = None
        self.over = False
        self.stopping = False
        self.tap = Tap()
        self.recorded = ""  # the file of the current or latest recording
        self.recording_error = ""  # why the recording broke off, until the user dismisses it
        self.stations_asked: bool | None = None  # by the user; None: as the stream began
        self.sockets_asked: bool | None = None  # likewise
        self._file: BinaryIO | None = None

    def feed_one(self) -> bool:
        """Feeds one frame.  False: none is waiting, or the stream has ended or is broken."""
        if self.done or (frame := self.intake.take()) is None:
            return False
        try:
            self.tap.feed(frame)
        except OSError as error:
            self._abort_recording(error)
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
        """Whether the stream has ended or cannot be read any further."""
        return self.error is not None or self.trace.ended is not None

    @property
    def exhausted(self) -> bool:
        """Whether nothing more can come."""
        return self.done or self.intake.drained

    def end(self) -> int:
        """Marks the feed as over.  Returns the number of rows that were incomplete until now."""
        if self.over:
            return 0
        self.over = True
        if not self.done and self.intake.error is not None:
            self.error = clean(self.intake.error)
        # Without an END frame, calls that lack records become rows now.
        return self.trace.finish() if self.trace.ended is None else 0

    def stop(self) -> bool:
        """Asks the far side to end its stream.  True: its last books may still come."""
        self.stopping = True
        return not self.over and self.source.stop()

    def close(self, patience: float = 1.0) -> None:
        """Closes the source and feeds what it has sent, for at most `patience` seconds."""
        self.intake.close()
        until = monotonic() + patience
        while self.source.live and monotonic() < until and self.feed_one():
            pass
        if self.trace.ended is None:
            self.trace.finish()
        self.end_recording()

    def record(self, path: str) -> None:
        """Also writes the stream to `path` from now on.  Raises OSError."""
        # Closed when the recording ends.
        file = os.fdopen(create(path, exclusive=True), "wb")
        try:
            self.tap.start(file)
        except OSError:
            file.close()
            raise
        self._file, self.recorded = file, clean(path)

    def end_recording(self) -> None:
        """Writes the end of the recording, if there is one, and closes its file."""
        if self._file is None:
            return
        try:
            self.tap.stop(self.trace.books)
            self._file.close()
        except OSError as error:
            self._abort_recording(error)
        self._file = None

    def _abort_recording(self, error: OSError) -> None:
        """Ends a recording that cannot be written any further; its file is kept."""
        self.recording_error = f"the recording to {self.recorded} ended: {error.strerror}"
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    @property
    def state(self) -> str:
        """One of the states of `situation`."""
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
                return "The agent exited without sending its last counts; nothing stays armed"
            return "The recording is cut off: its end is missing"
        return at.text_of(self.trace.ended.get("reason"))

    @property
    def stations(self) -> bool:
        """Whether stations are recorded now, as far as it was asked for."""
        if self.stations_asked is not None:
            return self.stations_asked
        return self.trace.hello.get("stations") is True

    @property
    def sockets(self) -> bool:
        """Whether stages of sockets are recorded now: the agent counts them, if it can."""
        if self.sockets_asked is not None:
            return self.sockets_asked and "sockets" in self.trace.books
        return self.trace.hello.get("sockets") is True

    @property
    def host(self) -> str:
        """The host's name as its stream gives it, else the source's."""
        return at.text_of(self.trace.hello.get("host")) or clean(self.source.name)

    @property
    def expr(self) -> str:
        """The filter in the kernel now; "" matches all packets."""
        books: dict[str, Any] = self.trace.books
        return at.text_of(books.get("expr", self.trace.hello.get("expr")))

    @property
    def filtered(self) -> str:
        """Where the filter runs, in a few words; "" if unknown or without a filter."""
        return at.text_of(self.trace.books.get("filter")) if self.expr else ""

    @property
    def broken_off(self) -> bool:
        """Whether it is over without an END frame, or because of an error."""
        return self.over and (self.error is not None or self.trace.ended is None)
