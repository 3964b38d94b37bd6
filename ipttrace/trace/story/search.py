# SPDX-License-Identifier: GPL-2.0-only
"""Finds the rows of a journey, and of the calls around and inside its calls.

Searches a bounded number of rows.  Must not do I/O, and must not loop over rows in
Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.netfilter import DROP, STOLEN
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.row import Row
from ipttrace.trace.store import Part, Store

MOST_NESTED: Final = 4  # calls inside calls

_FIRST_STRETCH: Final = 1 << 10  # rows; each further stretch is twice as long
_NEARBY: Final = 1 << 12  # rows around a call in which the calls inside it are looked for
CALL: Final = (1 << 56) - 1  # a journey's number: the host above its first call
_LAST_VERDICTS: Final = (DROP, STOLEN)  # the skb is gone afterwards


@dataclass(frozen=True, slots=True)
class JourneyRows:
    """Sequence numbers of a journey's rows, int64, ascending."""

    seqs: Array
    ended: bool  # its last row was found
    cut: bool  # later rows were found and left out


def first_call(journey: int) -> int:
    """The call that a journey is named after."""
    return journey & CALL


def find_journey(
    store: Store, seq: int, journey: int, call: int, reach: int, limit: int
) -> JourneyRows:
    """The `limit` rows of the journey nearest to row `seq`, whose call is `call`."""
    first, end = max(store.first, seq - reach), min(store.end, seq + 1 + reach)
    began = call == first_call(journey)
    ended = False
    backward: list[Array] = []
    count = 0
    for a, b in _stretches(seq, first):
        # A journey has no rows before the call that it is named after.
        if began or count >= limit:
            break
        found, began, _ = _rows_in(store, journey, a, b)
        backward.append(found)
        count += len(found)
    forward: list[Array] = []
    count = 0
    for a, b in _stretches(seq, end):
        if ended or count > limit:
            break
        found, _, ended = _rows_in(store, journey, a, b)
        forward.append(found)
        count += len(found)
    seqs = np.concatenate([*reversed(backward), *forward])
    near = np.sort(np.argsort(np.abs(seqs - seq), kind="stable")[:limit])
    cut = bool(near.size) and int(near[-1]) < len(seqs) - 1
    return JourneyRows(seqs[near], ended, cut)


def _stretches(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) of rows from `start` towards `stop`, each twice as long as the last."""
    at, length = start, _FIRST_STRETCH
    while at != stop:
        then = min(at + length, stop) if stop > start else max(at - length, stop)
        yield min(at, then), max(at, then)
        at, length = then, 2 * length


def _rows_in(store: Store, journey: int, first: int, end: int) -> tuple[Array, bool, bool]:
    """The journey's rows from `first` to `end`; whether it begins, and ends, among them."""
    seqs: list[Array] = []
    began = ended = False
    for part in store.parts(first, end):
        at = np.flatnonzero(part.columns["journey"] == np.uint64(journey))
        if at.size:
            seqs.append(at.astype(np.int64) + part.first)
            began |= bool((part.columns["call"][at] == np.uint64(first_call(journey))).any())
            verdicts = part.columns["verdict"][at] & np.uint32(0xFF)
            ended |= bool(np.isin(verdicts, _LAST_VERDICTS).any())
            ended |= bool((part.columns["what"][at] == record.DROPPED).any())
    return (np.concatenate(seqs) if seqs else np.zeros(0, np.int64)), began, ended


def find_nested(store: Store, rows: list[Row], limit: int) -> Array:
    """Sequence numbers, ascending, of the calls inside and around the rows' calls."""
    seqs = [each.index for each in rows]
    parts = list(store.parts(min(seqs) - _NEARBY, max(seqs) + 1 + _NEARBY))
    host = rows[0].host
    calls = {each.call for each in rows}
    found: dict[int, int] = {}  # call to sequence number
    # Inwards: calls whose parent has been found.
    latest = calls
    for _ in range(MOST_NESTED):
        inner: dict[int, int] = {}
        for part in parts:
            inner.update(_calls_at(part, _indices(part, "parent", latest, host)[:limit]))
        latest = inner.keys() - calls
        if not latest:
            break
        calls |= latest
        found.update({call: inner[call] for call in latest})
    # Outwards: the parents.
    wanted = {each.parent for each in rows if each.parent} - calls
    for _ in range(MOST_NESTED):
        if not wanted:
            break
        calls |= wanted
        outer: set[int] = set()
        for part in parts:
            at = _indices(part, "call", wanted, host)[:limit]
            found.update(_calls_at(part, at))
            outer.update(part.columns["parent"][at].tolist())
        wanted = outer - calls - {0}
    return np.sort(np.array(list(found.values())[:limit], np.int64))


def _indices(part: Part, column: str, values: set[int], host: int) -> Array:
    """Indices in the part of the host's rows whose `column` holds one of `values`."""
    wanted = np.array(list(values), np.uint64)
    hit: Array = np.isin(part.columns[column], wanted)
    return np.flatnonzero(hit & (part.columns["host"] == host))


def _calls_at(part: Part, at: Array) -> Iterator[tuple[int, int]]:
    """Call and sequence number of the part's rows `at`."""
    return zip(part.columns["call"][at].tolist(), (at + part.first).tolist(), strict=True)
