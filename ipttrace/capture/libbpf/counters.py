# SPDX-License-Identifier: GPL-2.0-only
"""The counters of programs, read by a mapping of their map: see bpf/ring.h.

Must not know what is counted.
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError

EACH: Final = 8  # IPTTRACE_COUNTERS_EACH: of each CPU


class Counters:
    """The counters of all CPUs."""

    def __init__(self, fd: int, cpus: int) -> None:
        """`fd`: of the map, with EACH entries for each of `cpus`.  Raises CaptureError."""
        try:
            mapped = mmap.mmap(fd, cpus * EACH * 8, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CaptureError(f"cannot map the BPF counters: {error.strerror}") from error
        self._each = np.frombuffer(mapped, np.uint64).reshape(cpus, EACH)

    def sums(self, count: int) -> list[int]:
        """The first `count` counters, each added up over all CPUs."""
        found: list[int] = self._each[:, :count].sum(axis=0).tolist()
        return found
