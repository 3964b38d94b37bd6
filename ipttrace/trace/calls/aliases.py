# SPDX-License-Identifier: GPL-2.0-only
"""Flows that turned out to be one, after rows of both had been stored.

Behind NAT a packet has other addresses.  To which flow these belong is known as soon as
a packet shows both, and rows that came before have the number of a flow of their own:
they are never modified, but read with this table.  It only holds for some time before
it was learned, because addresses and ports are used again.  One thread writes while
others read.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array

_LIMIT: Final = 1 << 13  # flows
_LOGGED: Final = 1 << 10  # calls of `add` that `since` knows
_BEFORE_NS: Final = 120_000_000_000  # conntrack forgets most connections sooner
_HOPS: Final = 4


@dataclass(frozen=True, slots=True)
class _Table:
    """Arrays (n,), ascending by key."""

    keys: Array  # uint64
    roots: Array  # uint64: the flow that it belongs to
    until: Array  # int64: ns since the epoch, when this was learned


_EMPTY: Final = _Table(*(np.zeros(0, dtype) for dtype in (np.uint64, np.uint64, np.int64)))


class Aliases:
    """Numbers of flows → the flow that they belong to."""

    def __init__(self) -> None:
        self._table = _EMPTY  # replaced, never modified, so that readers need no lock
        self._log: list[Array] = []
        self.version = 0  # increases with every change

    def __len__(self) -> int:
        return len(self._table.keys)

    def add(self, flows: Array, roots: Array, now: int) -> None:
        """Joins `flows` (n,) to `roots` (n,), for rows until `now`, ns since the epoch."""
        flows, first = np.unique(flows, return_index=True)
        held = self._table
        keep = ~np.isin(held.keys, flows, assume_unique=True)
        if np.count_nonzero(keep) + len(flows) > _LIMIT:
            # Down to half, so that this is rare.
            newest = np.argsort(held.until, kind="stable")[-(_LIMIT // 2) :]
            keep &= np.isin(np.arange(len(held.keys)), newest)
        keys = held.keys[keep]
        at = np.searchsorted(keys, flows)
        self._table = _Table(
            np.insert(keys, at, flows),
            np.insert(held.roots[keep], at, roots[first]),
            np.insert(held.until[keep], at, now),
        )
        self._log = [*self._log[-_LOGGED + 1 :], flows]
        self.version += 1

    def since(self, version: int) -> Array | None:
        """Returns the flows, uint64 (n,), joined since `version`; None: not known any more."""
        log, count = self._log, self.version - version
        if count > len(log):
            return None
        return np.concatenate([np.zeros(0, np.uint64), *(log[-count:] if count else [])])

    def roots(self, flows: Array, times: Array | None = None) -> Array:
        """Returns uint64 (n,): the flow that each of `flows` belongs to, often itself.

        `times`: of their rows, ns since the epoch; None: of any rows.
        """
        held = self._table
        if not len(held.keys):
            return flows
        found, some = flows, np.arange(len(flows))
        for _ in range(_HOPS):
            at = np.searchsorted(held.keys, found[some])
            at[at == len(held.keys)] = 0
            known = held.keys[at] == found[some]
            if times is not None:
                known &= times[some] <= held.until[at]
                known &= times[some] > held.until[at] - _BEFORE_NS
            if not known.any():
                break
            at, some = at[known], some[known]
            found = found.copy() if found is flows else found
            found[some] = held.roots[at]
        return found
