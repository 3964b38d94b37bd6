# SPDX-License-Identifier: GPL-2.0-only
"""Assigns nftables' events to journeys: one journey for every packet that was flipped.

nftables reports an id for each packet, which is soon used again: a journey begins at an event
of the flip table.  Must not do I/O, and must not loop over events in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import (
    EVENT,
    PASSED,
    RULE,
    TABLE_PREFIX,
    ChainRegistry,
    UniqueNumbers,
)
from ipttrace.capture.netlink.fading import FadingMap
from ipttrace.netfilter import HOOKS, INGRESS, NFPROTO_NETDEV

_PREROUTING: Final = HOOKS.index("PREROUTING")
_OUTPUT: Final = HOOKS.index("OUTPUT")

PacketFilter = Callable[[Array, Array], Array]
"""Packets, uint8 (n, k), and their captured lengths (n,) to bool (n,): does EXPR match?"""


class NftJourneys:
    """Journeys of nftables' events: each flip of a packet id begins one."""

    def __init__(
        self, chains: ChainRegistry, own: bytes, numbers: UniqueNumbers, matches: PacketFilter
    ) -> None:
        """`own`: name of this process's flip table; `matches`: for packets it did not flip."""
        # Of the last `assign`: where journeys began, and at the chain PASSED.
        self.flips = self.passed = np.zeros(0, EVENT)
        self.begun = 0  # events of this process's flip table
        self.refused = 0  # calls of packets that others trace and EXPR does not match
        self.exact = True  # the flip table matches exactly what EXPR does
        self._registry = chains
        self._own = own
        self._numbers = numbers
        self._matches = matches
        # Packet id → journey, 0 if EXPR does not match, the mark after its last event, and where
        # it was flipped last: number of the device at whose ingress, 0 at another hook.
        self._open: FadingMap[tuple[int, int, int]] = FadingMap()
        # Of each chain: does it flip for this process, at a device's ingress, is it of any
        # process's flip table, is it this process's PASSED?
        self._is_own = self._at_device = self._is_flip = self._is_passed = np.zeros(0, bool)

    def _add_chains(self) -> None:
        new = self._registry.chains[len(self._is_own) :]
        if new:
            own = np.array([chain.table == self._own for chain in new])
            flip = [chain.table.startswith(TABLE_PREFIX) for chain in new]
            passed = own & np.array([chain.chain == PASSED for chain in new])
            device = own & np.array([chain.family == NFPROTO_NETDEV for chain in new])
            self._is_own = np.append(self._is_own, own & ~passed)
            self._at_device = np.append(self._at_device, device)
            self._is_flip = np.append(self._is_flip, np.array(flip))
            self._is_passed = np.append(self._is_passed, passed)

    def assign(self, events: Array) -> Array:
        """The events of packets that EXPR matches, with `journey`, one journey after the other.

        Also with `mark_before`: the kernel reports the mark after each rule, so that of the
        packet's event before is the one with which it came.

        `events`: EVENT, shape (n,).  Events of flip tables are left out.
        """
        order = np.argsort(events["id"], kind="stable")
        events = events[order]
        ids = events["id"]
        count = len(ids)
        if not count:
            self.flips = self.passed = events
            return events
        first = np.append(True, ids[1:] != ids[:-1])
        self._add_chains()
        own = self._is_own[events["chain"]]
        # Packets that others trace traverse this flip table as well: without a rule hit.
        flipped = own & (events["kind"] == RULE)
        ingress, goes_on = self._flipped_again(events, flipped)
        begins = flipped & ~goes_on
        if not self.exact:
            flips = np.flatnonzero(begins)
            begins[flips] = self._matches(events["packet"][flips], events["caplen"][flips])
        carried = np.zeros(count, np.uint64)
        events["mark_before"][1:] = events["mark"][:-1]
        events["mark_known"] = ~first
        unknown = np.flatnonzero(first & (~own | goes_on))
        if len(unknown):
            held = [self._open.get(one, (-1, 0, 0)) for one in ids[unknown].tolist()]
            known = np.array([journey for journey, _, _ in held], np.int64)
            events["mark_before"][unknown] = [mark for _, mark, _ in held]
            events["mark_known"][unknown] = known >= 0
            new = known < 0
            if new.any():
                foreign = unknown[new]
                foreign = foreign[~self._is_passed[events["chain"][foreign]]]
                matched = self._matches(events["packet"][foreign], events["caplen"][foreign]) & (
                    events["caplen"][foreign] > 0
                )
                self.refused += int((~matched).sum())
                known[new] = 0
                begins[foreign[matched]] = True
            carried[unknown] = known.astype(np.uint64)
        starts = first | own & ~goes_on | begins
        carried[begins] = self._numbers.take(int(begins.sum()))
        at = np.maximum.accumulate(np.where(starts, np.arange(count), 0))
        events["journey"] = carried[at]
        last = np.append(first[1:], True)
        of_last = (events["journey"], events["mark"], ingress)
        after = zip(*(column[last].tolist() for column in of_last), strict=True)
        self._open.fade(int(events["time"].max()))
        for one, held_of in zip(ids[last].tolist(), after, strict=True):
            self._open[one] = held_of
        traced = events["journey"] != 0
        flips = events[flipped & ~goes_on & traced]
        hook = np.where(flips["iif"] != 0, _PREROUTING, _OUTPUT)
        flips["hook"] = np.where(self._at_device[flips["chain"]], INGRESS, hook)
        self.flips = flips[np.argsort(flips["time"], kind="stable")]
        self.begun += int(flipped.sum())
        self.passed = events[self._is_passed[events["chain"]]]
        matching: Array = events[~self._is_flip[events["chain"]] & traced]
        return matching

    def _flipped_again(self, events: Array, flipped: Array) -> tuple[Array, Array]:
        """Of each event: where its packet was flipped last, see _open; is it flipped once more?

        `events`: by id, in order; `flipped`: bool, shape (n,).  A packet that a device receives
        is flipped at its ingress and again at PREROUTING.  Both are of one packet if nothing was
        flipped between them: any other packet of that device would have been, at its ingress.
        """
        count = len(events)
        if not self._at_device.any():
            return np.zeros(count, np.uint32), np.zeros(count, bool)
        first = np.append(True, events["id"][1:] != events["id"][:-1])
        held = np.zeros(count, np.uint32)
        held[first] = [
            (self._open.get(one) or (0, 0, 0))[2] for one in events["id"][first].tolist()
        ]
        at_device = flipped & self._at_device[events["chain"]]
        now = np.where(flipped, np.where(at_device, events["iif"], 0), held)
        ingress = now[np.maximum.accumulate(np.where(first | flipped, np.arange(count), 0))]
        before = np.where(first, held, np.append(held[:1], ingress[:-1]))
        goes_on = flipped & ~at_device & (before != 0) & (before == events["iif"])
        return ingress, goes_on
