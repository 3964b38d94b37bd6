# SPDX-License-Identifier: GPL-2.0-only
"""The distinct packets of a recording, with how many are alike.  Must not do I/O.

Two packets are alike if they come in through the same device, with the same protocol, addresses,
TCP flags, ICMP type and connection state, and the same ports; ports from 32768 on, which programs
do not choose, count as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.trace.row import Row
from ipttrace.trace.store import Store

_EPHEMERAL: Final = 32768
_PORTION: Final = 4096  # rows
_MOST: Final = 20_000


@dataclass(slots=True)
class Kind:
    """Packets that are alike: the first row of the first of them, how many there are."""

    row: Row
    count: int


@dataclass(frozen=True, slots=True)
class Distinct:
    """The kinds of packets, in order, and how many packets are left out because of too many."""

    kinds: tuple[Kind, ...]
    left_out: int


def distinct(store: Store, seqs: Iterable[int]) -> Distinct:
    """Returns the distinct packets that rows `seqs` are of."""
    firsts: dict[tuple[int, int], Row] = {}
    states: dict[tuple[int, int], str] = {}
    wanted = np.fromiter(seqs, np.int64)
    for at in range(0, len(wanted), _PORTION):
        for row in store.rows(wanted[at : at + _PORTION]):
            if row.station is not None:
                continue
            key = (row.netns, row.journey)
            firsts.setdefault(key, row)
            if row.ct_state:
                states.setdefault(key, row.ct_state)
    kinds: dict[tuple[Any, ...], Kind] = {}
    left_out = 0
    for key, row in firsts.items():
        if row.in_ == "lo":  # nothing comes in through lo from outside
            continue
        kind = _kind(row, states.get(key))
        if kind in kinds:
            kinds[kind].count += 1
        elif len(kinds) < _MOST:
            kinds[kind] = Kind(row, 1)
        else:
            left_out += 1
    return Distinct(tuple(kinds.values()), left_out)


def _kind(row: Row, state: str | None) -> tuple[Any, ...]:
    ports = [None if port is None else min(port, _EPHEMERAL) for port in (row.sport, row.dport)]
    place = (row.netns, row.in_, row.hook if not row.in_ else "")
    return (*place, row.proto, row.src, row.dst, *ports, row.flags, row.icmp, row.frag, state)
