# SPDX-License-Identifier: GPL-2.0-only
"""A recording that begins in the middle of a stream, and is a whole stream itself.

What later frames lean on (the description, the clock, the newest rules and
neighbours) is kept, so that it can be written first.  Must not know what the
frames mean beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipttrace.stream.frames import Frame, Kind, Sink, StreamError, Writer


class Tap:
    """Sees every frame of a stream; writes them on while there is a sink."""

    def __init__(self) -> None:
        self._hello: Frame | None = None
        self._clock: Frame | None = None
        # By what they are about: a namespace, or a table and its generation.
        self._about: dict[tuple[object, ...], Frame] = {}
        self._writer: Writer | None = None

    @property
    def open(self) -> bool:
        """Whether it writes."""
        return self._writer is not None

    def feed(self, frame: Frame) -> None:
        """Take one frame.  Raises OSError when the sink does not take it: it is let go of."""
        if frame.kind == Kind.HELLO:
            self._hello, self._clock = frame, None
            self._about.clear()
        elif frame.kind == Kind.CLOCK:
            self._clock = frame
        elif frame.kind in (Kind.RULES, Kind.NEIGHBOURS):
            self._keep(frame)
        if self._writer is not None and frame.kind != Kind.END:
            self._write(frame)

    def start(self, sink: Sink) -> None:
        """Write from here on.  Raises OSError; ValueError before the stream has begun."""
        if self._hello is None:
            raise ValueError("the stream has not begun")
        self._writer = Writer(sink)
        for frame in (self._hello, self._clock, *self._about.values()):
            if frame is not None:
                self._write(frame)

    def stop(self, books: Mapping[str, Any]) -> None:
        """End the recording with these books.  Raises OSError."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end({**books, "reason": "the recording was ended"})

    def _write(self, frame: Frame) -> None:
        assert self._writer is not None
        try:
            self._writer.copy(frame)
        except OSError:
            self._writer = None
            raise

    def _keep(self, frame: Frame) -> None:
        try:
            value = frame.json
        except StreamError:
            return
        if frame.kind == Kind.NEIGHBOURS:
            # A change leaves out what stayed: all since the last whole one are needed.
            whole = "neighbours" in value
            key: tuple[object, ...] = (frame.kind, str(value.get("netns")), whole)
            if whole:
                self._about.pop((frame.kind, str(value.get("netns")), False), None)
        else:
            key = (frame.kind, *(str(value.get(name)) for name in ("netns", "family", "table")))
        self._about.pop(key, None)
        self._about[key] = frame
