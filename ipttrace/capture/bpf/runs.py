# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through chains and tables, as the BPF programs write them, to records.

A run crosses from the kernel in one piece: its entry, its exit and its hits (struct
ipttrace_run of bpf/run.h); if it has more hits than that holds, the first ones go ahead
of it.  Names of chains and tables are numbers in it: each is told before the first run that has
it.  No Python loop over records, except over such names and pieces.  Must not do I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.opaque import joined, picked
from ipttrace.stream.record import ENTRY_DTYPE, EXIT_DTYPE

Array = npt.NDArray[Any]

HITS: Final = 16
FOREIGN: Final = 0x01
NO_CONNTRACK: Final = 0x02
DOUBTFUL: Final = 0x04
CURSOR: Final = 0x08
TURNED: Final = 0x10

PIECE_DTYPE: Final[np.dtype[np.void]] = np.dtype([("run", "<u8"), ("began", "<u8")])
# What a run has besides its entry and its exit.
HEAD_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("generation", "<u4"),
        ("hit_count", "<u2"),
        ("flags", "u1"),
        ("later", "u1"),
        ("table", "<u8"),
        ("piece", PIECE_DTYPE),
    ]
)
RUN_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("entry", ENTRY_DTYPE), ("exit", EXIT_DTYPE), ("head", HEAD_DTYPE)]
)
HIT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("time", "<u8"),
        ("handle", "<u8"),
        ("chain", "<u8"),
        ("verdict", "<i4"),
        ("type", "u1"),
        ("reserved", "u1", (3,)),
    ]
)
NAME_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("number", "<u8"), ("table", "<u8"), ("name", "S256")]
)
FLIP_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("time", "<u8"), ("skb", "<u8"), ("original", "<u8"), ("what", "<u4"), ("reserved", "<u4")]
)
FLIPPED, COPIED, CARRIED, FREED = range(4)  # enum ipttrace_run_what
_PIECE_LENGTH: Final = PIECE_DTYPE.itemsize + HITS * HIT_DTYPE.itemsize
_EXIT_AT: Final = ENTRY_DTYPE.itemsize // 8  # words from the run's beginning
_HEAD_AT: Final = _EXIT_AT + EXIT_DTYPE.itemsize // 8
_MOST_PIECES: Final = 4096  # whose runs have not ended
_MOST_OLD: Final = 1 << 16  # names that the kernel has replaced
_PLACE: Final = 32  # of a number, from which bit on: where it is in the kernel


@dataclass(frozen=True, slots=True)
class Runs:
    """`entries`, `exits`, `heads`: of the stream, and HEAD_DTYPE, shape (n,).

    `hits`: HIT_DTYPE, those of each run one after the other; `counts`: how many each run has,
    shape (n,).  The entries and exits may be changed.
    """

    entries: Array
    exits: Array
    heads: Array
    hits: Array
    counts: Array

    @staticmethod
    def none() -> Runs:
        """No runs."""
        entries, exits, heads = (np.zeros(0, one) for one in (ENTRY_DTYPE, EXIT_DTYPE, HEAD_DTYPE))
        return Runs(entries, exits, heads, np.zeros(0, HIT_DTYPE), np.zeros(0, np.int64))

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return sum(one.nbytes for one in (self.entries, self.exits, self.heads, self.hits))

    def pick(self, which: Array) -> Runs:
        """The runs for which `which`, bool, shape (n,), is true."""
        if which.all():
            return self
        count = int(np.count_nonzero(which))
        if not count:
            return Runs.none()
        each = (self.entries, self.exits, self.heads)
        if which[:count].all():
            counts = self.counts[:count]
            entries, exits, heads = (one[:count] for one in each)
            return Runs(entries, exits, heads, self.hits[: counts.sum()], counts)
        entries, exits, heads = (picked(one, which) for one in each)
        hits = picked(self.hits, np.repeat(which, self.counts))
        return Runs(entries, exits, heads, hits, self.counts[which])

    @staticmethod
    def join(parts: list[Runs]) -> Runs:
        """All runs of `parts`, in order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Runs.none()
        return Runs(
            joined([one.entries for one in parts]),
            joined([one.exits for one in parts]),
            joined([one.heads for one in parts]),
            joined([one.hits for one in parts]),
            np.concatenate([one.counts for one in parts]),
        )


class RunNames:
    """The names of chains and tables, by the numbers that stand for them in runs."""

    def __init__(self) -> None:
        self._names: dict[int, bytes] = {}
        self._tables: dict[int, int] = {}  # handles, of the numbers that stand for tables
        self._current: dict[int, int] = {}  # the newest number, by its place in the kernel
        self._old: deque[int] = deque()

    def learn(self, number: int, name: bytes, table: int = 0) -> None:
        """Notes a name; of very many that were replaced, the oldest are forgotten.

        `table`: if it is a table's, the handle, which no other table of the namespace has.
        """
        before = self._current.get(number >> _PLACE)
        if before is not None and before != number:
            self._old.append(before)
            if len(self._old) > _MOST_OLD:
                old = self._old.popleft()
                self._names.pop(old, None)
                self._tables.pop(old, None)
        self._current[number >> _PLACE] = number
        self._names[number] = name
        if table:
            self._tables[number] = table

    def of(self, numbers: Array) -> list[bytes]:
        """The names; empty ones of numbers that are unknown."""
        return [self._names.get(number, b"") for number in numbers.tolist()]

    def handles(self, numbers: Array) -> Array:
        """The handles of the tables that they stand for, 0: unknown; uint64, shape (n,)."""
        return np.array([self._tables.get(number, 0) for number in numbers.tolist()], np.uint64)


class RunReader:
    """Makes runs of the ring's records, which must be passed in order."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], list[Array]] = {}  # by run
        self._flips: list[Array] = []
        self.names = RunNames()

    def take_flips(self) -> Array:
        """What happened to packets between their runs, and was read since the last call.

        FLIP_DTYPE, shape (n,).
        """
        found, self._flips = self._flips, []
        return np.concatenate(found) if found else np.zeros(0, FLIP_DTYPE)

    def read(self, words: Array, starts: Array, lengths: Array) -> Runs:
        """`words`, `starts`, `lengths`: as Ring.look returns them.  Copies what it keeps."""
        is_piece = lengths == _PIECE_LENGTH
        fits = (lengths - RUN_DTYPE.itemsize) % HIT_DTYPE.itemsize == 0
        fits &= lengths >= RUN_DTYPE.itemsize
        for at in starts[is_piece].tolist():
            self._keep(words[at : at + _PIECE_LENGTH // 8])
        for at in starts[lengths == NAME_DTYPE.itemsize].tolist():
            one = words[at : at + NAME_DTYPE.itemsize // 8].view(NAME_DTYPE)[0]
            self.names.learn(int(one["number"]), bytes(one["name"]), int(one["table"]))
        flips = starts[lengths == FLIP_DTYPE.itemsize]
        if len(flips):
            self._flips.append(_at(words, flips, FLIP_DTYPE, _step(flips)))
        starts, lengths = starts[fits & ~is_piece], lengths[fits & ~is_piece]
        if not len(starts):
            return Runs.none()
        counts = (lengths - RUN_DTYPE.itemsize) // HIT_DTYPE.itemsize
        begins = starts + RUN_DTYPE.itemsize // 8
        single = bool((counts == 1).all())
        if not single:
            begins = np.repeat(begins, counts)
            begins += numbered(counts) * (HIT_DTYPE.itemsize // 8)
        step = _step(starts)
        runs = Runs(
            _at(words, starts, ENTRY_DTYPE, step),
            _at(words, starts + _EXIT_AT, EXIT_DTYPE, step),
            _at(words, starts + _HEAD_AT, HEAD_DTYPE, step),
            _at(words, begins, HIT_DTYPE, step if single else 0),
            counts,
        )
        return self._completed(runs) if self._pieces else runs

    def _keep(self, words: Array) -> None:
        key = (int(words[0]), int(words[1]))
        hits = words[PIECE_DTYPE.itemsize // 8 :].copy().view(HIT_DTYPE)
        self._pieces.setdefault(key, []).append(hits)
        if len(self._pieces) > _MOST_PIECES:
            self._pieces.pop(next(iter(self._pieces)))  # its run was lost

    def _completed(self, runs: Runs) -> Runs:
        """The runs with the hits that went ahead of them."""
        longer = runs.exits["rules"] > runs.counts
        if not longer.any():
            return runs
        parts, counts = [], runs.counts.copy()
        ends = np.cumsum(runs.counts)
        done = 0
        for at in np.flatnonzero(longer).tolist():
            run, began = runs.heads["piece"][at].tolist()
            ahead = self._pieces.pop((run, began), [])
            begin = int(ends[at] - runs.counts[at])
            parts += [runs.hits[done:begin], *ahead]
            done = begin
            counts[at] += sum(map(len, ahead))
        parts.append(runs.hits[done:])
        return replace(runs, hits=joined(parts), counts=counts)


def numbered(counts: Array) -> Array:
    """0, 1, … for each of `counts`, one after the other: int64, shape (sum of counts,)."""
    if (counts == 1).all():
        return np.zeros(len(counts), np.int64)
    ends = np.cumsum(counts)
    found: Array = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return found


def _at(words: Array, starts: Array, dtype: np.dtype[np.void], step: int = 0) -> Array:
    """What begins at these words: `dtype`, shape (n,); `step`: as `_step` returns it."""
    size = f"V{dtype.itemsize}"
    if step:
        # Of one length, as most are: copied at once.
        at = int(starts[0]) * 8
        same: Array = np.ndarray((len(starts),), size, words, at, (step * 8,))
        return same.copy().view(dtype)
    count = len(words) - dtype.itemsize // 8 + 1
    each: Array = np.ndarray((max(count, 0),), size, words, strides=(8,))
    found: Array = each[starts].view(dtype)
    return found


def _step(starts: Array) -> int:
    """The distance of all starts, if it is the same; else 0."""
    if len(starts) < 2:
        return len(starts)
    step = int(starts[1] - starts[0])
    return step if (np.diff(starts) == step).all() else 0
