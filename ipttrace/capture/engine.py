# SPDX-License-Identifier: GPL-2.0-only
"""What an engine is to the agent.  Must not import an engine.

An engine is armed when it is made.  It never writes the stream: the agent takes its
records, its notes and its counters.
"""

from __future__ import annotations

from typing import Protocol

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import Records


class Buffers(Protocol):
    """Where an engine's records arrive, and what the agent waits on."""

    @property
    def cpus(self) -> int:
        """CPUs that records may come from."""
        ...

    def watch(self, fd: int, /) -> None:
        """Makes `wait` also return when `fd` is readable."""
        ...

    def unwatch(self, fd: int, /) -> None:
        """Undoes `watch`."""
        ...

    def wait(self, seconds: float, /) -> set[int]:
        """Waits for records, a watched descriptor or the time; returns what is readable."""
        ...


class Engine(Protocol):
    """A source of records.  Methods that change the host raise CaptureError."""

    notes: list[tuple[Level, str]]  # for the user; the agent takes them from the front
    names: dict[str, str]  # full names by those in records; the agent empties it
    over: str  # why there is nothing left to trace; "" while there is
    # Records of calls that ended before this time, ns, have been taken.
    before: int

    @property
    def name(self) -> str:
        """As rows and summaries show it."""
        ...

    @property
    def addresses(self) -> HiddenAddresses:
        """What replaces the kernel's addresses in records that are taken from now on."""
        ...

    @property
    def buffers(self) -> Buffers:
        """Where records arrive."""
        ...

    def arm(self) -> None:
        """Starts tracing again after `disarm`."""
        ...

    def disarm(self) -> None:
        """Stops tracing; records that were written until now can still be taken."""
        ...

    def filter(self, program: bytes, /) -> None:
        """Replaces the filter by `program`, classic BPF; on an error the old one stays."""
        ...

    def take(self) -> list[Records]:
        """The records that have arrived: entry, rule and exit records, shape (n,) each."""
        ...

    def lost_exits(self) -> int:
        """Exit records, and so rows, that no buffer had room for."""
        ...

    def books(self) -> Books:
        """The counters of this moment."""
        ...

    def close(self) -> None:
        """Disarms and removes everything that was added to the host."""
        ...
