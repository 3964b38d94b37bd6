# SPDX-License-Identifier: GPL-2.0-only
"""Both engines at once: the kernel engine for legacy tables, the netlink engine for nftables.

One stream, one timeline: the calls of a packet, from both engines, become one journey, in
the order in which the packet met the chains.  Must not import bcc.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.engine import Engine
from ipttrace.capture.joining import JourneyJoiner
from ipttrace.capture.netlink.calls import stream_layout
from ipttrace.capture.netlink.engine import NetlinkEngine
from ipttrace.capture.netlink.quiet import quietest, spans
from ipttrace.capture.two_engines import HeldRecords, TwoEngines
from ipttrace.stream.record import ENTRY, Records

# The first number of the netlink engine's calls: the kernel engine's stay below it.
FIRST: Final = 0xFE << 48
# How long a packet may take from one chain to the next, ns, so that its calls are joined.
_UNDER_WAY: Final = 5_000_000


class KernelAndNetlink(TwoEngines):
    """Both, as one engine.  Their times differ: nftables' are those of reading."""

    def __init__(self, kernel: Engine, netlink: NetlinkEngine) -> None:
        super().__init__("kernel+netlink", kernel, netlink)
        self.netlink = netlink
        self.buffers.watch(netlink.wake)
        self.changes = netlink.changes
        self._kernel_records, self._netlink_records = HeldRecords(), HeldRecords()
        # Each flush of netlink's sockets: when it began and ended, CLOCK_MONOTONIC ns.
        self._flushes: deque[tuple[int, int]] = deque()
        self._settled = 0
        self._joiner = JourneyJoiner()

    def take(self) -> list[Records]:
        """The records that have arrived and settled, those of one packet together."""
        self.netlink.drain_wake()
        begun = time.monotonic_ns()
        if self.netlink.flush():
            self._flushes.append((begun, time.monotonic_ns()))
        self._netlink_records.add(self.netlink.take(), self.netlink.priorities)
        # After that: so all calls of the kernel engine before those of netlink are there.
        known_before = self.take_kernel_records(self._kernel_records)
        self.take_notes()
        before = min(self._settled_before(), known_before) if self.armed else 1 << 63
        self.before = before
        kernel = self._kernel_records.take(before)
        held = self._netlink_records
        later = self._kernel_records.records[ENTRY]
        joined = self._joiner.join(kernel, held.records, held.priority, self.netlink.flips, later)
        netlink = held.take(before, joined)
        return [stream_layout(np.concatenate(parts)) for parts in zip(kernel, netlink, strict=True)]

    @property
    def addresses(self) -> HiddenAddresses:
        """Those of the kernel engine: joined records have its packets' addresses."""
        return self.kernel.addresses

    def _settled_before(self) -> int:
        """All calls of packets that came to a table before this time have been taken.

        CLOCK_MONOTONIC, ns.  A flush reads every message about packets before it began; the
        messages of chains behind the table are sent a little later.
        """
        while self._flushes and self._flushes[0][1] < self.netlink.before:
            self._settled = max(self._settled, self._flushes.popleft()[0])
        held = (self._kernel_records, self._netlink_records)
        times = np.concatenate([one.records[ENTRY]["time"] for one in held])
        return quietest(spans(times), self._settled - _UNDER_WAY)

    def close(self) -> None:
        """Disarms and closes both engines."""
        self.buffers.unwatch(self.netlink.wake)
        super().close()
