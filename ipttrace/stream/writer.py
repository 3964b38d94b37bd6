# SPDX-License-Identifier: GPL-2.0-only
"""Frames to bytes.  Must not touch the kernel, sockets or a screen."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.frames import FORMAT, MAGIC, RECORD_KINDS, UNCHECKED, Frame, Kind
from ipttrace.stream.messages import (
    Books,
    Clock,
    End,
    Hello,
    Level,
    Message,
    Names,
    Note,
    Places,
    Processes,
)
from ipttrace.stream.record import Records

_NAMES_AT_ONCE: Final = 1000


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
        head = struct.pack("<BB2xI", kind, 0 if self._checked else UNCHECKED, len(payload))
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
        """ENTRY, RULE, EXIT, STATION, SOCKET: `records`, shape (n,), of `record.ALL_DTYPES[kind]`.

        `kind`: record.ENTRY, RULE, EXIT, STATION or SOCKET.  Raises TypeError for another layout.
        """
        if records.dtype != record.ALL_DTYPES[kind]:
            # numpy itself changes byte orders when it joins structured arrays.
            raise TypeError(f"{record.ALL_KINDS[kind]} records do not have the stream's layout")
        most = (1 << 20) // records.dtype.itemsize
        for start in range(0, len(records), most):
            part = np.ascontiguousarray(records[start : start + most])
            self._frame(RECORD_KINDS[kind], part.view(np.uint8).data)

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

    def names(self, names: Mapping[str, str]) -> None:
        """NAMES: full names by those in records; several frames when there are many."""
        pairs = list(names.items())
        for start in range(0, len(pairs), _NAMES_AT_ONCE):
            some: Names = {"names": dict(pairs[start : start + _NAMES_AT_ONCE])}
            self._json(Kind.NAMES, some)

    def netns_names(self, names: Mapping[int, str]) -> None:
        """NAMES: names of network namespaces, by inode, that HELLO does not have."""
        pairs = [(str(inode), name) for inode, name in names.items()]
        for start in range(0, len(pairs), _NAMES_AT_ONCE):
            some: Names = {"names": {}, "netns": dict(pairs[start : start + _NAMES_AT_ONCE])}
            self._json(Kind.NAMES, some)

    def places(self, places: Places) -> None:
        """PLACES: names for the numbers in the stations that follow."""
        self._json(Kind.PLACES, places)

    def processes(self, processes: Processes) -> None:
        """PROCESSES: processes in the records that follow; several frames when there are many."""
        pairs = list(processes["processes"].items())
        for start in range(0, len(pairs), _NAMES_AT_ONCE):
            some: Processes = {"processes": dict(pairs[start : start + _NAMES_AT_ONCE])}
            self._json(Kind.PROCESSES, some)

    def message(self, kind: Kind, message: Message) -> None:
        """RULES, COUNTERS, NEIGHBOURS, TABLES or NOTE: what a watch found."""
        self._json(kind, message)

    def end(self, books: End) -> None:
        """END, the last frame: nothing was cut off."""
        self._json(Kind.END, books)
