# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through chains and tables, as the BPF programs write them, to records.

A run crosses from the kernel in one piece: its entry, its exit and its hits (struct
ipttrace_run of bpf/run.h); if it has more hits than that holds, the first ones go ahead
of it, and so does a name that is too long for it.  No Python loop over records, except where
such names are.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.record import ENTRY_DTYPE, EXIT_DTYPE

Array = npt.NDArray[Any]

HITS: Final = 16
NAME_LEN: Final = 64
FOREIGN: Final = 0x01
NO_CONNTRACK: Final = 0x02
DOUBTFUL: Final = 0x04

PIECE_DTYPE: Final[np.dtype[np.void]] = np.dtype([("run", "<u8"), ("began", "<u8")])
RUN_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("entry", ENTRY_DTYPE),
        ("exit", EXIT_DTYPE),
        ("generation", "<u4"),
        ("hit_count", "<u2"),
        ("flags", "u1"),
        ("reserved", "u1"),
        ("table", f"S{NAME_LEN}"),
        ("reserved1", "<u8"),
        ("piece", PIECE_DTYPE),
    ]
)
HIT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("time", "<u8"),
        ("handle", "<u8"),
        ("verdict", "<i4"),
        ("type", "u1"),
        ("reserved", "u1", (3,)),
        ("chain", f"S{NAME_LEN}"),
    ]
)
NAMED_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("piece", PIECE_DTYPE), ("time", "<u8"), ("name", "S256")]
)
FLIP_DTYPE: Final[np.dtype[np.void]] = np.dtype([("time", "<u8"), ("skb", "<u8")])
_PIECE_LENGTH: Final = PIECE_DTYPE.itemsize + HITS * HIT_DTYPE.itemsize
_MOST_PIECES: Final = 4096  # whose runs have not ended
_MOST_LONG: Final = 1 << 16  # names
_LONG: Final = 0xFF  # the last byte of what stands for a long name: the kernel's is NUL


@dataclass(frozen=True, slots=True)
class Runs:
    """`heads`: RUN_DTYPE, shape (n,); `hits`: HIT_DTYPE, those of each run one after the other.

    `counts`: how many hits each run has, shape (n,).
    """

    heads: Array
    hits: Array
    counts: Array

    @staticmethod
    def none() -> Runs:
        """No runs."""
        return Runs(np.zeros(0, RUN_DTYPE), np.zeros(0, HIT_DTYPE), np.zeros(0, np.int64))

    def pick(self, which: Array) -> Runs:
        """The runs for which `which`, bool, shape (n,), is true."""
        if which.all():
            return self
        hits = self.hits[np.repeat(which, self.counts)]
        return Runs(self.heads[which], hits, self.counts[which])

    @staticmethod
    def join(parts: list[Runs]) -> Runs:
        """All runs of `parts`, in order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Runs.none()
        return Runs(
            _joined([one.heads for one in parts], RUN_DTYPE),
            _joined([one.hits for one in parts], HIT_DTYPE),
            np.concatenate([one.counts for one in parts]),
        )


class LongNames:
    """Names that do not fit into a run, and what stands for each of them there."""

    def __init__(self) -> None:
        self._names: dict[int, bytes] = {}
        self._tokens: dict[bytes, int] = {}
        self._next = 0

    def token(self, name: bytes) -> bytes:
        """What stands for the name: NAME_LEN bytes that are no name."""
        number = self._tokens.get(name)
        if number is None:
            number = self._tokens[name] = self._next
            self._names[number] = name
            self._next += 1
            if len(self._names) > _MOST_LONG:
                oldest = next(iter(self._names))
                del self._tokens[self._names.pop(oldest)]
        return b"%0*d%c" % (NAME_LEN - 1, number, _LONG)

    def whole(self, names: Array) -> Array:
        """The names of runs in full: bytes, shape (n,), at least NAME_LEN wide.

        Of very many different ones, the oldest are forgotten: their names are empty.
        """
        last = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), NAME_LEN)[:, -1]
        if not (last == _LONG).any():
            return names
        found = names.astype("S256")
        for at in np.flatnonzero(last == _LONG).tolist():
            found[at] = self._names.get(int(names[at][:-1]), b"")
        return found


class RunReader:
    """Makes runs of the ring's records, which must be passed in order."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], list[Array]] = {}  # by run
        # By run, the names of its table (0) and of hits' chains, by time.
        self._names: dict[tuple[int, int], dict[int, bytes]] = {}
        self._flips: list[Array] = []
        self.long = LongNames()

    def take_flips(self) -> Array:
        """The flips that have been read since the last call: FLIP_DTYPE, shape (n,)."""
        found, self._flips = self._flips, []
        return np.concatenate(found) if found else np.zeros(0, FLIP_DTYPE)

    def read(self, words: Array, starts: Array, lengths: Array) -> Runs:
        """`words`, `starts`, `lengths`: as Ring.take returns them."""
        is_piece = lengths == _PIECE_LENGTH
        fits = (lengths - RUN_DTYPE.itemsize) % HIT_DTYPE.itemsize == 0
        fits &= lengths >= RUN_DTYPE.itemsize
        for at in starts[is_piece].tolist():
            self._keep(words[at : at + _PIECE_LENGTH // 8])
        for at in starts[lengths == NAMED_DTYPE.itemsize].tolist():
            self._keep_name(words[at : at + NAMED_DTYPE.itemsize // 8])
        flips = starts[lengths == FLIP_DTYPE.itemsize]
        if len(flips):
            self._flips.append(words[flips[:, None] + np.arange(2)].view(FLIP_DTYPE)[:, 0])
        starts, lengths = starts[fits & ~is_piece], lengths[fits & ~is_piece]
        if not len(starts):
            return Runs.none()
        heads = words[starts[:, None] + np.arange(RUN_DTYPE.itemsize // 8)]
        heads = heads.view(RUN_DTYPE)[:, 0]
        counts = (lengths - RUN_DTYPE.itemsize) // HIT_DTYPE.itemsize
        seq = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        size = HIT_DTYPE.itemsize // 8
        begins = np.repeat(starts + RUN_DTYPE.itemsize // 8, counts) + seq * size
        hits = words[begins[:, None] + np.arange(size)].view(HIT_DTYPE)[:, 0]
        runs = Runs(heads, hits, counts)
        if self._pieces:
            runs = self._completed(runs)
        if self._names:
            self._name(runs)
        return runs

    def _keep(self, words: Array) -> None:
        key = (int(words[0]), int(words[1]))
        hits = words[PIECE_DTYPE.itemsize // 8 :].view(HIT_DTYPE)
        self._pieces.setdefault(key, []).append(hits)
        if len(self._pieces) > _MOST_PIECES:
            self._pieces.pop(next(iter(self._pieces)))  # its run was lost

    def _keep_name(self, words: Array) -> None:
        one = words.view(NAMED_DTYPE)[0]
        self._names.setdefault(one["piece"].item(), {})[int(one["time"])] = bytes(one["name"])
        if len(self._names) > _MOST_PIECES:
            self._names.pop(next(iter(self._names)))  # its run was lost

    def _name(self, runs: Runs) -> None:
        """Puts what stands for them in the place of names that are cut."""
        ends = np.cumsum(runs.counts)
        for at, key in enumerate(runs.heads["piece"].tolist()):
            if (found := self._names.pop(key, None)) is None:
                continue
            if table := found.pop(0, b""):
                runs.heads["table"][at] = self.long.token(table)
            hits = runs.hits[int(ends[at] - runs.counts[at]) : int(ends[at])]
            for position in np.flatnonzero(np.isin(hits["time"], list(found))).tolist():
                hits["chain"][position] = self.long.token(found[int(hits["time"][position])])

    def _completed(self, runs: Runs) -> Runs:
        """The runs with the hits that went ahead of them."""
        longer = runs.heads["exit"]["rules"] > runs.counts
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
        return Runs(runs.heads, _joined(parts, HIT_DTYPE), counts)


def _joined(parts: list[Array], dtype: np.dtype[np.void]) -> Array:
    """The parts as one array: as bytes, since numpy would change the order of ports' bytes."""
    plain = [np.ascontiguousarray(part).view(f"V{dtype.itemsize}") for part in parts]
    joined: Array = np.concatenate(plain).view(dtype)
    return joined
