# SPDX-License-Identifier: GPL-2.0-only
"""The newest counters of each table and those before, for rates.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.rules.frames import (
    U32,
    U64,
    Counted,
    Key,
    frame_counted,
    frame_key,
    frame_number,
)

_MOST_PAIRS: Final = 4 << 20  # of packets and bytes, in all tables
_CHAIN: Final = 8  # what a chain takes besides its rules, in pairs


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
        self._size = 0  # in pairs of packets and bytes

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
            chains={clean(name): frame_counted(chain) for name, chain in chains.items()},
        )
        old = self._tables.pop(key, None)
        if old is not None:
            self._size -= _size(old)
        # The dict is in order of arrival: its first entry is the oldest.
        self._tables[key] = (new, None if old is None else old[0])
        self._size += _size(self._tables[key])
        while len(self._tables) > 1 and self._size > _MOST_PAIRS:
            self._size -= _size(self._tables.pop(next(iter(self._tables))))

    def of(self, key: Key) -> CounterPair | None:
        """Returns the newest counters, and those before if they belong to the same rules."""
        found = self._tables.get(key)
        if found is None or found[1] is None or found[0].since == found[1].since:
            return found
        return found[0], None


def _size(pair: CounterPair) -> int:
    return sum(
        len(chain.rules) + _CHAIN
        for counters in pair
        if counters is not None
        for chain in counters.chains.values()
    )
