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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import Any, Final

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.record import Records
from ipttrace.text import clean

MAGIC: Final = b"iptr"
FORMAT: Final = 1
# Writers split records into frames far smaller than this; a longer frame is damage.
MAX_PAYLOAD: Final = 16 << 20

HEADER: Final = struct.Struct("<4sBB2xII")
UNCHECKED: Final = 1
_LONGEST_ERROR: Final = 300  # characters


class StreamError(ValueError):
    """The stream is damaged, truncated or not an ipttrace stream; one line says where.

    The line is clean, and short whatever values of the stream it names.
    """

    def __init__(self, text: str) -> None:
        super().__init__(clean(text, _LONGEST_ERROR))


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
    NAMES = 12  # json: full names by those in the records that follow
    STATION = 13  # records
    PLACES = 14  # json: names of the places, stacks and reasons in the stations that follow
    TABLES = 15  # json: a namespace's reassembly or conntrack
    SOCKET = 16  # records
    PROCESSES = 17  # json: the processes in the socket records that follow


# By kinds of record.
RECORD_KINDS: Final = (Kind.ENTRY, Kind.RULE, Kind.EXIT, Kind.STATION, Kind.SOCKET)

# Those whose records may come in several frames.
_DIVISIBLE: Final[dict[int, int]] = {Kind.EXIT: record.EXIT, Kind.SOCKET: record.SOCKET}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.  `kind` may be unknown to this version."""

    kind: int
    payload: bytes
    dtypes: tuple[np.dtype[np.void], ...] = record.ALL_DTYPES

    @property
    def is_records(self) -> bool:
        """Whether this is a frame of records."""
        return self.kind in RECORD_KINDS

    @property
    def records(self) -> Records:
        """The records of such a frame, shape (n,), read-only.

        Converted to this version's layout.
        """
        index = RECORD_KINDS.index(Kind(self.kind))
        found = np.frombuffer(self.payload, self.dtypes[index])
        return record.convert(found, record.ALL_DTYPES[index])

    def portions(self, most: int) -> Iterator[Frame]:
        """A frame of at most `most` records each, where that is the same; else itself.

        It is for an EXIT frame, which ends calls, and for a SOCKET frame.
        """
        index = _DIVISIBLE.get(self.kind)
        if index is None or len(self.payload) <= (size := most * self.dtypes[index].itemsize):
            yield self
            return
        for start in range(0, len(self.payload), size):
            yield Frame(self.kind, self.payload[start : start + size], self.dtypes)

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


def joined(frames: Sequence[Frame]) -> list[Frame]:
    """The frames of one stream, with the records of several batches as one batch.

    The rows are the same, in order of time also across the batches, for less work a
    record.  Frames of other kinds stay where they are among the batches.
    """
    found: list[Frame] = []
    for is_records, run in groupby(frames, lambda frame: frame.is_records):
        if not is_records:
            found += run
            continue
        parts: dict[int, list[Frame]] = {kind: [] for kind in RECORD_KINDS}
        for frame in run:
            parts[frame.kind].append(frame)
        # Exits come last: they end a batch.
        for kind in (Kind.ENTRY, Kind.RULE, Kind.STATION, Kind.SOCKET, Kind.EXIT):
            if some := parts[kind]:
                payload = some[0].payload if len(some) == 1 else b"".join(f.payload for f in some)
                found.append(Frame(kind, payload, some[0].dtypes))
    return found
