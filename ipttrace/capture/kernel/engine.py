# SPDX-License-Identifier: GPL-2.0-only
"""The kernel engine: module, BPF programs and perf buffers as one thing.

Acquired in order and given back in reverse, on every way out.  What a killed
run leaves (pins, the module, unarmed) is cleaned by the next one.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Control, Status
from ipttrace.capture.kernel.programs import BUFFERS, LOST, PINS, PROGRAMS, Pins
from ipttrace.capture.kernel.rings import Buffers
from ipttrace.stream.record import ENTRY, EXIT, RECORD_VERSION, Records

# Of all buffers together; a share of it for calls and for rules, for each CPU.
DEFAULT_BUFFER: Final = 64 << 20
_SHARES: Final = (0.85, 0.15)
_LARGEST: Final = 16 << 20
_SMALLEST: Final = 64 << 10

# The module's counters, which begin at 0 whenever it is armed.
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
# How long the module may go on silencing log lines after a disarm, s; it takes a quarter.
_DRAINS: Final = 5.0
# Call ids take the bits below; which arming it was stands above.
_ARMING: Final = 48


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace, and with how much memory.

    `program`: sock_filter[] or nothing; `netns`: inode or all; `buffer`: bytes.
    """

    program: bytes = b""
    netns: int | None = None
    buffer: int = DEFAULT_BUFFER
    maxactive: int | None = None


def _pages(buffer: int) -> tuple[int, int]:
    """Pages for the buffers of calls and of rules of each CPU: powers of two."""
    cpus = os.cpu_count() or 1
    page = os.sysconf("SC_PAGESIZE")

    def pages(share: float) -> int:
        size = min(max(int(buffer * share / cpus), _SMALLEST), _LARGEST)
        return 1 << (size // page).bit_length() - 1

    call, rule = (pages(share) for share in _SHARES)
    return call, rule


def _added(before: Status | None, status: Status) -> Status:
    """The counters of all armings, from those before and those of the newest."""
    if before is None:
        return status
    entry, rule, exit_ = (a + b for a, b in zip(before.due, status.due, strict=True))
    sums = {name: getattr(before, name) + getattr(status, name) for name in _COUNTERS}
    depth = max(before.depth, status.depth)
    return replace(status, due=(entry, rule, exit_), depth=depth, **sums)


class KernelEngine:
    """Armed from construction to `close`, but from each `disarm` to the next `arm`.

    All counters go on from arming to arming, and no call id comes twice.
    """

    name: Final = "kernel"
    over: Final = ""  # it never has nothing left to trace

    def __init__(self, options: Options) -> None:
        self._options = options
        self._armed = False
        self._armings = 0
        self._before: Status | None = None  # the counters of all armings but the newest
        self._early: list[list[Records]] = []  # of the arming before, not yet asked for
        self._delivered = [0, 0, 0]
        self.notes: list[tuple[str, str]] = []
        with contextlib.ExitStack() as stack:
            if os.geteuid() != 0:
                raise CaptureError("tracing needs root: run with sudo")
            module = kmod.built_path(os.uname().release)
            if not kmod.loaded() and not module.exists():
                module = kmod.find_or_build()
            pins = Pins()
            stack.callback(pins.remove)
            self._insert(pins.stale, module, stack)
            pins.load()
            self.buffers = Buffers(
                [PINS / name for name in BUFFERS], PINS / LOST, _pages(options.buffer)
            )
            stack.callback(self.buffers.close)
            self._control = Control()
            stack.callback(self._control.close)
            version = self._control.status().version
            if version != RECORD_VERSION:
                raise CaptureError(
                    f"the module that is loaded writes records of version {version}, this"
                    f" ipttrace reads {RECORD_VERSION}: rmmod ipttrace and start again"
                )
            self.arm()
            self._stack = stack.pop_all()

    def _insert(self, stale: bool, module: Path, stack: contextlib.ExitStack) -> None:
        """Inserts the module, to be removed with us, unless somebody else's is there.

        One beside stale pins was left by a dead run: it is replaced.
        """
        if stale:
            self.notes.append(("warn", "cleaned up after a run that was killed"))
        if kmod.loaded():
            if not stale:
                self.notes.append(("info", "using the ipttrace module that is loaded already"))
                return
            kmod.remove()
            if not module.exists():
                module = kmod.find_or_build()
        kmod.insert(module)
        stack.callback(self._remove_module)

    def _remove_module(self) -> None:
        # A second socket of a dying process may still hold it for a moment; the
        # next start would clean up, so this must not hide what went before.
        with contextlib.suppress(CaptureError):
            kmod.remove()

    def arm(self) -> None:
        """Starts, and starts again after `disarm`, with the filter in force."""
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
            # Whether it has set its counters back already, they tell.
            if self._armings and self._control.status() == idle:
                self._before = before
            raise
        self._armings += 1
        self._armed = True

    def _idle(self) -> Status:
        """The counters once they stand still, and no log line of ours can come any more."""
        deadline = time.monotonic() + _DRAINS
        while (status := self._control.status()).state == "draining":
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return status

    def filter(self, program: bytes) -> None:
        """Replaces the filter, at once, without a gap; where disarmed, for the next `arm`."""
        if self._armed:
            self._control.filter(program)
        self._options = replace(self._options, program=program)

    def disarm(self) -> None:
        """No record is written after this; those written wait to be taken."""
        self._control.disarm()
        self._armed = False

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits, each in order of time."""
        taken = self._early.pop(0) if self._early else self._take()
        for kind, records in enumerate(taken):
            self._delivered[kind] += len(records)
        return taken

    def _take(self) -> list[Records]:
        taken = self.buffers.take()
        # The module counts calls from 1 whenever it is armed.
        if self._armings > 1:
            arming = np.uint64((self._armings - 1 & 0x7FFF) << _ARMING)
            for records in taken:
                records["call"] |= arming
            parents = taken[ENTRY]["parent"]
            parents[parents != 0] |= arming
        return taken

    def lost_exits(self) -> int:
        """Calls whose exit record no buffer had room for; cheaper than `books`."""
        return self.buffers.lost()[EXIT]

    def books(self) -> dict[str, Any]:
        """The counters of this moment, each from where it is counted.

        due: by the module, before a record is written, and the calls that
        kprobes skipped; delivered: here; lost: by the BPF programs; missed: where
        the kernel's kretprobe takes no instance, and by its kprobes.
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
        """Gives everything back; the host is as it was."""
        self._stack.close()
