# SPDX-License-Identifier: GPL-2.0-only
"""The stations of a stream, joined to its calls: rows of their own, or what completes a call's.

A drop that a rule caused completes the rule's row and makes none of its own.  Each station is
counted once, in `rows` or in `joined`.  Must not do I/O or loop over records in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array, join, pick
from ipttrace.trace.calls import Calls
from ipttrace.trace.drops.columns import Rows, as_calls, complete, merged, picked
from ipttrace.trace.drops.facts import BY_NETFILTER, TRACED, facts_of, note_calls
from ipttrace.trace.drops.joining import FRESH, NOBODY, Joiner
from ipttrace.trace.drops.places import Places
from ipttrace.trace.drops.where import is_netfilter
from ipttrace.trace.store import STATION_COLUMNS, Columns, Store

_LATE_NS: Final = 20_000_000  # by which a call's records may come after a later station's
_MOST_WAITING: Final = 1 << 14
_CALL: Final = np.uint64((1 << 56) - 1)  # a journey's number without the host's

Fill = Callable[[Calls], Rows]


class Stations:
    """Joins the stations of one stream to its calls, batch by batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = Places(store.names, store.asides)
        self._joiner = Joiner()
        self._inbox: list[Array] = []
        self._waiting: Array | None = None  # drops of rules whose calls have not come yet
        self._newest = 0  # time of the newest call, ns
        self.size = 0  # bytes of records that wait
        self.active = False  # whether there have been stations
        self.rows = 0
        self.joined = 0  # stations that completed the row of a rule

    def learn(self, frame: Mapping[str, Any]) -> None:
        """Adds a PLACES frame.  Raises StreamError."""
        self._places.learn(frame)

    def add(self, stations: Array) -> None:
        """Adds records of record.STATION_DTYPE, (n,), for the next call of `append`."""
        if len(stations):
            self.active = True
            self._inbox.append(stations)
            self.size += stations.nbytes

    def append(self, calls: Calls | None, fill: Fill, *, complete_batch: bool = False) -> int:
        """Appends calls, and the stations so far, to the store; returns the number of rows.

        `fill`: makes the columns of calls; `complete_batch`: no call will come that belongs
        to these stations.
        """
        parts = [*([] if self._waiting is None else [self._waiting]), *self._inbox]
        self._inbox, self._waiting, self.size = [], None, 0
        stations = join(parts, record.STATION_DTYPE) if parts else None
        if stations is None and calls is None:
            return 0
        if stations is None:
            stations = np.zeros(0, record.STATION_DTYPE)
        calls = as_calls(stations[:0]) if calls is None else calls
        stations = pick(stations, np.argsort(stations["time"], kind="stable"))
        rows, own = fill(calls), fill(as_calls(stations))
        complete(own[0], stations, self._places, self._store.asides)
        both = self._of_calls(calls, rows[0]), self._of_stations(stations, own[0])
        facts = np.concatenate(both)
        return self._append(rows, own, facts, stations, complete_batch)

    def _append(
        self, rows: Rows, own: Rows, facts: Array, stations: Array, complete_batch: bool
    ) -> int:
        count = len(rows[1])
        known = np.flatnonzero(facts["skb"] != 0)  # netlink's records have none
        joined = self._joiner.join(facts[known])
        journeys, causes = facts["journey"], np.full(len(facts), NOBODY, np.int64)
        journeys[known] = joined.journeys
        # A fact among those known is another one among all.
        fresh = joined.causes <= FRESH
        of_all = FRESH - known[np.where(fresh, FRESH - joined.causes, 0)]
        causes[known] = np.where(fresh, of_all, joined.causes)
        causes = causes[count:]
        host = own[0]["journey"] & ~_CALL
        own[0]["journey"] = journeys[count:] | host
        self._complete(rows, own, causes)
        waits = self._late(facts[count:], complete_batch) & (causes == NOBODY)
        if waits.any():
            self._waiting = pick(stations, waits)
            self.size = int(self._waiting.nbytes)
        kept = np.flatnonzero((causes == NOBODY) & ~waits)
        self.joined += int(np.count_nonzero(causes != NOBODY))
        self.rows += len(kept)
        end = self._store.end
        both, order = merged(rows, picked(own, kept))
        new = self._store.append(*both) if len(order) else 0
        at = np.empty(len(order), np.int64)
        at[order] = end + np.arange(len(order))
        seqs = np.full(len(facts), NOBODY, np.int64)
        seqs[:count] = at[:count]
        seqs[count + kept] = at[count:]
        self._joiner.number(seqs[known])
        if joined.moved.size:
            host = both[0]["journey"][:1] & ~_CALL
            self._store.rejoin(joined.moved, joined.to | (host if host.size else np.uint64(0)))
        return new

    def _complete(self, rows: Rows, own: Rows, causes: Array) -> None:
        """Adds to the rows of rules what is known of the drops that they caused."""
        here, before = np.flatnonzero(causes <= FRESH), np.flatnonzero(causes >= 0)
        columns = {name: own[0][name] for name in STATION_COLUMNS[1:]}
        for name, column in columns.items():
            rows[0][name][FRESH - causes[here]] = column[here]
        if before.size:
            columns = {name: column[before] for name, column in columns.items()}
            self._store.complete(causes[before], columns)

    def _of_calls(self, calls: Calls, columns: Columns) -> Array:
        entries, exits = calls.entries, calls.exits
        facts = facts_of(columns, entries["time"], exits["time"], calls.journeys)
        note_calls(facts, columns)
        if len(entries):
            self._newest = max(self._newest, int(entries["time"].max()))
        return facts

    def _of_stations(self, stations: Array, columns: Columns) -> Array:
        columns = {**columns, "skb": stations["skb"]}
        facts = facts_of(columns, stations["time"], stations["time"], stations["call"])
        traced = stations["station_flags"] & record.STATION_F_TRACED != 0
        facts["is"][traced] |= TRACED
        dropped = np.flatnonzero(stations["what"] == record.DROPPED)
        pairs = columns["reason"][dropped].astype(np.uint64) << np.uint64(32)
        kinds, of = np.unique(pairs | columns["place"][dropped], return_inverse=True)
        text = self._store.names.text
        refused = [
            is_netfilter(text(pair >> 32), text(pair & 0xFFFFFFFF)) for pair in kinds.tolist()
        ]
        facts["is"][dropped[np.array(refused, bool)[of]]] |= BY_NETFILTER
        return facts

    def _late(self, facts: Array, complete_batch: bool) -> Array:
        """Returns bool (n,): may the call of a rule that dropped this still be on its way?"""
        if complete_batch or not self._newest or len(facts) > _MOST_WAITING:
            return np.zeros(len(facts), bool)
        late: Array = facts["is"] & BY_NETFILTER != 0
        late &= facts["time"] + np.uint64(_LATE_NS) > self._newest
        return late
