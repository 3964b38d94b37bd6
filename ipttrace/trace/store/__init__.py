# SPDX-License-Identifier: GPL-2.0-only
"""The rows that are held: columns in chunks; the oldest chunks are evicted.

schema  the columns, and how calls become columns
names   chain, table, device and process names as ids
asides  kernel stacks, routes and neighbours of stations by number
unfold  columns to rows
picked  some rows, by columns or as rows

Rows have sequence numbers in order of arrival, which are never reused.  One thread
appends while others read: `end` grows only when a row is complete, and only what becomes
known later is modified afterwards (see `complete`, `rejoin` and `own`).  Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.calls import Aliases
from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.row import Row
from ipttrace.trace.rules import Rulesets
from ipttrace.trace.store.asides import ASIDE, Asides
from ipttrace.trace.store.names import FullNames, Names
from ipttrace.trace.store.picked import Picked
from ipttrace.trace.store.schema import (
    ENGINES,
    NETLINK,
    OWNER_COLUMNS,
    SCHEMA,
    STATION_COLUMNS,
    STEPS,
    Columns,
    fill,
    traces_nftables,
)
from ipttrace.trace.store.unfold import DIRECT, address
from ipttrace.trace.tables import KernelTables

__all__ = [
    "ASIDE",
    "DIRECT",
    "ENGINES",
    "NETLINK",
    "OWNER_COLUMNS",
    "STATION_COLUMNS",
    "Asides",
    "Columns",
    "FullNames",
    "Names",
    "Part",
    "Picked",
    "Store",
    "address",
    "fill",
    "traces_nftables",
]

_CHUNK_ROWS: Final = 1 << 16
_ALIGN: Final = 64
# Bounds the memory of steps: so many per row on average.
_STEPS_PER_ROW: Final = 16


def _columns(rows: int) -> Columns:
    """Returns room for all columns in one block, which leaves no fragments when freed."""
    sizes = {
        name: -(-np.dtype(dtype).itemsize * int(np.prod(shape)) * rows // _ALIGN) * _ALIGN
        for name, (dtype, shape) in SCHEMA.items()
    }
    block = np.empty(sum(sizes.values()), np.uint8)
    columns: Columns = {}
    at = 0
    for name, (dtype, shape) in SCHEMA.items():
        columns[name] = np.ndarray((rows, *shape), dtype, block.data, at)
        at += sizes[name]
    return columns


class _Chunk:
    def __init__(self, first: int, rows: int) -> None:
        self.first = first
        self.room = rows
        self.count = 0
        self.columns = _columns(rows)
        self.ends = np.zeros(rows, np.uint32)  # of each row's path in `steps`
        self.steps: Columns = {name: np.empty(4 * rows, dtype) for name, dtype in STEPS.items()}
        self.step_count = 0

    @property
    def full(self) -> bool:
        return self.count == self.room or self.step_count >= _STEPS_PER_ROW * self.room

    def append(self, columns: Columns, ends: Array, steps: Columns, rows: slice) -> None:
        count = rows.stop - rows.start
        for name, column in self.columns.items():
            column[self.count : self.count + count] = columns[name][rows]
        start = int(ends[rows.start - 1]) if rows.start else 0
        stop = int(ends[rows.stop - 1])
        need = self.step_count + stop - start
        for name, held in self.steps.items():
            if need > len(held):
                grown = np.empty(need + need // 2, held.dtype)
                grown[: self.step_count] = held[: self.step_count]
                self.steps[name] = held = grown
            held[self.step_count : need] = steps[name][start:stop]
        self.ends[self.count : self.count + count] = ends[rows] - start + self.step_count
        self.step_count = need
        self.count += count


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows as read-only views of the columns.

    Row i has sequence number `first` + i; its steps are
    ``steps[name][begins[i]:ends[i]]``.
    """

    first: int
    columns: Columns
    begins: Array
    ends: Array
    steps: Columns
    aliases: Aliases

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def flows(self) -> Array:
        """The flow of each row, uint64 (n,), as is known now: the column has older numbers."""
        return self.aliases.roots(self.columns["flow"], self.columns["time"])


class Store:
    """Up to `capacity` rows; beyond that the oldest are evicted, a chunk at a time."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        if capacity < 1:
            raise ValueError(f"a store needs room for at least one row, not {capacity}")
        self.capacity = capacity
        self.names = Names()
        self.asides = Asides(self.names)
        self.aliases = Aliases()  # of flows
        self.rulesets: dict[int, Rulesets] = {}  # by host; the source of rule texts
        self.neighbours: dict[int, Neighbours] = {}  # by host; as of now, not of a row's time
        self.kernel_tables: dict[int, KernelTables] = {}  # by host
        self._chunk_rows = max(1, min(_CHUNK_ROWS, capacity // 16))
        # Replaced, never modified, so that readers need no lock.
        self._chunks: tuple[_Chunk, ...] = ()
        self._end = 0

    @property
    def first(self) -> int:
        """The sequence number of the oldest row that is held."""
        chunks = self._chunks
        return chunks[0].first if chunks else self._end

    @property
    def end(self) -> int:
        """One past the sequence number of the newest row."""
        return self._end

    def __len__(self) -> int:
        return self._end - self.first

    @property
    def newest(self) -> int:
        """The time of the newest row, ns since the epoch; 0 if there is none."""
        chunks = self._chunks
        if not chunks or not chunks[-1].count:
            return 0
        return int(chunks[-1].columns["time"][chunks[-1].count - 1])

    def time(self, seq: int) -> int:
        """Returns the time of a row, ns since the epoch; 0 if it is not held."""
        for part in self.parts(seq, seq + 1):
            return int(part.columns["time"][0])
        return 0

    def at(self, time: int) -> int:
        """Returns the first held row at `time` (ns since the epoch) or later; `end` if none.

        Rows are in the order in which their calls ended, which is almost that of time.
        """
        for chunk in self._chunks:
            times = chunk.columns["time"][: chunk.count]
            if chunk.count and int(times.max()) >= time:
                return min(chunk.first + int(np.argmax(times >= time)), self._end)
        return self._end

    def append(self, columns: Columns, ends: Array, steps: Columns) -> int:
        """Adds n rows: all columns of SCHEMA, shape (n, …), and their paths.  Returns n.

        `ends` (n,): the end of each row's path in `steps`; it begins at the end of the
        path before.
        """
        count = len(ends)
        done = 0
        while done < count:
            if not self._chunks or self._chunks[-1].full:
                self._open()
            chunk = self._chunks[-1]
            some = self._portion(chunk, ends, done)
            chunk.append(columns, ends, steps, slice(done, done + some))
            done += some
            self._end += some
        return count

    def complete(self, seqs: Array, columns: Columns) -> None:
        """Adds to held rows, int64 (n,), what their records did not contain.

        `columns`: reason, place and aside, shape (n,).
        """
        self._modify(seqs, columns, ("reason", "place", "aside"))

    def rejoin(self, seqs: Array, journeys: Array) -> None:
        """Gives rows, int64 (n,), the journeys, uint64 (n,), to which they turned out to belong."""
        self._modify(seqs, {"journey": journeys}, ("journey",))

    def own(self, seqs: Array, columns: Columns) -> None:
        """Gives rows, int64 (n,), the owners that became known: OWNER_COLUMNS, shape (n,)."""
        self._modify(seqs, columns, OWNER_COLUMNS)

    def _modify(self, seqs: Array, columns: Columns, names: Sequence[str]) -> None:
        for chunk in self._chunks:
            mine = (seqs >= chunk.first) & (seqs < chunk.first + chunk.count)
            if mine.any():
                for name in names:
                    chunk.columns[name][seqs[mine] - chunk.first] = columns[name][mine]

    def _portion(self, chunk: _Chunk, ends: Array, done: int) -> int:
        """Returns the number of rows from `done` on that fit the chunk; at least one."""
        most = min(chunk.room - chunk.count, len(ends) - done)
        start = int(ends[done - 1]) if done else 0
        room = _STEPS_PER_ROW * chunk.room - chunk.step_count
        fit = int(np.searchsorted(ends[done : done + most], start + room, "right"))
        return max(fit, 1)

    def _open(self) -> None:
        chunks = self._chunks
        while chunks and self._end - chunks[0].first + self._chunk_rows > self.capacity:
            chunks = chunks[1:]
        most = _STEPS_PER_ROW * self.capacity
        while len(chunks) > 1 and sum(chunk.step_count for chunk in chunks) > most:
            chunks = chunks[1:]
        self._chunks = (*chunks, _Chunk(self._end, self._chunk_rows))

    def parts(self, first: int | None = None, end: int | None = None) -> Iterator[Part]:
        """Yields the held rows of this range, chunk by chunk."""
        chunks, last = self._chunks, self._end
        last = last if end is None else min(end, last)
        for chunk in chunks:
            a = max(0 if first is None else first - chunk.first, 0)
            b = min(last - chunk.first, chunk.room)
            if a >= b or a >= chunk.count:
                continue
            b = min(b, chunk.count)
            ends = chunk.ends[a:b]
            begins = np.empty_like(ends)
            begins[0] = chunk.ends[a - 1] if a else 0
            begins[1:] = ends[:-1]
            columns = {name: column[a:b] for name, column in chunk.columns.items()}
            yield Part(chunk.first + a, columns, begins, ends, dict(chunk.steps), self.aliases)

    def column(self, name: str, first: int | None = None, end: int | None = None) -> Array:
        """Returns one column of the held rows of this range; a copy.  Raises KeyError."""
        dtype, shape = SCHEMA[name]
        held = [part.columns[name] for part in self.parts(first, end)]
        return np.concatenate(held) if held else np.zeros((0, *shape), dtype)

    def row(self, seq: int) -> Row:
        """Returns row `seq`.  Raises IndexError if it is not held."""
        rows = self.rows((seq,))
        if not rows:
            raise IndexError(f"row {seq} is not held; rows {self.first} to {self.end - 1} are")
        return rows[0]

    def rows(self, seqs: Sequence[int] | Array) -> list[Row]:
        """Returns the rows of these sequence numbers, in this order.

        Rows that are not held are omitted: see Row.index.
        """
        return [row for picked in self.picked(seqs) for row in picked.rows()]

    def picked(self, seqs: Sequence[int] | Array) -> Iterator[Picked]:
        """Yields the rows of these sequence numbers, in this order, chunk by chunk.

        Rows that are not held are omitted.
        """
        wanted = np.asarray(seqs, np.int64)
        chunks, end = self._chunks, self._end
        if not chunks:
            return
        wanted = wanted[(wanted >= chunks[0].first) & (wanted < end)]
        firsts = [chunk.first for chunk in chunks]
        at = 0
        while at < len(wanted):
            which = bisect_right(firsts, int(wanted[at])) - 1
            chunk = chunks[which]
            until = firsts[which + 1] if which + 1 < len(chunks) else end
            inside = (wanted[at:] >= chunk.first) & (wanted[at:] < until)
            some = len(inside) if inside.all() else int(np.argmin(inside))
            yield Picked(
                wanted[at : at + some],
                chunk.first,
                chunk.columns,
                chunk.ends,
                chunk.steps,
                self.names,
                self.rulesets,
                self.aliases,
                self.asides,
            )
            at += some

    def raw(self, seq: int) -> dict[str, Array]:
        """Returns all columns of a row, each () or (k,).  Raises KeyError if it is not held."""
        for part in self.parts(seq, seq + 1):
            return {name: column[0] for name, column in part.columns.items()}
        raise KeyError(seq)
