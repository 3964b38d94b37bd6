# SPDX-License-Identifier: GPL-2.0-only
"""What all pairs of engines have in common: the kernel engine, and another for nftables.

Must not join records.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.nft import xt_bpf
from ipttrace.capture.opaque import joined, picked
from ipttrace.stream import record
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import ENTRY, Records

MOST_HELD: Final = 64 << 20  # bytes of one engine's records that wait for the other's


class TwoEngines:
    """An engine that runs two, which are armed already, and closes them."""

    def __init__(self, name: str, kernel: Engine, other: Engine) -> None:
        self.name = name
        self.kernel = kernel
        self.other = other
        self.notes: list[tuple[Level, str]] = []
        self.names = other.names
        self.over = ""
        self.before = 0
        self.buffers = kernel.buffers
        self.armed = True
        self._kernel_read = 0

    def arm(self) -> None:
        """Starts both engines.  Raises CaptureError, with neither started."""
        self.kernel.arm()
        try:
            self.other.arm()
        except BaseException:
            self.kernel.disarm()
            raise
        self.armed = True

    def filter(self, program: bytes) -> None:
        """Replaces the filter of both engines.  Raises CaptureError, FilterError."""
        refuse_inexact(program)
        self.other.filter(program)
        self.kernel.filter(program)

    def disarm(self) -> None:
        """No record is written after this; records written before can still be taken."""
        try:
            self.other.disarm()
        finally:
            self.kernel.disarm()
        self.armed = False

    def take_kernel_records(self, held: HeldRecords) -> int:
        """Adds the kernel engine's records to `held`, unless too many wait there.

        They then wait in the engine's own buffers, which count what they have no room for.
        Returns the time before which all calls have been added, CLOCK_MONOTONIC ns.
        """
        if self.armed and held.size > MOST_HELD:
            return self._kernel_read
        self._kernel_read = time.monotonic_ns()
        held.add(self.kernel.take())
        return 1 << 63

    def take_notes(self) -> None:
        """Adds the engines' notes, and why there is nothing left to trace, to its own."""
        for engine in (self.kernel, self.other):
            while engine.notes:
                self.notes.append(engine.notes.pop(0))
        self.over = self.kernel.over

    def books(self) -> Books:
        """The counters of both engines, added up."""
        kernel, other = self.kernel.books(), self.other.books()
        return {
            **kernel,
            "engine": self.name,
            "calls": kernel["calls"] + other["calls"],
            "refused": kernel["refused"] + other["refused"],
            "matched": kernel["matched"] + other["matched"],
            "flipped": kernel["flipped"] + other["flipped"],
            "due": _sums(kernel["due"], other["due"]),
            "delivered": _sums(kernel["delivered"], other["delivered"]),
            "lost": _sums(kernel["lost"], other["lost"]),
            "missed": kernel["missed"] + other["missed"],
            "filter": other["filter"],
        }

    def lost_exits(self) -> int:
        """Exit records, and so rows, that were lost."""
        return self.kernel.lost_exits() + self.other.lost_exits()

    def close(self) -> None:
        """Disarms and closes both engines."""
        try:
            self.other.close()
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


class HeldRecords:
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
            self.records = [joined(parts) for parts in both]
            self.priority = np.concatenate([self.priority, priority])

    @property
    def size(self) -> int:
        """Bytes of the records that wait."""
        return sum(part.nbytes for part in self.records)

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
        taken, kept = [picked(entries, go)], [picked(entries, ~go)]
        for part in self.records[ENTRY + 1 :]:
            later = np.isin(part["call"], stay)
            taken.append(picked(part, ~later))
            kept.append(picked(part, later))
        self.priority = self.priority[~go]
        self.records = kept
        return taken
