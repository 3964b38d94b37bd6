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

from ipttrace.capture import breakpoints
from ipttrace.capture import netns as namespaces
from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import KPROBES_OFF, PROTOCOL, Control, Status
from ipttrace.capture.kernel.programs import LOST_MAP, PINS, PROGRAMS, RING_MAPS, Pins
from ipttrace.capture.kernel.rings import Rings
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import EXIT, RECORD_VERSION, Records

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


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace, and with how much memory.

    `program`: classic BPF, or b"" for every packet; `netns`: the one namespace, as
    `netns.inode` takes it, or None for all;
    `buffer`: bytes of all rings; `maxactive`: calls at a time, None: the module's default;
    `raw_addresses`: records contain the kernel's addresses as they are; `from_rules`: trace
    only packets that rules mark, from there on.
    """

    program: bytes = b""
    netns: str | None = None
    buffer: int = DEFAULT_BUFFER
    maxactive: int | None = None
    raw_addresses: bool = False
    from_rules: bool = False


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

    def __init__(self, options: Options) -> None:
        self._options = options
        self.over = ""  # why there is nothing left to trace
        self._netns_id = 0  # the one namespace that is traced, for the module
        self._kprobes_off = False
        self._loaded = False  # the module, by this process
        self._users = ""  # the newest note about rules that use it
        self._armed = False
        self._armings = 0
        self._before: Status | None = None  # the counters of all armings except the newest
        self._early: list[list[Records]] = []  # records of earlier armings, not yet taken
        self.addresses = HiddenAddresses()
        self.before = 0  # all records written before this time, ns, have been taken
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
                [PINS / name for name in RING_MAPS],
                PINS / LOST_MAP,
                _pages(options.buffer),
                self.notes,
            )
            stack.callback(self.buffers.close)
            self._control = Control()
            stack.callback(self._control.close)
            status = self._control.status()
            if (status.version, status.protocol) != (RECORD_VERSION, PROTOCOL):
                raise CaptureError(
                    f"the loaded module writes records of version {status.version} (protocol"
                    f" {status.protocol}), this ipttrace reads version {RECORD_VERSION} (protocol"
                    f" {PROTOCOL}): rmmod ipttrace and start again"
                )
            self.arm()
            self._stack = stack.pop_all()

    def _insert(self, stale: bool, module: Path | None, stack: contextlib.ExitStack) -> None:
        """Inserts the module, to be removed by `close`, unless one is loaded already.

        A module that was left by a killed run, beside stale pins, is replaced, unless rules
        use it.
        """
        if stale:
            self.notes.append(("warn", "cleaned up after a run that was killed"))
        if kmod.loaded():
            if not stale or breakpoints.tables():
                self.notes.append(("info", "using the ipttrace module that is already loaded"))
                return
            kmod.remove()
        kmod.insert(module or kmod.find_or_build())
        self._loaded = True
        stack.callback(self._remove_module)

    def _remove_module(self) -> None:
        if any(one.netns in namespaces.paths(one.netns) for one in breakpoints.tables()):
            return
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
            self._arm_control()
        except CaptureError:
            # It may or may not have reset its counters.
            if self._armings and self._control.status() == idle:
                self._before = before
            raise
        # What was taken before is hidden already, under the key of its own arming.
        self.addresses = HiddenAddresses()
        self._armings += 1
        self._armed = True

    def _arm_control(self) -> None:
        """Arms, for the namespace of the first arming if it is for one only."""
        with contextlib.ExitStack() as stack:
            netns = None
            if self._options.netns is not None:
                netns = stack.enter_context(namespaces.opened(self._options.netns))
            self._control.arm(
                [PINS / name for name in PROGRAMS],
                self._options.program,
                netns,
                self._options.maxactive,
                self._netns_id,
                from_rules=self._options.from_rules,
            )
        self._netns_id = self._control.status().netns_id

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
        self._note_users()
        try:
            if not self.over:
                self._control.disarm()
        except CaptureError:
            self._look_out(self._control.status())
            if not self.over:
                raise
        self._armed = False

    def _note_users(self) -> None:
        """Says which rules keep the module loaded, if this process has loaded it."""
        if not self._loaded or not (found := breakpoints.tables()):
            return
        text = f"the module stays loaded when ipttrace ends: {breakpoints.described(found)} use it"
        if text != self._users:
            self.notes.append(("info", text))
        self._users = text

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits; entries by time."""
        before = time.monotonic_ns()
        taken = self._early.pop(0) if self._early else self._take()
        self.before = before
        for kind, records in enumerate(taken):
            self._delivered[kind] += len(records)
        return taken

    def _take(self) -> list[Records]:
        taken = self.buffers.take()
        if not self._options.raw_addresses:
            self.addresses.hide(taken)
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
        newest = self._control.status()
        self._look_out(newest)
        status = _added(self._before, newest)
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

    def _look_out(self, status: Status) -> None:
        """Notices changes of the tracing that this process did not request."""
        ended = self._armed and status.state != "armed" and status.reason == "netns gone"
        if ended and not self.over:
            self.over = "gone"
            title = f"network namespace {self._options.netns}"
            self.notes.append(("warn", f"{title} is gone: it is no longer traced"))
        if status.kprobes_off and not self._kprobes_off:
            text = f"{KPROBES_OFF}; meanwhile rows have no rule texts, or are missing"
            self.notes.append(("warn", text))
        self._kprobes_off = status.kprobes_off

    def close(self) -> None:
        """Disarms and removes everything that was added to the host."""
        self._stack.close()
