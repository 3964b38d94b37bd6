# SPDX-License-Identifier: GPL-2.0-only
"""The chains that packets met lately: a packet that meets a later one was not dropped before.

Must not do I/O, and must not loop over packets in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array

# How long a packet's chains are remembered, ns.
_LIFETIME: Final = 200_000_000
_MOST: Final = 1 << 16  # chains of packets that are remembered
AFTER_ALL_CHAINS: Final = 1 << 40
"""Greater than any chain_order."""

_REACHED: Final = np.dtype([("journey", "u8"), ("chain", "i8"), ("time", "u8")])


class Reached:
    """Journeys, and chains that their packets met."""

    def __init__(self) -> None:
        self._held = np.zeros(0, _REACHED)

    def add(self, journeys: Array, chains: Array | int, times: Array) -> None:
        """Packets met chains; `chains`: see chain_order; `times`: CLOCK_MONOTONIC, ns."""
        if not len(journeys):
            return
        new = np.zeros(len(journeys), _REACHED)
        new["journey"], new["chain"], new["time"] = journeys, chains, times
        oldest = int(new["time"].max()) - _LIFETIME
        held = self._held[self._held["time"].astype(np.int64) >= oldest]
        self._held = np.concatenate([held, new])[-_MOST:]

    def later(self, journeys: Array, chains: Array) -> Array:
        """Did the packets meet a later chain than these?  bool, shape (n,)."""
        if not len(self._held):
            return np.zeros(len(journeys), bool)
        order = np.argsort(self._held["journey"], kind="stable")
        known, first = np.unique(self._held["journey"][order], return_index=True)
        furthest = np.maximum.reduceat(self._held["chain"][order], first)
        at = np.minimum(np.searchsorted(known, journeys), len(known) - 1)
        found: Array = (known[at] == journeys) & (furthest[at] > chains)
        return found
