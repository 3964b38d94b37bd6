# SPDX-License-Identifier: GPL-2.0-only
"""Which generations of nftables' rules runs may be of.

A change of the rules counts the generation's number, and then turns the cursor by which runs
take their rules: between both, a run with the new number meets the old rules.  A number and
the cursor that belongs to it are always odd together, or always one odd and the other even,
until the module is loaded again: which of both is learnt from the runs.  No Python loop over
runs.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.bpf.runs import CURSOR, TURNED, Array

# A change takes less time between its two steps, ns.
_STEPS_APART: Final = 1_000_000_000


class Cursors:
    """What is known of the cursors of namespaces, by inode."""

    def __init__(self) -> None:
        self._parity: dict[int, int] = {}  # of number and cursor together; 1 to begin with
        self._contrary: dict[int, int] = {}  # since when all runs have had the other, ns

    def correct(self, inode: int, heads: Array, times: Array) -> None:
        """Makes `generation` and `later` those of the rules that runs may have met.

        `heads`: HEAD_DTYPE, (n,), of nftables, in order of `times`, ns, uint64, (n,).
        """
        known = np.flatnonzero(heads["generation"])
        if not known.size:
            return
        numbers = heads["generation"][known]
        begun = (heads["flags"][known] & CURSOR != 0).astype(np.uint32)
        ended = begun ^ (heads["flags"][known] & TURNED != 0)
        parity = self._learn(inode, (numbers ^ begun) & np.uint32(1), times[known])
        last = numbers + heads["later"][known]
        # In between, the rules were those of the number before.
        first = numbers - ((numbers ^ begun) & np.uint32(1) != parity)
        last = last - ((last ^ ended) & np.uint32(1) != parity)
        heads["generation"][known] = first
        heads["later"][known] = np.minimum(last - first, 255)

    def _learn(self, inode: int, parities: Array, times: Array) -> int:
        """The parity of the namespace, after runs with these."""
        parity = self._parity.get(inode, 1)
        if (parities == parity).any():
            self._contrary.pop(inode, None)
            return parity
        since = self._contrary.setdefault(inode, int(times.min()))
        if int(times.max()) - since > _STEPS_APART:
            del self._contrary[inode]
            parity = self._parity[inode] = 1 - parity
        return parity

    def forget(self, gone: set[int]) -> None:
        """Forgets namespaces that are gone."""
        for inode in gone & self._parity.keys():
            del self._parity[inode]
        for inode in gone & self._contrary.keys():
            del self._contrary[inode]
