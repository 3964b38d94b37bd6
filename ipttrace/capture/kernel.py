# SPDX-License-Identifier: GPL-2.0-only
"""The kernel engine: module, BPF programs and perf buffers as one thing.

Acquired in order and given back in reverse, on every way out.  What a killed
run leaves (pins, the module, unarmed) is cleaned by the next one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipttrace.capture import kmod
from ipttrace.capture.bpf import BUFFERS, LOST, PINS, PROGRAMS, Pins
from ipttrace.capture.control import Control
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.perf import Buffers
from ipttrace.stream.record import RECORD_VERSION, Records

# Of all buffers together; a share of it for each kind, for each CPU.
DEFAULT_BUFFER: Final = 64 << 20
_SHARES: Final = (0.6, 0.25, 0.15)
_LARGEST: Final = 16 << 20
_SMALLEST: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace, and with how much memory.

    `program`: sock_filter[] or nothing; `netns`: inode or all; `buffer`: bytes.
    """

    program: bytes = b""
    netns: int | None = None
    buffer: int = DEFAULT_BUFFER
    maxactive: int | None = None


def _pages(buffer: int) -> tuple[int, int, int]:
    """Pages for the buffers of each kind and CPU: powers of two."""
    cpus = os.cpu_count() or 1
    page = os.sysconf("SC_PAGESIZE")

    def pages(share: float) -> int:
        size = min(max(int(buffer * share / cpus), _SMALLEST), _LARGEST)
        return 1 << (size // page).bit_length() - 1

    entry, rule, exit_ = (pages(share) for share in _SHARES)
    return entry, rule, exit_


class KernelEngine:
    """Armed from construction to `close`, or to `disarm`."""

    name: Final = "kernel"

    def __init__(self, options: Options) -> None:
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
            self.arm(options)
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

    def arm(self, options: Options) -> None:
        """Starts (again) with these options."""
        self._control.arm(
            [PINS / name for name in PROGRAMS],
            options.program,
            options.netns,
            options.maxactive,
        )

    def filter(self, program: bytes) -> None:
        """Replaces the filter, at once, without a gap."""
        self._control.filter(program)

    def disarm(self) -> None:
        """No record is written after this; those written wait to be taken."""
        self._control.disarm()

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits, each in order of time."""
        taken = self.buffers.take()
        for kind, records in enumerate(taken):
            self._delivered[kind] += len(records)
        return taken

    def books(self) -> dict[str, Any]:
        """The counters of this moment, each from where it is counted.

        due: by the module, before a record is written, and the calls that
        kprobes skipped; delivered: here; lost: by the BPF programs; missed: where
        the kernel's kretprobe takes no instance, and by its kprobes.
        """
        status = self._control.status()
        due = list(status.due)
        due[0] += status.skipped
        return {
            "engine": self.name,
            "state": status.state,
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
