# SPDX-License-Identifier: GPL-2.0-only
"""The stream: the one form in which a trace travels and is kept.

A stream is a run of frames, the same for a live agent, an agent elsewhere and a
file.  Each frame is a header of 16 bytes, little-endian, and its payload:

====== ===== =====================================================
offset size  what
====== ===== =====================================================
0      4     magic ``iptr``
4      1     kind
5      1     flags: 1 where the frame has no checksum
6      2     zero
8      4     length of the payload in bytes
12     4     CRC-32 of bytes 4 to 11 and the payload, or zero
====== ===== =====================================================

The first frame is HELLO; it describes the record layout, so that later versions can
read the stream.  Readers skip kinds that they do not know.  Streams to a file or over a
network have checksums; a local pipe damages nothing, so an agent that writes to one
leaves them out: they are half of its work per record.
Must not touch the kernel, sockets or a screen.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.messages import (
    Books,
    Clock,
    End,
    Hello,
    Level,
    Message,
    Note,
)
from ipttrace.stream.record import Records

MAGIC: Final = b"iptr"
FORMAT: Final = 1
# Writers split records into frames far smaller than this; a longer frame is damage.
MAX_PAYLOAD: Final = 16 << 20

_HEADER: Final = struct.Struct("<4sBB2xII")
_UNCHECKED: Final = 1


class StreamError(ValueError):
    """The stream is damaged, truncated or not an ipttrace stream; one line says where."""


class Kind(IntEnum):
    """What a frame contains; stream/messages.py has the types, docs/events/ a page for each."""

    HELLO = 1  # json: layout, kernel, host, clock, filter
    ENTRY = 2  # records
    RULE = 3
    EXIT = 4
    CLOCK = 5  # json: mono and wall in ns, for the records that follow
    BOOKS = 6  # json: the counters at one moment
    NOTE = 7  # json: level and text, for a person
    END = 8  # json: the last books and the reason
    RULES = 9  # json: a table's rules, or that they changed
    COUNTERS = 10  # json: a table's counters
    NEIGHBOURS = 11  # json: a namespace's neighbour tables


_RECORD_KINDS: Final = (Kind.ENTRY, Kind.RULE, Kind.EXIT)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.  `kind` may be unknown to this version."""

    kind: int
    payload: bytes
    dtypes: tuple[np.dtype[np.void], ...] = record.DTYPES

    @property
    def is_records(self) -> bool:
        """Whether this is an ENTRY, RULE or EXIT frame."""
        return self.kind in _RECORD_KINDS

    @property
    def records(self) -> Records:
        """The records of an ENTRY, RULE or EXIT frame, shape (n,), read-only.

        Converted to this version's layout.
        """
        index = self.kind - Kind.ENTRY
        return record.convert(np.frombuffer(self.payload, self.dtypes[index]), record.DTYPES[index])

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object of any other frame.  Raises StreamError if it is not one."""
        try:
            value = json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise StreamError(f"a frame of kind {self.kind} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise StreamError(f"a frame of kind {self.kind} is not a JSON object")
        return value


class Sink(Protocol):
    """Where a Writer writes: a binary file or anything with its `write`."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class Writer:
    """Writes frames.  Each method writes one; `records` writes several when there are many."""

    def __init__(self, sink: Sink, *, checked: bool = True) -> None:
        """`checked`: with checksums, which everything kept in a file needs."""
        self._sink = sink
        self._checked = checked

    def _frame(self, kind: int, payload: bytes | memoryview) -> None:
        head = struct.pack("<BB2xI", kind, 0 if self._checked else _UNCHECKED, len(payload))
        crc = zlib.crc32(payload, zlib.crc32(head)) if self._checked else 0
        self._sink.write(MAGIC + head + struct.pack("<I", crc))
        self._sink.write(payload)

    def _json(self, kind: Kind, value: Mapping[str, Any]) -> None:
        self._frame(kind, json.dumps(value, separators=(",", ":")).encode())

    def copy(self, frame: Frame) -> None:
        """Copies a frame of another stream; HELLO must come first, with the same layout."""
        self._frame(frame.kind, frame.payload)

    def hello(self, about: Hello) -> None:
        """HELLO, the first frame: `about` and the record layout."""
        self._json(Kind.HELLO, {"format": FORMAT, "layout": record.layout(), **about})

    def records(self, kind: int, records: Records) -> None:
        """ENTRY, RULE or EXIT: `records`, shape (n,), of `record.DTYPES[kind]`.

        `kind`: record.ENTRY, RULE or EXIT.  Raises TypeError for another layout.
        """
        if records.dtype != record.DTYPES[kind]:
            # numpy itself changes byte orders when it joins structured arrays.
            raise TypeError(f"{record.KINDS[kind]} records do not have the stream's layout")
        most = (1 << 20) // records.dtype.itemsize
        for start in range(0, len(records), most):
            part = np.ascontiguousarray(records[start : start + most])
            self._frame(_RECORD_KINDS[kind], part.view(np.uint8).data)

    def clock(self, mono: int, wall: int) -> None:
        """CLOCK: CLOCK_MONOTONIC and CLOCK_REALTIME in ns, for the records that follow."""
        clock: Clock = {"mono": mono, "wall": wall}
        self._json(Kind.CLOCK, clock)

    def books(self, books: Books) -> None:
        """BOOKS: the counters at this moment."""
        self._json(Kind.BOOKS, books)

    def note(self, level: Level, text: str) -> None:
        """NOTE: a line for a person."""
        note: Note = {"level": level, "text": text}
        self._json(Kind.NOTE, note)

    def message(self, kind: Kind, message: Message) -> None:
        """RULES, COUNTERS, NEIGHBOURS or NOTE: what a watch found."""
        self._json(kind, message)

    def end(self, books: End) -> None:
        """END, the last frame: nothing was cut off."""
        self._json(Kind.END, books)


class Decoder:
    """Turns bytes, in portions of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the stream
        self._dtypes: tuple[np.dtype[np.void], ...] | None = None
        self._broken: StreamError | None = None

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """The frames that `data` completes.

        If the stream is damaged, the frames before the damage are returned first; the
        next call raises StreamError.
        """
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        frames: list[Frame] = []
        at = 0
        try:
            while len(self._buffer) - at >= _HEADER.size:
                magic, kind, flags, length, crc = _HEADER.unpack_from(self._buffer, at)
                self._check_head(magic, length, at)
                end = at + _HEADER.size + length
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[at + _HEADER.size : end])
                head = bytes(memoryview(self._buffer)[at + 4 : at + 12])
                right = 0 if flags & _UNCHECKED else zlib.crc32(payload, zlib.crc32(head))
                if right != crc:
                    raise StreamError(
                        f"the stream is damaged at byte {self._offset + at}: checksum is wrong"
                    )
                frames.append(self._frame(kind, payload, self._offset + at))
                at = end
        except StreamError as error:
            self._broken = error
            if not frames:
                raise
        finally:
            del self._buffer[:at]
            self._offset += at
        return frames

    def finish(self) -> None:
        """Raises StreamError if the bytes so far do not end with a complete frame."""
        if self._broken is not None:
            raise self._broken
        if self._buffer:
            raise StreamError(
                f"the stream is cut off at byte {self._offset + len(self._buffer)},"
                " in the middle of a frame"
            )
        if self._dtypes is None:
            raise StreamError("the stream is empty")

    def _check_head(self, magic: bytes, length: int, at: int) -> None:
        if magic != MAGIC:
            if self._dtypes is None:
                raise StreamError("not an ipttrace stream")
            raise StreamError(
                f"the stream is damaged at byte {self._offset + at}: no frame starts there"
            )
        if length > MAX_PAYLOAD:
            raise StreamError(
                f"the stream is damaged at byte {self._offset + at}: a frame of {length} bytes"
            )

    def _frame(self, kind: int, payload: bytes, offset: int) -> Frame:
        if self._dtypes is None:
            if kind != Kind.HELLO:
                raise StreamError("the stream does not start with a HELLO frame")
            hello = Frame(kind, payload).json
            if hello.get("format") != FORMAT:
                raise StreamError(
                    f"the stream is of format {hello.get('format')!r}; this version reads {FORMAT}"
                )
            try:
                self._dtypes = record.dtypes_of(hello.get("layout", {}))
            except ValueError as error:
                raise StreamError(f"the stream's record layout is not valid: {error}") from error
        frame = Frame(kind, payload, self._dtypes)
        if frame.is_records and len(payload) % self._dtypes[kind - Kind.ENTRY].itemsize:
            raise StreamError(f"the stream is damaged at byte {offset}: part of a record")
        return frame


def read(file: BinaryIO, portion: int = 1 << 20) -> Iterator[Frame]:
    """The frames of `file`, up to its end.  Raises StreamError after the last good one."""
    decoder = Decoder()
    # read1 returns what has arrived instead of waiting for all that was asked for.
    take = getattr(file, "read1", file.read)
    while data := take(portion):
        yield from decoder.feed(data)
    decoder.finish()


def read_file(path: str | Path) -> Iterator[Frame]:
    """The frames of the file at `path`.  Raises OSError, StreamError."""
    with open(path, "rb") as file:
        yield from read(file)
