# SPDX-License-Identifier: GPL-2.0-only
"""Stages of sockets as a source of records, beside an engine.

Nothing outlives the process, which holds the programs' links.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.sockets.denials import Denials
from ipttrace.capture.sockets.expr import taken
from ipttrace.capture.sockets.guards import Guards
from ipttrace.capture.sockets.processes import ProcessBook
from ipttrace.capture.sockets.programs import Programs
from ipttrace.stream import record
from ipttrace.stream.messages import Process, SocketBooks
from ipttrace.stream.record import Records

BUFFER: Final = 4 << 20  # bytes of the ring
_REASONS: Final = record.SK_F_ACCEPT_FULL | record.SK_F_SYN_FULL | record.SK_F_DENIED
_ADDRESSES: Final = ("sk", "listener", "request")


class Sockets:
    """Armed when it is made.  Raises CaptureError if it cannot run."""

    def __init__(self, program: bytes = b"", only_netns: int = 0, *, buffer: int = BUFFER) -> None:
        """`program`: EXPR, of pcap.compile(); `only_netns`: an inode, 0: all namespaces.

        `buffer`: bytes of the ring, a power of two.
        """
        self._program = program
        self._programs = Programs(buffer, only_netns)
        self._book = ProcessBook()
        self._guards = Guards()
        self._denials = Denials(only_netns)
        self._delivered = 0
        self._refused = 0
        self._wanted = True
        self._armed = False
        try:
            self.arm()
        except BaseException:
            self.close()
            raise

    @property
    def warning(self) -> str:
        """Which stages are not seen on this kernel, a line; "": all are."""
        names = ", ".join(f"{one}()" for one in self._programs.lacking)
        return (
            f"stages of sockets are missing: this kernel has no function {names}" if names else ""
        )

    def arm(self) -> None:
        """Starts tracing, with the current filter.  Raises CaptureError."""
        if self._wanted:
            self._programs.attach()
        self._armed = True

    def disarm(self) -> None:
        """Ends tracing; what was written until now can still be taken."""
        self._programs.detach()
        self._armed = False

    def show(self, on: bool) -> None:
        """Whether stages are recorded while it is armed.  Raises CaptureError."""
        if on and self._armed and not self._wanted:
            self._programs.attach()
        elif not on:
            self._programs.detach()
        self._wanted = on

    def filter(self, program: bytes) -> None:
        """Replaces the filter, for all that is taken from now on."""
        self._program = program

    def take(self, addresses: HiddenAddresses | None) -> tuple[Records, dict[str, Process]]:
        """The stages that have arrived, and the processes among them that are new, by number.

        `addresses`: of the engine, None: they stay as they are.
        """
        found, rules = self._merged(self._programs.take())
        if not len(found):
            return found, {}
        if self._armed and self._wanted and _any_unexplained(found):
            self._programs.see_denials()
        keep = taken(self._program, found)
        self._refused += int((~keep).sum())
        at = np.cumsum(keep) - 1
        found = found[keep]
        self._delivered += len(found)
        rules = {int(at[old]): rule for old, rule in rules.items() if keep[old]}
        found["owner"] = self._book.numbers(found, rules)
        if addresses is not None:
            addresses.hide_columns([found[name] for name in _ADDRESSES])
        return found, self._book.take()

    def _merged(self, stages: Records) -> tuple[Records, dict[int, Process]]:
        """With what guards deny, and their rules by index."""
        active = self._armed and self._wanted
        lines = self._guards.take() if active else []
        return self._denials.merge(
            stages, lines, time.monotonic_ns(), upto=self._guards.upto, last=not active
        )

    def counts(self) -> tuple[int, int]:
        """Stages that were read, and those for which the ring had no room."""
        return self._delivered, self._programs.lost() + self._denials.lost

    def books(self) -> SocketBooks:
        """The counters of this moment."""
        lost, missed = self._programs.lost(), self._programs.missed()
        lost += self._denials.lost
        added = self._denials.added - self._denials.checks
        return {
            "due": self._programs.written() + added + lost - self._refused + missed,
            "delivered": self._delivered,
            "lost": lost,
            "missed": missed,
            "refused": self._refused,
        }

    def close(self) -> None:
        """Detaches and removes everything that was added to the host."""
        self._guards.close()
        self._programs.close()


def _any_unexplained(stages: Records) -> bool:
    dropped = stages["stage"] == record.SYN_DROPPED
    return bool((dropped & (stages["flags"] & _REASONS == 0)).any())
