# SPDX-License-Identifier: GPL-2.0-only
"""The rows that are held: columns in chunks, the oldest chunk gives way.

Rows are numbered as they come, and a number is never used again.  One thread
appends; others may read at the same time: what they see is never changed, and
`end` is raised when a row is whole.  Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.row import Row
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.store.names import Names
from ipttrace.trace.store.schema import SCHEMA, STEPS, Columns
from ipttrace.trace.store.unfold import unfold

_CHUNK_ROWS: Final = 1 << 16
_ALIGN: Final = 64
# Memory for steps is bounded too: this many a row on average.
_STEPS_PER_ROW: Final = 16


def _columns(rows: int) -> Columns:
    """Room for all columns in one block: nothing left between them when it goes."""
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
        self.ends = np.zeros(rows, np.uint32)  # of each row's path in steps
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
    """A stretch of rows: views of the columns, not to be written to.

    Row i of the part has sequence number `first` + i; its steps are
    ``steps[name][begins[i]:ends[i]]``.
    """

    first: int
    columns: Columns
    begins: Array
    ends: Array
    steps: Columns

    def __len__(self) -> int:
        return len(self.ends)


class Store:
    """Up to `capacity` rows; beyond that the oldest leave, a chunk at a time."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        if capacity < 1:
            raise ValueError(f"a store of {capacity} rows")
        self.capacity = capacity
        self.names = Names()
        self.rulesets: dict[int, Rulesets] = {}  # by host: where rows get their rules' texts
        self._chunk_rows = max(1, min(_CHUNK_ROWS, capacity // 16))
        # Replaced, never changed, so that a reader's copy stays whole.
        self._chunks: tuple[_Chunk, ...] = ()
        self._end = 0

    @property
    def first(self) -> int:
        """The oldest row that is held."""
        chunks = self._chunks
        return chunks[0].first if chunks else self._end

    @property
    def end(self) -> int:
        """One past the newest row."""
        return self._end

    def __len__(self) -> int:
        return self._end - self.first

    @property
    def newest(self) -> int:
        """The time of the newest row, ns since the epoch; 0 when there is none."""
        chunks = self._chunks
        if not chunks or not chunks[-1].count:
            return 0
        return int(chunks[-1].columns["time"][chunks[-1].count - 1])

    def time(self, seq: int) -> int:
        """The time of a row, ns since the epoch; 0 where it is not held."""
        for part in self.parts(seq, seq + 1):
            return int(part.columns["time"][0])
        return 0

    def at(self, time: int) -> int:
        """The first held row that came at `time` or later, ns since the epoch; `end` if none.

        Rows stand in the order in which their calls ended, which is that of
        time but for moments.
        """
        for chunk in self._chunks:
            times = chunk.columns["time"][: chunk.count]
            if chunk.count and int(times.max()) >= time:
                return min(chunk.first + int(np.argmax(times >= time)), self._end)
        return self._end

    def append(self, columns: Columns, ends: Array, steps: Columns) -> int:
        """Add rows: all columns of SCHEMA, shape (n, …), and their paths.

        `ends` (n,): where the path of each row ends in `steps`, which begins
        where the one before ended.  Returns n.
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

    def _portion(self, chunk: _Chunk, ends: Array, done: int) -> int:
        """How many rows from `done` on fit into the chunk; at least one."""
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
        """The held rows of this range, a stretch at a time."""
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
            yield Part(chunk.first + a, columns, begins, ends, dict(chunk.steps))

    def column(self, name: str, first: int | None = None, end: int | None = None) -> Array:
        """One column of the held rows of this range; a copy.  Raises KeyError."""
        dtype, shape = SCHEMA[name]
        held = [part.columns[name] for part in self.parts(first, end)]
        return np.concatenate(held) if held else np.zeros((0, *shape), dtype)

    def row(self, seq: int) -> Row:
        """Row `seq`.  Raises IndexError when it is not, or no longer, held."""
        rows = self.rows((seq,))
        if not rows:
            raise IndexError(f"row {seq} is not held: rows {self.first} to {self.end - 1} are")
        return rows[0]

    def rows(self, seqs: Sequence[int] | Array) -> list[Row]:
        """The rows of these sequence numbers, in their order.

        Those that are not, or no longer, held are left out: Row.index tells.
        """
        wanted = np.asarray(seqs, np.int64)
        chunks, end = self._chunks, self._end
        if not chunks:
            return []
        wanted = wanted[(wanted >= chunks[0].first) & (wanted < end)]
        firsts = [chunk.first for chunk in chunks]
        found: list[Row] = []
        at = 0
        while at < len(wanted):
            which = bisect_right(firsts, int(wanted[at])) - 1
            chunk = chunks[which]
            until = firsts[which + 1] if which + 1 < len(chunks) else end
            inside = (wanted[at:] >= chunk.first) & (wanted[at:] < until)
            some = len(inside) if inside.all() else int(np.argmin(inside))
            found += unfold(
                wanted[at : at + some],
                chunk.first,
                chunk.columns,
                chunk.ends,
                chunk.steps,
                self.names,
                self.rulesets,
            )
            at += some
        return found

    def raw(self, seq: int) -> dict[str, Array]:
        """All columns of a held row, each of shape () or (k,).  Raises KeyError."""
        for part in self.parts(seq, seq + 1):
            return {name: column[0] for name, column in part.columns.items()}
        raise KeyError(seq)
