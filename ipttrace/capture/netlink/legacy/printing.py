# SPDX-License-Identifier: GPL-2.0-only
"""Prints a legacy table with iptables-save, in a thread, while tables go on to be compared.

iptables-save reads a table in one piece, at some moment of its run: a chain that was the same
all that time is printed as it was, whatever else changed.  Must not decide whether it was.
"""

from __future__ import annotations

import threading
import time

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.xtables import Chains


class Printing:
    """A run of iptables-save for one table of the calling thread's namespace."""

    def __init__(self, family: int, table: str, first: int, chains: Chains) -> None:
        """`first`: the number of the reading before it; `chains`: of that reading."""
        self.family = family
        self.table = table
        self.first = first
        self.last: int | None = None  # number of the first reading after it
        self.chains = chains  # that have stayed the same since
        self.begun = time.monotonic()
        self.took = 0.0  # s
        self.failure: Exception | None = None
        self.printed: iptables_save.Table = {}
        # A thread is in the namespace in which it was started.
        self._thread = threading.Thread(target=self._run, name="ipttrace-print", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Has it ended?"""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Waits until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self.printed = iptables_save.read_table(self.family, self.table)
        except (CaptureError, iptables_save.Unreadable, OSError) as error:
            self.failure = error
        self.took = time.monotonic() - self.begun
