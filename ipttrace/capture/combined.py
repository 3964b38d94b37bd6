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

from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.joining import JourneyJoiner
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import stream_layout
from ipttrace.capture.netlink.engine import NetlinkEngine
from ipttrace.capture.netlink.nft import xt_bpf
from ipttrace.capture.netlink.quiet import quietest, spans
from ipttrace.stream import record
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import ENTRY, Records

# The first number of the netlink engine's calls: the kernel engine's stay below it.
FIRST: Final = 0xFE << 48
# How long a packet may take from one chain to the next, ns, so that its calls are joined.
_UNDER_WAY: Final = 5_000_000


class BothEngines:
    """An engine that runs two, which are armed already, and closes them."""

    name: Final = "kernel+netlink"

    def __init__(self, kernel: Engine, netlink: NetlinkEngine) -> None:
        self.kernel = kernel
        self.netlink = netlink
        self.notes: list[tuple[Level, str]] = []
        self.names = netlink.names
        self.over = ""
        self.buffers = kernel.buffers
        self.buffers.watch(netlink.wake)
        self.changes = netlink.changes
        self._kernel_records, self._netlink_records = _HeldRecords(), _HeldRecords()
        # Each flush of netlink's sockets: when it began and ended, CLOCK_MONOTONIC ns.
        self._flushes: deque[tuple[int, int]] = deque()
        self._settled = 0
        self._armed = True
        self._joiner = JourneyJoiner()

    def arm(self) -> None:
        """Starts both engines.  Raises CaptureError, with neither started."""
        self.kernel.arm()
        try:
            self.netlink.arm()
        except BaseException:
            self.kernel.disarm()
            raise
        self._armed = True

    def filter(self, program: bytes) -> None:
        """Replaces the filter of both engines.  Raises CaptureError, FilterError."""
        refuse_inexact(program)
        self.netlink.filter(program)
        self.kernel.filter(program)

    def disarm(self) -> None:
        """No record is written after this; records written before can still be taken."""
        try:
            self.netlink.disarm()
        finally:
            self.kernel.disarm()
        self._armed = False

    def take(self) -> list[Records]:
        """The records that have arrived and settled, those of one packet together."""
        self.netlink.drain_wake()
        begun = time.monotonic_ns()
        if self.netlink.flush():
            self._flushes.append((begun, time.monotonic_ns()))
        self._netlink_records.add(self.netlink.take(), self.netlink.priorities)
        # After that: so all calls of the kernel engine before those of netlink are there.
        self._kernel_records.add(self.kernel.take())
        for engine in (self.kernel, self.netlink):
            while engine.notes:
                self.notes.append(engine.notes.pop(0))
        self.over = self.kernel.over
        before = self._settled_before() if self._armed else 1 << 63
        kernel = self._kernel_records.take(before)
        held = self._netlink_records
        later = self._kernel_records.records[ENTRY]
        joined = self._joiner.join(kernel, held.records, held.priority, self.netlink.flips, later)
        netlink = held.take(before, joined)
        return [stream_layout(np.concatenate(parts)) for parts in zip(kernel, netlink, strict=True)]

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

    def lost_exits(self) -> int:
        """The kernel engine's; the netlink engine loses messages, never known exits."""
        return self.kernel.lost_exits()

    def books(self) -> Books:
        """The counters of both engines, added up."""
        kernel, netlink = self.kernel.books(), self.netlink.books()
        return {
            **kernel,
            "engine": self.name,
            "calls": kernel["calls"] + netlink["calls"],
            "refused": kernel["refused"] + netlink["refused"],
            "matched": kernel["matched"] + netlink["matched"],
            "flipped": kernel["flipped"] + netlink["flipped"],
            "due": _sums(kernel["due"], netlink["due"]),
            "delivered": _sums(kernel["delivered"], netlink["delivered"]),
            "lost": _sums(kernel["lost"], netlink["lost"]),
            "missed": kernel["missed"] + netlink["missed"],
            "filter": netlink["filter"],
        }

    def close(self) -> None:
        """Disarms and closes both engines."""
        self.buffers.unwatch(self.netlink.wake)
        try:
            self.netlink.close()
        finally:
            self.kernel.close()


def _sums(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def refuse_inexact(program: bytes) -> None:
    """Raises CaptureError if the flip table would flip packets that the kernel engine rejects.

    Legacy tables would write the rule hits of such packets to the kernel's log.
    """
    if not nft_filter.compile(program).exact and not xt_bpf.can_run(program):
        raise CaptureError(f"{xt_bpf.REFUSAL}: --engine netlink traces both kinds of tables")


class _HeldRecords:
    """Records of one engine that wait for the other engine's records of the same packets."""

    def __init__(self) -> None:
        self.records: list[Records] = [np.zeros(0, dtype) for dtype in record.DTYPES]
        self.priority = np.zeros(0, np.int32)  # of each entry's chain

    def add(self, records: list[Records], priority: Array | None = None) -> None:
        """`records`: entries, rules, exits; `priority`: of each entry's chain, shape (n,)."""
        if priority is None:
            priority = np.zeros(len(records[ENTRY]), np.int32)
        if any(map(len, records)):
            both = zip(self.records, records, strict=True)
            self.records = [stream_layout(np.concatenate([a, b])) for a, b in both]
            self.priority = np.concatenate([self.priority, priority])

    def take(self, before: int, also: Array | None = None) -> list[Records]:
        """Removes and returns the records of calls that began before `before`.

        `before`: CLOCK_MONOTONIC, ns; `also`: bool, of each entry: further calls.
        """
        entries = self.records[ENTRY]
        go = entries["time"] < before
        if also is not None:
            go |= also
        if go.all():
            taken, self.records = self.records, [part[:0] for part in self.records]
            self.priority = self.priority[:0]
            return taken
        stay = entries["call"][~go]
        taken, kept = [entries[go]], [entries[~go]]
        for part in self.records[ENTRY + 1 :]:
            later = np.isin(part["call"], stay)
            taken.append(part[~later])
            kept.append(part[later])
        self.priority = self.priority[~go]
        self.records = kept
        return taken
