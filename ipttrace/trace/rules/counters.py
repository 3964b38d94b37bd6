# SPDX-License-Identifier: GPL-2.0-only
"""The newest counters of each table and those before, for rates.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ipttrace.stream.frames import StreamError
from ipttrace.trace.rules.frames import (
    U32,
    U64,
    Counted,
    Key,
    frame_counted,
    frame_key,
    frame_name,
    frame_number,
)
from ipttrace.trace.rules.texts import size_of

_ROOM: Final = 64 << 20  # bytes, of all tables
_PAIR: Final = 16  # bytes of packets and bytes
# What Python needs for a table, and for a chain besides its name and its rules, in bytes.
_TABLE: Final = 400
_CHAIN: Final = 400


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of a table at `mono`, ns of the host's CLOCK_MONOTONIC.

    `since`: the generation from which on the table has had these rules.
    """

    mono: int
    since: int
    chains: dict[str, Counted]


CounterPair = tuple[Counters, Counters | None]
"""The newest counters and those before."""


class CounterHistory:
    """The two newest counters of each table, in bounded memory."""

    def __init__(self) -> None:
        self._tables: dict[Key, CounterPair] = {}
        self.size = 0  # bytes, estimated

    def feed(self, counters: dict[str, Any], base: int) -> None:
        """Adds a COUNTERS frame whose generations begin at `base`.

        Raises StreamError, one line, if it is malformed.
        """
        key = frame_key(counters, "counters")
        chains = counters.get("chains")
        if not isinstance(chains, dict):
            raise StreamError("malformed counters in the stream: chains")
        new = Counters(
            mono=frame_number(counters, "mono", U64, "counters"),
            since=base + frame_number(counters, "since", U32, "counters"),
            chains={
                frame_name(name, "counters"): frame_counted(chain) for name, chain in chains.items()
            },
        )
        old = self._tables.pop(key, None)
        if old is not None:
            self.size -= _size(old)
        # The dict is in order of arrival: its first entry is the oldest.
        self._tables[key] = (new, None if old is None else old[0])
        self.size += _size(self._tables[key])
        while self.size > _ROOM:
            self.size -= _size(self._tables.pop(next(iter(self._tables))))

    def of(self, key: Key) -> CounterPair | None:
        """Returns the newest counters, and those before if they belong to the same rules."""
        found = self._tables.get(key)
        if found is None or found[1] is None or found[0].since == found[1].since:
            return found
        return found[0], None


def _size(pair: CounterPair) -> int:
    return _TABLE + sum(
        len(chain.rules) * _PAIR + _CHAIN + size_of(name)
        for counters in pair
        if counters is not None
        for name, chain in counters.chains.items()
    )
