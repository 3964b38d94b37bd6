# SPDX-License-Identifier: GPL-2.0-only
"""An engine, and the drops beside it, armed and disarmed together.

Must not write the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.stream.messages import Books, Places
from ipttrace.stream.record import EXIT, Records

if TYPE_CHECKING:
    from ipttrace.capture.drops.source import Drops


class Sources:
    """Both; `engine` alone if drops are not recorded."""

    def __init__(
        self,
        engine: Engine,
        drops: Drops | None = None,
        no_drops: str = "switched off",
        *,
        raw_addresses: bool = False,
    ) -> None:
        """`no_drops`: why there are no `drops`; `raw_addresses`: they show the kernel's."""
        self.engine = engine
        self._drops = drops
        self._no_drops = no_drops
        self._raw_addresses = raw_addresses
        self.armed = True
        self._exits = 0

    @property
    def no_drops(self) -> str | None:
        """Why drops are not recorded; None: they are."""
        return self._no_drops if self._drops is None else None

    def arm(self) -> None:
        """Raises CaptureError, with nothing armed."""
        self.engine.arm()
        if self._drops is not None:
            try:
                self._drops.arm()
            except BaseException:
                self.engine.disarm()
                raise
        self.armed = True

    def disarm(self) -> None:
        """No record is written after this.  Raises CaptureError."""
        try:
            self.engine.disarm()
        finally:
            if self._drops is not None:
                self._drops.disarm()
        self.armed = False

    def filter(self, program: bytes) -> None:
        """Replaces the filter of both.  Raises CaptureError, with nothing changed."""
        self.engine.filter(program)
        if self._drops is not None:
            self._drops.filter(program)

    def show_stations(self, on: bool) -> None:
        """Starts or ends the recording of stations.  Raises CaptureError."""
        if self._drops is None:
            raise CaptureError(f"stations cannot be recorded: {self._no_drops}")
        self._drops.show_stations(on)

    def take(self) -> list[Records]:
        """The engine's records that have arrived."""
        if self._drops is not None:
            self._drops.read()  # first: the engine has then all records of the same times
        taken = self.engine.take()
        self._exits += sum(map(len, taken[EXIT:]))
        return taken

    def take_stations(self, before: int | None = None) -> tuple[Records, Places | None] | None:
        """Stations that may follow the engine's last records, and what their numbers mean.

        `before`: all before this time instead, CLOCK_MONOTONIC, ns.  None: there are none.
        """
        if self._drops is None:
            return None
        addresses = None if self._raw_addresses else self.engine.addresses
        until = self.engine.before if before is None else before
        stations, places = self._drops.take(until, addresses)
        return (stations, places) if len(stations) else None

    def rows(self) -> tuple[int, int]:
        """How many rows have arrived, stations among them, and how many were lost."""
        read, lost = (0, 0) if self._drops is None else self._drops.counts()
        return self._exits + read, self.engine.lost_exits() + lost

    def counted_rows(self) -> tuple[int, int]:
        """As `rows`, with what has been written and not yet taken.  Raises CaptureError."""
        books = self.books()
        lost, due = books["lost"][EXIT], books["due"][EXIT]
        if "stations" in books:
            stations = books["stations"]
            lost += stations["lost"]
            due += stations["due"] - stations["missed"]
        return due - lost, lost

    def books(self) -> Books:
        """The counters of this moment."""
        books = self.engine.books()
        if self._drops is not None:
            books["stations"] = self._drops.books()
        return books

    def close(self) -> None:
        """Removes everything that was added to the host."""
        try:
            if self._drops is not None:
                self._drops.close()
        finally:
            self.engine.close()
