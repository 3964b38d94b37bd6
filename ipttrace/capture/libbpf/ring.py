# SPDX-License-Identifier: GPL-2.0-only
"""Reads a BPF ring buffer (kernel/bpf/ringbuf.c) by a mapping of it.

What is there is copied in one piece and given back to the kernel at once, or read in place.
Must not know what records contain.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.order import fences

Words = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

HEADER: Final = 8  # BPF_RINGBUF_HDR_SZ: u32 length and flags, u32 page
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LENGTH: Final = _DISCARDED - 1
_FEW: Final = 4096  # bytes of records that are looked at one by one

_Place = TypeVar("_Place", int, npt.NDArray[np.int64])


class Ring:
    """The reader's end of one ring."""

    def __init__(self, fd: int, size: int) -> None:
        """`fd`: of the map, which may be closed later; `size`: its bytes, a power of two.

        Raises CaptureError.
        """
        page = os.sysconf("SC_PAGESIZE")
        self._size = size
        self._load_fence, self._store_fence = fences()
        try:
            self._consumer = mmap.mmap(fd, page)
            # Its data are mapped twice, one behind the other, so that no record is cut.
            self._producer = mmap.mmap(
                fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except OSError as error:
            raise CaptureError(f"cannot map the BPF ring: {error.strerror}") from error
        self._read_to: Any = memoryview(self._consumer).cast("Q")
        self._written_to: Any = memoryview(self._producer).cast("Q")
        self._data: Any = memoryview(self._producer)[page:]
        self._heads: Any = self._data.cast("I")
        self._taken = self._read_to[0]

    def take(self) -> tuple[Words, Offsets, Offsets]:
        """All records that are complete.

        Returns their bytes as words, shape (k,), and of each record where its words begin,
        and its length in bytes: shape (n,).
        """
        words, starts, lengths = self.look()
        words = words.copy()
        self.release()
        return words, starts, lengths

    def look(self) -> tuple[Words, Offsets, Offsets]:
        """As `take`, but the words stay in the ring, and there only until `release`."""
        begin, end = self._read_to[0], self._written_to[0]
        self._taken = begin
        if begin == end:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._load_fence()
        first = begin & (self._size - 1)
        starts, sizes = self._records(first, first + end - begin)
        self._load_fence()
        count = int(_after(starts[-1], sizes[-1])) - first if len(starts) else 0
        # A length that no kernel writes must not lead beyond what was written.
        count = min(count, end - begin)
        self._taken = begin + count
        starts = starts - first + HEADER
        kept = (sizes & _DISCARDED == 0) & (starts + sizes <= count)
        if not kept.all():
            starts, sizes = starts[kept], sizes[kept]
        return np.frombuffer(self._data, np.uint64, count >> 3, first), starts >> 3, sizes

    def written(self) -> int:
        """Bytes that the kernel has written in all, each record with its HEADER."""
        return int(self._written_to[0])

    def release(self) -> None:
        """Gives the room of what `look` returned back to the kernel."""
        self._store_fence()
        self._read_to[0] = self._taken

    def _records(self, first: int, end: int) -> tuple[Offsets, Offsets]:
        """Where in the mapped data records begin, up to one that is not complete.

        Returns also their lengths and flags; `first`, `end`: where the records are.
        """
        at, sizes = self._equal(first, end)
        rest = int(_after(at[-1], sizes[-1])) if len(at) else first
        if rest < end:
            find = self._by_page if end - rest > _FEW else self._one_by_one
            others, more = find(rest, end)
            at, sizes = np.concatenate([at, others]), np.concatenate([sizes, more])
        busy = np.flatnonzero(sizes & _BUSY)
        count = int(busy[0]) if len(busy) else len(at)
        return at[:count], sizes[:count]

    def _equal(self, first: int, end: int) -> tuple[Offsets, Offsets]:
        """As `_records`: those at the beginning that have one length."""
        size = self._heads[first >> 2]
        each = _after(0, size)
        heads = np.frombuffer(self._data, np.uint32, (end - first) >> 2, first)
        heads = heads[:: each >> 2]
        count = len(heads) if each * len(heads) == end - first else len(heads) - 1
        other = np.flatnonzero(heads[:count] != size)
        count = int(other[0]) if len(other) else count
        return first + np.arange(count) * each, np.full(count, size, np.int64)

    def _by_page(self, first: int, end: int) -> tuple[Offsets, Offsets]:
        """As `_records`.

        The kernel writes the number of its page into each header.  So all words that have
        their own page's number may be headers: they are, if each begins where the one
        before it ends.
        """
        page = mmap.PAGESIZE
        row = first // page
        count = -(-end // page) - row
        halves = np.frombuffer(self._data, np.uint32, count * (page >> 2), row * page)
        numbers = (row + np.arange(count)) % (self._size // page)
        numbers += int(halves[(first - row * page >> 2) + 1]) - numbers[0]
        words = halves.reshape(count, page >> 2)[:, 1::2]
        at = (_true(words == numbers[:, None].astype(np.uint32)) << 3) + row * page
        at = at[(at >= first) & (at < end)]
        sizes = halves[(at - row * page) >> 2].astype(np.int64)
        after = _after(at, sizes)
        wrong = np.flatnonzero(after[:-1] != at[1:])
        if len(wrong):
            # Records have words that look like headers.
            real = np.ones(len(at), bool)
            following = 0
            for one in wrong.tolist():
                if one >= following:
                    following = int(np.searchsorted(at, after[one]))
                    real[one + 1 : following] = False
            at, sizes, after = at[real], sizes[real], after[real]
        if after[-1] != end or (after[:-1] != at[1:]).any():
            return self._one_by_one(first, end)
        return at, sizes

    def _one_by_one(self, first: int, end: int) -> tuple[Offsets, Offsets]:
        """As `_records`."""
        starts: list[int] = []
        sizes: list[int] = []
        at = first
        while at < end:
            size = self._heads[at >> 2]
            starts.append(at)
            sizes.append(size)
            at = _after(at, size)
        return np.array(starts, np.int64), np.array(sizes, np.int64)

    def close(self) -> None:
        """Undoes the mappings."""
        for view in (self._heads, self._data, self._written_to, self._read_to):
            view.release()
        self._producer.close()
        self._consumer.close()


def _true(found: npt.NDArray[np.bool_]) -> Offsets:
    """Where `found`, of a multiple of eight, is true; faster than numpy where little is."""
    eights = found.reshape(-1, 8)
    some = np.flatnonzero(eights.view(np.uint64)[:, 0] != 0)
    row, column = np.nonzero(eights[some])
    return some[row] * 8 + column


def _after(at: _Place, size: _Place) -> _Place:
    """Where the record ends that begins at `at`; `size`: its length and flags."""
    return at + ((size & _LENGTH) + HEADER + 7 & ~7)
