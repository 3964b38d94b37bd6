# SPDX-License-Identifier: GPL-2.0-only
"""Where to cut held events, so that those of one packet are taken together.

Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array

# How much longer events may be held so that those of a packet are taken together, ns.
_SLACK: Final = 10_000_000
_GAP: Final = 50_000  # ns; events that are closer are not cut apart


def span(events: Array) -> tuple[int, int]:
    """The first and last time of events, shape (n,), n > 0, in order."""
    return int(events["time"][0]), int(events["time"][-1])


def spans(times: Array) -> list[tuple[int, int]]:
    """The first and last time of events that are close together; `times`: uint64, shape (n,)."""
    if not len(times):
        return []
    ordered = np.sort(times).astype(np.int64)
    ends = np.flatnonzero(np.diff(ordered) > _GAP)
    firsts, lasts = np.append(0, ends + 1), np.append(ends, len(ordered) - 1)
    return list(zip(ordered[firsts].tolist(), ordered[lasts].tolist(), strict=True))


def quietest(spans: list[tuple[int, int]], before: int) -> int:
    """The time at most _SLACK before `before` that is furthest from other events, ns.

    `spans`: first and last time of events that are taken together, ns.  Events of one
    packet, from nftables and legacy tables, are put in order only if they are taken at
    once: a cut at the widest gap separates the fewest.
    """
    cut, widest, end = before, -1, before - 2 * _SLACK
    for start, last in sorted(spans):
        if start > before - _SLACK:
            if start - end > widest:
                cut, widest = min(start, before), start - end
            if start >= before:
                return cut
        end = max(end, last)
    return before
