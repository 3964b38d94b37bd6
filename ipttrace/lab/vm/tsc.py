# SPDX-License-Identifier: GPL-2.0-only
"""The frequency of this host's time stamp counter, which an emulated guest reads as its own.

A guest measures it against an emulated timer while it boots.  On a busy host the result may
be wrong by a factor of ten, and then so is every second in the guest.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from typing import Final

_READ: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SECONDS: Final = 0.05
_TRIES: Final = 20


def host_tsc_khz() -> int | None:
    """The frequency in kHz, measured in 50 ms; None if this is not x86-64 or not allowed."""
    if platform.machine() != "x86_64":
        return None
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=protection)
    except OSError:
        return None  # a host that forbids pages that are writable and executable
    code.write(_READ)
    place = ctypes.c_char.from_buffer(code)
    counter: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
    began, count = _sample(counter)
    time.sleep(_SECONDS)
    ended, more = _sample(counter)
    return round((more - count) * 1_000_000 / (ended - began))


def _sample(counter: Callable[[], int]) -> tuple[int, int]:
    """A time, ns, and the counter then: the reading that took the least time of several."""
    readings = []
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        count = counter()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        readings.append((after - before, (before + after) // 2, count))
    _, moment, count = min(readings)
    return moment, count
