# SPDX-License-Identifier: GPL-2.0-only
"""Memory order between this program and the kernel, which share the perf rings.

The kernel writes records and then ``data_head``; we read ``data_head`` and then records,
and write ``data_tail`` once they are copied (include/uapi/linux/perf_event.h).  x86 keeps
that order by itself: no load passes an earlier load, no store an earlier load or store.
Other processors may do either, and neither Python nor numpy has a barrier, so there it is
libatomic's, a library of gcc.  A fence orders all accesses before and after it: one for all
rings together.  Must not import bcc.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Final

from ipttrace.capture.errors import CaptureError

# stdatomic.h: memory_order
_ACQUIRE: Final = 2
_RELEASE: Final = 3

_ORDERED: Final = ("x86_64", "i386", "i686")

Fence = Callable[[], object]


def fences(machine: str | None = None) -> tuple[Fence, Fence]:
    """Two functions: no later access before earlier loads; no later store before earlier ones.

    `machine`: as uname(2) has it, None for this one.  Raises CaptureError without libatomic,
    where it is needed.
    """
    if (machine or platform.machine()) in _ORDERED:
        return _nothing, _nothing
    try:
        fence = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        raise CaptureError("libatomic.so.1 is missing: apt-get install libatomic1") from None
    fence.argtypes = [ctypes.c_int]
    fence.restype = None
    return lambda: fence(_ACQUIRE), lambda: fence(_RELEASE)


def _nothing() -> None:
    pass
