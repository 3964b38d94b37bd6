# SPDX-License-Identifier: GPL-2.0-only
"""Reads a BPF ring buffer (kernel/bpf/ringbuf.c) by a mapping of it.

What is there is copied in one piece and given back to the kernel at once; what it means is
found out afterwards.  Must not know what records contain.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.order import fences

Words = npt.NDArray[np.uint64]

_HEADER: Final = 8  # BPF_RINGBUF_HDR_SZ: u32 length and flags, u32 unused here
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LENGTH: Final = _DISCARDED - 1


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

    def take(self) -> tuple[Words, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All records that are complete.

        Returns their bytes as words, shape (k,), and of each record where its words begin,
        and its length in bytes: shape (n,).
        """
        begin, end = self._read_to[0], self._written_to[0]
        self._load_fence()
        heads, mask = self._heads, self._size - 1
        at = begin
        starts: list[int] = []
        lengths: list[int] = []
        while at < end:
            head = heads[(at & mask) >> 2]
            if head & _BUSY:
                break  # it, and what is behind it, comes next time
            length = head & _LENGTH
            if not head & _DISCARDED:
                starts.append(at - begin + _HEADER)
                lengths.append(length)
            at += (length + _HEADER + 7) & ~7
        self._load_fence()
        first = begin & mask
        words = np.frombuffer(self._data, np.uint64, (at - begin) >> 3, first).copy()
        self._store_fence()
        self._read_to[0] = at
        return words, np.array(starts, np.int64) >> 3, np.array(lengths, np.int64)

    def close(self) -> None:
        """Undoes the mappings."""
        for view in (self._heads, self._data, self._written_to, self._read_to):
            view.release()
        self._producer.close()
        self._consumer.close()
