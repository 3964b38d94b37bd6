# SPDX-License-Identifier: GPL-2.0-only
"""What a stream may cost its reader, in bytes.

A stream may come from a forged file or a host that is not trusted.  Frames are refused by
their headers (`check_size`), and what a reader keeps of them is added up after each frame
(`Budget`).  Most parts of a reader evict their oldest items before that (waiting records,
rule texts, counters): the budget is for everything together.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ipttrace.stream.frames import MAX_PAYLOAD, RECORD_KINDS, Kind, StreamError

LIMIT: Final = 1 << 30
# Parsed JSON takes up to 30 times its bytes.  Agents write tables of at most 8 MB.
_TABLES: Final = (8 << 20) + (64 << 10)
_OTHERS: Final = 1 << 20
_SIZES: Final = {
    **dict.fromkeys(RECORD_KINDS, MAX_PAYLOAD),
    Kind.RULES: _TABLES,
    Kind.COUNTERS: _TABLES,
    Kind.NEIGHBOURS: _TABLES,
    Kind.NAMES: _TABLES,
    Kind.PLACES: _OTHERS,
    Kind.TABLES: _OTHERS,
    Kind.PROCESSES: _OTHERS,
    Kind.HELLO: _OTHERS,
    Kind.CLOCK: _OTHERS,
    Kind.BOOKS: _OTHERS,
    Kind.NOTE: _OTHERS,
    Kind.END: _OTHERS,
}


def check_size(kind: int, length: int, offset: int) -> None:
    """Raises StreamError if no frame of this kind has `length` bytes of payload.

    `offset`: of the frame in the stream.
    """
    if length > _SIZES.get(kind, MAX_PAYLOAD):  # type: ignore[call-overload]
        raise StreamError(f"the stream is damaged at byte {offset}: a frame of {length} bytes")


class Budget:
    """The bytes that one stream may make its reader keep."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit

    def check(self, kept: Mapping[str, int]) -> None:
        """Raises StreamError if all together is too much.  `kept`: bytes by what they are."""
        if sum(kept.values()) > self._limit:
            most = max(kept, key=lambda what: kept[what])
            raise StreamError(
                f"reading the stream needs more than {self._limit >> 20:,} MB: too many {most}"
            )
