# SPDX-License-Identifier: GPL-2.0-only
"""Drops and stations as a source of records, beside an engine.

The agent takes them after the engine's records of the same time: a station must not go out
before the rows of its packet.  Nothing outlives the process, which holds the programs' links.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.drops import events
from ipttrace.capture.drops.places import PlaceBook
from ipttrace.capture.drops.programs import DUE, LOST, REFUSED, Programs
from ipttrace.capture.filter import headers
from ipttrace.capture.libbpf import Libbpf
from ipttrace.stream import record
from ipttrace.stream.messages import Places, StationBooks
from ipttrace.stream.record import Records

BUFFER: Final = 8 << 20  # bytes of the ring
# The first number of stations' calls: those of all engines stay below it, or above 2^56 more.
FIRST: Final = 0xFD << 48
_MOST_HELD: Final = 32 << 20  # bytes that wait for the engine: what is beyond stays in the ring
_DECIDED: Final = record.STATION_F_TRACED | record.STATION_F_MATCHED


class Drops:
    """Armed when it is made.  Raises CaptureError if it cannot run."""

    def __init__(
        self,
        program: bytes = b"",
        only_netns: int = 0,
        *,
        stations: bool = False,
        buffer: int = BUFFER,
    ) -> None:
        """`program`: EXPR, of pcap.compile(); `only_netns`: an inode, 0: all namespaces.

        `stations`: whether they are recorded too; `buffer`: bytes of the ring, a power of two.
        """
        self._armed = False
        self._stations = stations
        self._programs = Programs(buffer, only_netns)
        self._book = PlaceBook(Libbpf())
        self._held = np.zeros(0, record.STATION_DTYPE)
        self._next = FIRST
        self._read = 0
        self._delivered = 0
        self._withheld = 0  # that EXPR turned out not to match, or that are no drops
        self._refused = 0  # those of the former
        self.filter(program)
        try:
            self.arm()
        except BaseException:
            self.close()
            raise

    def arm(self) -> None:
        """Starts tracing, with the current filter.  Raises CaptureError."""
        self._programs.attach()
        try:
            if self._stations:
                self._programs.attach_stations()
        except BaseException:
            self._programs.detach()
            raise
        self._armed = True

    def disarm(self) -> None:
        """Ends tracing; what was written until now can still be taken."""
        self._programs.detach()
        self._armed = False

    def filter(self, program: bytes) -> None:
        """Replaces the filter at once."""
        self._program = program
        self._programs.filter(program)

    def show_stations(self, on: bool) -> None:
        """Starts or ends the recording of stations.  Raises CaptureError, with nothing changed."""
        if self._armed and on:
            self._programs.attach_stations()
        elif not on:
            self._programs.detach_stations()
        self._stations = on

    def read(self) -> None:
        """Reads what has been written, before the engine is asked for its records."""
        if self._held.nbytes >= _MOST_HELD:
            return
        taken = self._programs.ring.take()
        found = events.read(*taken)
        if not len(found):
            return
        keep = self._matching(found)
        self._refused += int((~keep).sum())
        stacks = events.stacks(*taken)
        found["place"] = self._book.places(found["place"], stacks)
        found["stack"] = self._book.stacks(stacks)
        found["owner"] = self._book.owners(found["owner"])
        found["call"] = self._next + np.arange(len(found), dtype=np.uint64)
        self._next += len(found)
        handled = self._book.handled(found["place"], found["reason"])
        keep &= ~handled | (found["what"] != record.DROPPED)
        self._withheld += int((~keep).sum())
        found = found[keep]
        self._read += len(found)
        self._book.reasons(found["reason"])
        self._held = events.joined(self._held, found)

    def take(self, before: int, addresses: HiddenAddresses | None) -> tuple[Records, Places | None]:
        """The stations of before this time, and what their numbers mean, if that is new.

        `before`: CLOCK_MONOTONIC, ns; `addresses`: of the engine, None: they stay as they are.
        """
        if not len(self._held):
            return self._held, None
        ready = self._held["time"] < np.uint64(max(int(before), 0))
        taken, self._held = self._held[ready], self._held[~ready]
        if not len(taken):
            return taken, None
        if addresses is not None:
            addresses.hide_columns([taken[name] for name in ("skb", "sk", "ct")])
        self._delivered += len(taken)
        return taken, self._book.take()

    def _matching(self, found: Records) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of them EXPR matches: the program could not always decide it."""
        keep = np.ones(len(found), bool)
        doubtful = found["station_flags"] & _DECIDED == 0
        doubtful &= found["flags"] & record.F_FIRST != 0
        if not doubtful.any() or not self._program:
            return keep
        some = found[doubtful]
        packets = np.ascontiguousarray(some["packet"])
        lens = np.maximum(some["len"], some["caplen"]).astype(np.int64)
        yes, unknown = headers.matches(
            self._program, packets, some["caplen"].astype(np.int64), lens
        )
        matched = yes & ~unknown
        keep[doubtful] = matched
        flags = some["station_flags"]
        flags[matched] |= record.STATION_F_MATCHED
        found["station_flags"][doubtful] = flags
        return keep

    def counts(self) -> tuple[int, int]:
        """Stations that were read, and those for which the ring had no room."""
        return self._read, self._programs.counters()[LOST]

    def books(self) -> StationBooks:
        """The counters of this moment."""
        counted = self._programs.counters()
        missed = self._programs.missed()
        return {
            "due": counted[DUE] - self._withheld + missed,
            "delivered": self._delivered,
            "lost": counted[LOST],
            "missed": missed,
            "refused": counted[REFUSED] + self._refused,
        }

    def close(self) -> None:
        """Detaches and removes everything that was added to the host."""
        self._programs.close()
