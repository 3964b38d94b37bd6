# SPDX-License-Identifier: GPL-2.0-only
"""EXPR as the programs interpret it: their map of classic BPF, bpf/expr.h.

Must not compile EXPR, nor know when it is needed.
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.pcap import INSTRUCTION

_MOST: Final = 4096  # EXPR_MOST


class Filter:
    """The map, written by a mapping of it: see bpf/state.h."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of the map.  Raises CaptureError."""
        size = -(-(1 + 2 * _MOST) * INSTRUCTION.size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            mapped = mmap.mmap(descriptor, size)
        except OSError as error:
            raise CaptureError(f"cannot map the BPF filter: {error.strerror}") from error
        self._words = np.frombuffer(mapped, np.uint64)
        self._place = 0

    def set(self, program: bytes) -> None:
        """Replaces the program, one of pcap.compile(), at once; empty: every packet matches."""
        code = np.array(memoryview(program).cast("Q") if program else (), np.uint64)
        self._place ^= 1
        start = 1 + self._place * _MOST
        self._words[start : start + len(code)] = code
        first = INSTRUCTION.pack(self._place, 0, 0, len(code))
        self._words[0] = np.frombuffer(first, np.uint64)[0]
