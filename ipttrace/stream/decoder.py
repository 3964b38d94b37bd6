# SPDX-License-Identifier: GPL-2.0-only
"""Bytes to frames.  Must not touch the kernel, sockets or a screen."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.budget import check_size
from ipttrace.stream.frames import (
    FORMAT,
    HEADER,
    MAGIC,
    MAX_PAYLOAD,
    RECORD_KINDS,
    UNCHECKED,
    Frame,
    Kind,
    StreamError,
)

# Bytes of a frame's records in this version's layout: those of another may be smaller.
_MOST_CONVERTED: Final = 2 * MAX_PAYLOAD


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
            while len(self._buffer) - at >= HEADER.size:
                magic, kind, flags, length, crc = HEADER.unpack_from(self._buffer, at)
                self._check_head(magic, kind, length, at)
                end = at + HEADER.size + length
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[at + HEADER.size : end])
                head = bytes(memoryview(self._buffer)[at + 4 : at + 12])
                right = 0 if flags & UNCHECKED else zlib.crc32(payload, zlib.crc32(head))
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

    def _check_head(self, magic: bytes, kind: int, length: int, at: int) -> None:
        if magic != MAGIC:
            if self._dtypes is None:
                raise StreamError("not an ipttrace stream")
            raise StreamError(
                f"the stream is damaged at byte {self._offset + at}: no frame starts there"
            )
        check_size(kind, length, self._offset + at)

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
        if frame.is_records:
            of = RECORD_KINDS.index(Kind(kind))
            count, rest = divmod(len(payload), self._dtypes[of].itemsize)
            if rest:
                raise StreamError(f"the stream is damaged at byte {offset}: part of a record")
            if count * record.ALL_DTYPES[of].itemsize > _MOST_CONVERTED:
                raise StreamError(f"the stream is damaged at byte {offset}: {count} records")
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
