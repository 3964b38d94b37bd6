# SPDX-License-Identifier: GPL-2.0-only
"""The journey of each call: all calls of one skb.

An skb is identified by its address, which the kernel reuses immediately.  A journey
begins with a call that has F_FIRST, or after the previous packet at this address was
dropped or stolen.  The netlink engine has no addresses and writes a number per packet
instead, so that its records are treated alike.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Recent

_OPEN: Final = 1 << 16

_NF_DROP: Final = 0
_NF_STOLEN: Final = 2


class Journeys:
    """Assigns journeys to calls, batch by batch."""

    def __init__(self) -> None:
        self._open = Recent(_OPEN)  # skb → journey; 0: it has ended

    def assign(self, entries: Array, exits: Array) -> Array:
        """Returns uint64 (n,): the first call of each entry's journey.

        `entries`: new entry records, shape (n,); `exits`: new exit records.
        """
        count = len(entries)
        if not count:
            return np.zeros(0, np.uint64)
        verdict = exits["verdict"] & 0xFF
        ends = exits[(verdict == _NF_DROP) | (verdict == _NF_STOLEN)]
        skb = np.concatenate([entries["skb"], ends["skb"]])
        time = np.concatenate([entries["time"], ends["time"]])
        order = np.lexsort((time, skb))
        skb = skb[order]
        is_end = order >= count
        entry = order[~is_end]
        head = np.append(True, skb[1:] != skb[:-1])
        heads = np.flatnonzero(head)
        begins = np.zeros(len(order), bool)
        # After an end, the next entry with this address is another packet.
        begins[1:] = is_end[:-1] & ~is_end[1:] & ~head[1:]
        begins[~is_end] |= (entries["flags"][entry] & record.F_FIRST) != 0
        carried, known = self._open.get(skb[heads])
        known &= carried != 0

        anchor = np.zeros(len(order), np.uint64)
        call = np.zeros(len(order), np.uint64)
        call[~is_end] = entries["call"][entry]
        anchor[heads] = np.where(known, carried, call[heads])
        anchor[begins] = call[begins]
        at = np.where(begins | head, np.arange(len(order)), 0)
        journey = anchor[np.maximum.accumulate(at)]

        tails = np.append(heads[1:], len(order)) - 1
        self._open.put(skb[tails], np.where(is_end[tails], np.uint64(0), journey[tails]))
        out = np.empty(count, np.uint64)
        out[entry] = journey[~is_end]
        return out
