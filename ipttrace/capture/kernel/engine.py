# SPDX-License-Identifier: GPL-2.0-only
"""The kernel engine: the module, the BPF programs and the perf rings together.

Acquired in order and released in reverse, also after errors.  The next run removes what a
killed one leaves behind: the pins and the module, which is disarmed.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Control, Status
from ipttrace.capture.kernel.programs import LOST_MAP, PINS, PROGRAMS, RING_MAPS, Pins
from ipttrace.capture.kernel.rings import Rings
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import ENTRY, EXIT, RECORD_VERSION, Records

# Bytes of all rings together, and how each CPU's part is shared by calls and rules.
DEFAULT_BUFFER: Final = 64 << 20
_SHARES: Final = (0.85, 0.15)
_LARGEST: Final = 16 << 20  # bytes of one ring
_SMALLEST: Final = 64 << 10

# The module's counters, which start at 0 with each arming.
_COUNTERS: Final = (
    "calls",
    "refused",
    "matched",
    "followed",
    "flipped",
    "silenced",
    "nmissed",
    "skipped",
    "unfollowed",
)
# Seconds to wait until the module is idle after a disarm (IPTTRACE_DRAIN_MS: 0.25).
_DRAINS: Final = 5.0
# From this bit on, a call id contains the number of the arming.
_ARMING: Final = 48


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace, and with how much memory.

    `program`: classic BPF, or b"" for every packet; `netns`: an inode, or None for all;
    `buffer`: bytes of all rings; `maxactive`: calls at a time, None: the module's default.
    """

    program: bytes = b""
    netns: int | None = None
    buffer: int = DEFAULT_BUFFER
    maxactive: int | None = None


def _pages(buffer: int) -> tuple[int, int]:
    """Pages of each CPU's rings of calls and of rules: powers of two."""
    cpus = os.cpu_count() or 1
    page = os.sysconf("SC_PAGESIZE")

    def pages(share: float) -> int:
        size = min(max(int(buffer * share / cpus), _SMALLEST), _LARGEST)
        return 1 << (size // page).bit_length() - 1

    call, rule = (pages(share) for share in _SHARES)
    return call, rule


def _added(before: Status | None, status: Status) -> Status:
    """The counters of all armings: the sum of those before and of the newest."""
    if before is None:
        return status
    entry, rule, exit_ = (a + b for a, b in zip(before.due, status.due, strict=True))
    sums = {name: getattr(before, name) + getattr(status, name) for name in _COUNTERS}
    depth = max(before.depth, status.depth)
    return replace(status, due=(entry, rule, exit_), depth=depth, **sums)


class KernelEngine:
    """Armed from construction to `close`, except from a `disarm` to the next `arm`.

    Counters continue from arming to arming, and call ids are never reused.
    """

    name: Final = "kernel"
    over = ""  # it can always trace on

    def __init__(self, options: Options) -> None:
        self._options = options
        self._armed = False
        self._armings = 0
        self._before: Status | None = None  # the counters of all armings except the newest
        self._early: list[list[Records]] = []  # records of earlier armings, not yet taken
        self._delivered = [0, 0, 0]
        self.notes: list[tuple[Level, str]] = []
        self.names: dict[str, str] = {}  # legacy names always fit in a record
        with contextlib.ExitStack() as stack:
            if os.geteuid() != 0:
                raise CaptureError("tracing needs root: run with sudo")
            module = None if kmod.loaded() else kmod.find_or_build()
            pins = Pins()
            stack.callback(pins.remove)
            self._insert(pins.stale, module, stack)
            pins.load()
            self.buffers = Rings(
                [PINS / name for name in RING_MAPS], PINS / LOST_MAP, _pages(options.buffer)
            )
            stack.callback(self.buffers.close)
            self._control = Control()
            stack.callback(self._control.close)
            version = self._control.status().version
            if version != RECORD_VERSION:
                raise CaptureError(
                    f"the loaded module writes records of version {version}, this"
                    f" ipttrace reads version {RECORD_VERSION}: rmmod ipttrace and start again"
                )
            self.arm()
            self._stack = stack.pop_all()

    def _insert(self, stale: bool, module: Path | None, stack: contextlib.ExitStack) -> None:
        """Inserts the module, to be removed by `close`, unless one is loaded already.

        A module that was left by a killed run, beside stale pins, is replaced.
        """
        if stale:
            self.notes.append(("warn", "cleaned up after a run that was killed"))
        if kmod.loaded():
            if not stale:
                self.notes.append(("info", "using the ipttrace module that is already loaded"))
                return
            kmod.remove()
        kmod.insert(module or kmod.find_or_build())
        stack.callback(self._remove_module)

    def _remove_module(self) -> None:
        # Another socket of a dying process may still hold it for a moment.  The next start
        # would clean up, so this error must not hide an earlier one.
        with contextlib.suppress(CaptureError):
            kmod.remove()

    def arm(self) -> None:
        """Starts tracing, also again after `disarm`, with the current filter."""
        before = self._before
        if self._armings:
            self._early.append(self._take())
            idle = self._idle()
            self._before = _added(before, idle)
        try:
            self._control.arm(
                [PINS / name for name in PROGRAMS],
                self._options.program,
                self._options.netns,
                self._options.maxactive,
            )
        except CaptureError:
            # It may or may not have reset its counters.
            if self._armings and self._control.status() == idle:
                self._before = before
            raise
        self._armings += 1
        self._armed = True

    def _idle(self) -> Status:
        """The status once its counters are final and log lines need no silencing any more."""
        deadline = time.monotonic() + _DRAINS
        while (status := self._control.status()).state == "draining":
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return status

    def filter(self, program: bytes) -> None:
        """Replaces the filter, without a gap; if disarmed, for the next `arm`."""
        if self._armed:
            self._control.filter(program)
        self._options = replace(self._options, program=program)

    def disarm(self) -> None:
        """Ends tracing; records written until now can still be taken."""
        self._control.disarm()
        self._armed = False

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits; entries by time."""
        taken = self._early.pop(0) if self._early else self._take()
        for kind, records in enumerate(taken):
            self._delivered[kind] += len(records)
        return taken

    def _take(self) -> list[Records]:
        taken = self.buffers.take()
        # The module numbers calls from 1 with each arming.
        if self._armings > 1:
            arming = np.uint64((self._armings - 1 & 0x7FFF) << _ARMING)
            for records in taken:
                records["call"] |= arming
            parents = taken[ENTRY]["parent"]
            parents[parents != 0] |= arming
        return taken

    def lost_exits(self) -> int:
        """Exit records, and so rows, for which no ring had room; cheaper than `books`."""
        return self.buffers.lost()[EXIT]

    def books(self) -> Books:
        """The counters of this moment, each from where it is counted.

        due: by the module, before a record is written, and by kprobes for the calls they
        skipped; delivered: here; lost: by the BPF programs; missed: by the module, if no
        kretprobe instance is free, and by kprobes.
        """
        status = _added(self._before, self._control.status())
        due = list(status.due)
        due[0] += status.skipped
        return {
            "engine": self.name,
            "state": "armed" if status.state == "armed" else "disarmed",
            "calls": status.calls,
            "refused": status.refused,
            "matched": status.matched,
            "followed": status.followed,
            "flipped": status.flipped,
            "silenced": status.silenced,
            "unfollowed": status.unfollowed,
            "depth": status.depth,
            "due": due,
            "delivered": list(self._delivered),
            "lost": self.buffers.lost(),
            "missed": status.nmissed + status.skipped,
        }

    def close(self) -> None:
        """Disarms and removes everything that was added to the host."""
        self._stack.close()
