# SPDX-License-Identifier: GPL-2.0-only
"""What the programs write to their ring (struct station_event, bpf/station.h), as records.

Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.record import STATION_DTYPE, Records

Words = npt.NDArray[np.uint64]

FRAMES: Final = 36  # of a stack
_STATION: Final = STATION_DTYPE.itemsize // 8  # words
_DROP: Final = _STATION + FRAMES


def read(words: Words, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Records:
    """The stations, with addresses of code as place, in the order of the ring: shape (n,).

    The parameters are what Ring.take() returns.
    """
    found = np.empty(len(starts), STATION_DTYPE)
    rows = words[starts[:, None] + np.arange(_STATION)] if len(starts) else words[:0]
    found.view(np.uint64)[:] = rows.ravel()
    return found


def joined(one: Records, other: Records) -> Records:
    """Both, in the stream's layout: numpy itself changes byte orders when it joins records."""
    if not len(one):
        return other
    opaque = np.dtype(("V", STATION_DTYPE.itemsize))
    return np.concatenate([one.view(opaque), other.view(opaque)]).view(STATION_DTYPE)


def stacks(words: Words, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Words:
    """The stacks of the same events: addresses, 0 after the last, shape (n, FRAMES)."""
    found = np.zeros((len(starts), FRAMES), np.uint64)
    drops = lengths >= _DROP * 8
    if drops.any():
        found[drops] = words[starts[drops][:, None] + np.arange(_STATION, _DROP)]
    return found
