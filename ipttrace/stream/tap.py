# SPDX-License-Identifier: GPL-2.0-only
"""A recording that starts in the middle of a stream and is a complete stream itself.

What later frames depend on (HELLO, the clock, the newest rules, neighbours and tables of
the kernel) is kept, so that a recording can start with it.  Must not interpret frames
beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final, cast

from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.stream.messages import End
from ipttrace.stream.writer import Sink, Writer

_MOST_CHANGES: Final = 1000
# Bytes of kept frames; beyond, the oldest are forgotten: rows then have no texts at first.
_ROOM: Final = 256 << 20
_NAME: Final = 128  # characters
_FRAME: Final = 1000  # bytes besides the payload
_MOST_NAMES: Final = 32 << 20  # bytes of NAMES and PLACES frames; rows do without more


class Tap:
    """Sees every frame of a stream, and copies them to a sink while there is one."""

    def __init__(self) -> None:
        self._hello: Frame | None = None
        self._clock: Frame | None = None
        # The newest frame of each subject: a table, or the neighbour tables.
        self._about: dict[tuple[object, ...], Frame] = {}
        self._changes: dict[str, list[Frame]] = {}  # by namespace
        self._size = 0  # bytes of `_about` and `_changes`, estimated
        self._names: list[Frame] = []
        self._names_size = 0  # bytes
        self._writer: Writer | None = None

    @property
    def open(self) -> bool:
        """Whether a recording is being written."""
        return self._writer is not None

    def feed(self, frame: Frame) -> None:
        """Takes one frame.  If the sink fails, drops the sink and raises OSError."""
        if frame.kind == Kind.HELLO:
            self._hello, self._clock = frame, None
            self._about.clear()
            self._changes.clear()
            self._size = 0
            self._names, self._names_size = [], 0
        elif frame.kind == Kind.CLOCK:
            self._clock = frame
        elif frame.kind in (Kind.NAMES, Kind.PLACES):
            self._names_size += len(frame.payload)
            if self._names_size <= _MOST_NAMES:
                self._names.append(frame)
        elif frame.kind in (Kind.RULES, Kind.NEIGHBOURS, Kind.TABLES):
            self._keep(frame)
        if self._writer is not None and frame.kind != Kind.END:
            self._write(frame)

    def start(self, sink: Sink) -> None:
        """Starts a recording.  Raises OSError; ValueError before the stream has started."""
        if self._hello is None:
            raise ValueError("the stream has not started")
        self._writer = Writer(sink)
        changes = chain.from_iterable(self._changes.values())
        about = (*self._names, *self._about.values(), *changes)
        for frame in (self._hello, self._clock, *about):
            if frame is not None:
                self._write(frame)

    def stop(self, books: Mapping[str, Any]) -> None:
        """Ends the recording with `books`, as the stream had them.  Raises OSError."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end(cast(End, {**books, "reason": "the recording was ended"}))

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
        if frame.kind == Kind.TABLES and "netns" not in value:
            self._forget_tables(value.get("gone"))
            return
        key = (frame.kind, *(str(value.get(name))[:_NAME] for name in ("netns", "family", "table")))
        self._put(key, frame)

    def _keep_neighbours(self, frame: Frame, value: dict[str, Any]) -> None:
        """Keeps the newest complete frame of each namespace, and the changes since."""
        if "tables" in value:
            self._put((frame.kind, "tables"), frame)
        for netns in value["gone"] if isinstance(value.get("gone"), list) else ():
            self._forget_changes(str(netns)[:_NAME])
        if "netns" not in value:
            return
        name = str(value["netns"])[:_NAME]
        if "neighbours" in value:
            self._forget_changes(name)
            self._changes[name] = []
        kept = self._changes.get(name)
        # After so many changes, the next complete frame is near.
        if kept is not None and len(kept) < _MOST_CHANGES:
            kept.append(frame)
            self._size += _size(frame)
            self._shrink()

    def _forget_tables(self, gone: object) -> None:
        """Forgets the TABLES frames of namespaces that are gone."""
        names = {str(netns)[:_NAME] for netns in gone} if isinstance(gone, list) else set()
        for key in [key for key in self._about if key[0] == Kind.TABLES and key[1] in names]:
            self._size -= _size(self._about.pop(key))

    def _put(self, key: tuple[object, ...], frame: Frame) -> None:
        if (old := self._about.pop(key, None)) is not None:
            self._size -= _size(old)
        self._about[key] = frame
        self._size += _size(frame)
        self._shrink()

    def _forget_changes(self, name: str) -> None:
        self._size -= sum(map(_size, self._changes.pop(name, ())))

    def _shrink(self) -> None:
        while self._size > _ROOM and self._changes:
            self._forget_changes(next(iter(self._changes)))
        while self._size > _ROOM:
            self._size -= _size(self._about.pop(next(iter(self._about))))


def _size(frame: Frame) -> int:
    return len(frame.payload) + _FRAME
