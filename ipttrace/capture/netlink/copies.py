# SPDX-License-Identifier: GPL-2.0-only
"""Which events of legacy tables are of copies that the target TEE sent.

A copy looks like its original: NAT apart, TEE changes only TTL and DF.  It is sent while the
original is still in the rule with TEE: so its events come between two of the original's run
through the table.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.netfilter import HOOKS

_OUTPUT: Final = HOOKS.index("OUTPUT")  # where a copy begins; behind it only POSTROUTING
_MOST: Final = 1 << 12  # packets


@dataclass(slots=True)
class _Copying:
    """A packet that hit a rule with TEE, while its copy may be on its way."""

    since: int  # time of the rule's event, ns: also the copy's number
    hook: int  # of the rule
    begun: bool = False
    chain: int = -1  # chain_order of the copy's last event
    ended: bool = False  # did that event end the copy's run?


class Copies:
    """Finds the copies' events among those of one namespace, which are fed in order."""

    def __init__(self) -> None:
        self._open: dict[int, _Copying] = {}  # Keys.full → of the packet

    def numbers(
        self,
        events: Array,
        keys: Array,
        chain: Array,
        copied: Array,
        flipped: Callable[[int, int, int], bool],
    ) -> Array | None:
        """For each event, 0 or the number of the copy that caused it: uint64, shape (n,).

        `events`: in order; `keys`: Keys.full; `chain`: chain_order; `copied`: bool, did
        it hit a rule with TEE; `flipped`: whether a packet with this key was sent, and
        flipped, between two times.  None if there are no copies.
        """
        if not copied.any() and not self._open:
            return None
        found = np.zeros(len(events), np.uint64)
        mine = np.isin(keys, np.array([*self._open, *keys[copied].tolist()], np.uint64))
        for at in np.flatnonzero(mine).tolist():
            key, event = int(keys[at]), events[at]
            now = self._open.get(key)
            time, hook = int(event["time"]), int(event["hook"])
            if now is not None and hook >= _OUTPUT:
                now.begun = now.begun or now.hook < _OUTPUT or flipped(key, now.since, time)
                place = int(chain[at])
                goes_on = place > now.chain or (place == now.chain and not now.ended)
                if now.begun and goes_on:
                    now.chain, now.ended = place, bool(event["last"])
                    found[at] = now.since
                    continue
            self._open.pop(key, None)
            # No copy is copied.
            if copied[at]:
                self._open[key] = _Copying(time, hook)
        if len(self._open) > _MOST:
            self._open = dict(list(self._open.items())[_MOST // 2 :])
        return found
