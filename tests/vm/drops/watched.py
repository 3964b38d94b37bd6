# SPDX-License-Identifier: GPL-2.0-only
"""Drops and stations as the agent gets them, without an engine, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ipttrace.capture.drops.source import Drops
from ipttrace.capture.filter import pcap
from ipttrace.stream import record
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import StationBooks
from ipttrace.trace.drops import explain
from tests.data.records import MONO
from tests.data.stations import WALL, begun, frame
from tests.data.stations import records as frame_of_records
from tests.vm.patience import PATIENCE


@dataclass(frozen=True)
class Seen:
    """A record with its numbers replaced by what they mean; `place` without the offset."""

    what: str
    reason: str
    place: str
    stack: tuple[str, ...]
    fields: np.void

    @property
    def devices(self) -> tuple[str, str]:
        return self.fields["in"].decode(), self.fields["out"].decode()

    @property
    def netns(self) -> int:
        return int(self.fields["netns"])


class Watched:
    """All that was recorded, read on demand."""

    def __init__(self, expr: str, netns: int = 0, *, stations: bool = False) -> None:
        self.drops = Drops(pcap.compile(expr), netns, stations=stations)
        self.seen: list[Seen] = []
        self._places: dict[str, str] = {}
        self._stacks: dict[str, list[str]] = {}
        self._reasons: dict[str, str] = {}
        self._trace = begun({})

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.drops.close()

    def read(self) -> list[Seen]:
        """What has come since the last call."""
        self.drops.read()
        records, new = self.drops.take(1 << 63, None)
        if new is not None:
            self._places |= new.get("places", {})
            self._stacks |= new.get("stacks", {})
            self._reasons |= new.get("reasons", {})
            self._trace.feed(frame(Kind.PLACES, new))
        self._trace.feed(frame_of_records(Kind.STATION, records))
        found = [
            Seen(
                record.STATIONS[one["what"]],
                self._reasons.get(str(one["reason"]), ""),
                self._places.get(str(one["place"]), "").partition("+")[0],
                tuple(self._stacks.get(str(one["stack"]), ())),
                one,
            )
            for one in records
        ]
        self.seen += found
        return found

    def sentence(self, one: Seen) -> str:
        """What a user reads about it."""
        store, time = self._trace.store, int(one.fields["time"]) - MONO + WALL
        rows = store.rows(range(store.first, store.end))
        return explain(next(row for row in rows if row.time == time))

    def during(
        self, act: Callable[[], object], wanted: Callable[[Seen], bool], count: int
    ) -> list[Seen]:
        """The wanted records of what `act` causes: waits until there are `count`."""
        self.read()
        act()
        found: list[Seen] = []
        deadline = time.monotonic() + PATIENCE
        everything: list[Seen] = []
        while len(found) < count:
            assert time.monotonic() < deadline, [
                (one.what, one.reason, one.place) for one in everything
            ]
            new = self.read()
            everything += new
            found += filter(wanted, new)
            time.sleep(0.02)
        return found

    def settle(self, seconds: float = 0.5) -> list[Seen]:
        """What comes until nothing has come for so long."""
        found: list[Seen] = []
        quiet = time.monotonic()
        while time.monotonic() < quiet + seconds:
            if new := self.read():
                found += new
                quiet = time.monotonic()
            time.sleep(0.02)
        return found

    def balanced(self) -> StationBooks:
        """The books, once they balance."""
        self.read()
        books = self.drops.books()
        assert books["due"] == books["delivered"] + books["lost"] + books["missed"], books
        return books
