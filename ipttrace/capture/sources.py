# SPDX-License-Identifier: GPL-2.0-only
"""An engine, and drops and sockets beside it, armed and disarmed together.

Must not write the stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.stream.messages import Books, Places, Process
from ipttrace.stream.record import EXIT, Records

if TYPE_CHECKING:
    from ipttrace.capture.drops.source import Drops
    from ipttrace.capture.sockets.source import Sockets


class Sources:
    """All of them; `engine` alone if nothing else is recorded."""

    def __init__(
        self,
        engine: Engine,
        drops: Drops | None = None,
        no_drops: str = "switched off",
        *,
        sockets: Sockets | None = None,
        make_sockets: Callable[[bytes], Sockets] | None = None,
        program: bytes = b"",
        raw_addresses: bool = False,
    ) -> None:
        """`no_drops`: why there are no `drops`; `raw_addresses`: all show the kernel's.

        `make_sockets`: makes `sockets` that are asked for later, armed, with a filter;
        `program`: the filter of all.
        """
        self.engine = engine
        self._make_sockets = make_sockets
        self._program = program
        self._drops = drops
        self._sockets = sockets
        self._beside: list[Drops | Sockets] = [one for one in (drops, sockets) if one is not None]
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
        try:
            for one in self._beside:
                one.arm()
        except BaseException:
            self._disarm()
            raise
        self.armed = True

    def disarm(self) -> None:
        """No record is written after this.  Raises CaptureError."""
        self._disarm()
        self.armed = False

    def _disarm(self) -> None:
        try:
            self.engine.disarm()
        finally:
            for one in self._beside:
                one.disarm()

    def filter(self, program: bytes) -> None:
        """Replaces the filter of all.  Raises CaptureError, with nothing changed."""
        self.engine.filter(program)
        self._program = program
        for one in self._beside:
            one.filter(program)

    def show_stations(self, on: bool) -> None:
        """Starts or ends the recording of stations.  Raises CaptureError."""
        if self._drops is None:
            raise CaptureError(f"stations cannot be recorded: {self._no_drops}")
        self._drops.show_stations(on)

    def show_sockets(self, on: bool) -> None:
        """Starts or ends the recording of stages of sockets.  Raises CaptureError."""
        if self._sockets is not None:
            self._sockets.show(on)
        elif on:
            assert self._make_sockets is not None
            try:
                made = self._make_sockets(self._program)
            except CaptureError as error:
                raise CaptureError(f"sockets cannot be recorded: {error}") from error
            if not self.armed:
                made.disarm()
            if made.warning:
                self.engine.notes.append(("warn", made.warning))
            self._sockets = made
            self._beside.append(made)

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

    @property
    def has_sockets(self) -> bool:
        """Whether stages of sockets are recorded."""
        return self._sockets is not None

    def take_sockets(self) -> tuple[Records, dict[str, Process]] | None:
        """Stages of sockets, and the processes that are new, by number.  None: there are none."""
        if self._sockets is None:
            return None
        stages, processes = self._sockets.take(
            None if self._raw_addresses else self.engine.addresses
        )
        return (stages, processes) if len(stages) else None

    def rows(self) -> tuple[int, int]:
        """How many rows have arrived, stations and stages among them, and how many were lost."""
        counts = [one.counts() for one in self._beside]
        read, lost = (sum(each) for each in zip((0, 0), *counts, strict=True))
        return self._exits + read, self.engine.lost_exits() + lost

    def counted_rows(self) -> tuple[int, int]:
        """As `rows`, with what has been written and not yet taken.  Raises CaptureError."""
        books = self.books()
        lost, due = books["lost"][EXIT], books["due"][EXIT]
        for counted in (books.get("stations"), books.get("sockets")):
            if counted is not None:
                lost += counted["lost"]
                due += counted["due"] - counted["missed"]
        return due - lost, lost

    def books(self) -> Books:
        """The counters of this moment."""
        books = self.engine.books()
        if self._drops is not None:
            books["stations"] = self._drops.books()
        if self._sockets is not None:
            books["sockets"] = self._sockets.books()
        return books

    def close(self) -> None:
        """Removes everything that was added to the host."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.engine.close)
            for one in self._beside:
                stack.callback(one.close)
