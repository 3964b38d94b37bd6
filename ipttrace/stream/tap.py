# SPDX-License-Identifier: GPL-2.0-only
"""A recording that begins in the middle of a stream, and is a whole stream itself.

What later frames lean on (the description, the clock, the newest rules and
neighbours) is kept, so that it can be written first.  Must not know what the
frames mean beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

from ipttrace.stream.frames import Frame, Kind, Sink, StreamError, Writer

_MOST_CHANGES: Final = 1000


class Tap:
    """Sees every frame of a stream; writes them on while there is a sink."""

    def __init__(self) -> None:
        self._hello: Frame | None = None
        self._clock: Frame | None = None
        # By what they are about: a namespace, or a table and its generation.
        self._about: dict[tuple[object, ...], Frame] = {}
        self._changes: dict[str, list[Frame]] = {}  # by namespace
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
            self._changes.clear()
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
        changes = chain.from_iterable(self._changes.values())
        for frame in (self._hello, self._clock, *self._about.values(), *changes):
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
            self._keep_neighbours(frame, value)
            return
        key = (frame.kind, *(str(value.get(name)) for name in ("netns", "family", "table")))
        self._put(key, frame)

    def _keep_neighbours(self, frame: Frame, value: dict[str, Any]) -> None:
        """Of each namespace the newest whole frame and the changes since."""
        if "tables" in value:
            self._put((frame.kind, "tables"), frame)
        for netns in value["gone"] if isinstance(value.get("gone"), list) else ():
            self._changes.pop(str(netns), None)
        if "netns" not in value:
            return
        name = str(value["netns"])
        if "neighbours" in value:
            self._changes[name] = []
        kept = self._changes.get(name)
        # The next whole frame is not far where there are so many changes.
        if kept is not None and len(kept) < _MOST_CHANGES:
            kept.append(frame)

    def _put(self, key: tuple[object, ...], frame: Frame) -> None:
        self._about.pop(key, None)
        self._about[key] = frame
