# SPDX-License-Identifier: GPL-2.0-only
"""Watches reassembly and conntrack in every traced namespace, once a second.

The frames are described in ipttrace/trace/tables/__init__.py.  If a look takes more than
a 20th of one processor, looks become less frequent.  Must not stay in another namespace,
or keep one alive.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.tables import values
from ipttrace.capture.tables.values import Values
from ipttrace.capture.watch import Finding
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import Tables

MOST: Final = 512  # namespaces that are looked at

_EVERY: Final = 1.0  # s
_SHARE: Final = 20

_Table = Literal["ipv4", "ipv6", "conntrack"]

_TABLES: Final[dict[_Table, Callable[[], Values]]] = {
    "ipv4": values.reassembly4,
    "ipv6": values.reassembly6,
    "conntrack": values.conntrack,
}

_Sent = dict[_Table, Values]
"""What the stream contains of a namespace."""


class TableWatch:
    """A Watch, see ipttrace/capture/watch.py."""

    def __init__(self, netns: str | None = None) -> None:
        """`netns`: the only namespace to look at, as `netns.inode` takes it; None for all."""
        self.interval = _EVERY
        self._home = namespaces.current()
        self._only = netns
        self._sent: dict[int, _Sent] = {}
        self._mono = 0  # of the last look, ns; 0: none yet

    def look(self) -> Iterator[Finding]:
        """Yields what changed; after that, raises CaptureError if a namespace cannot be read.

        Frames of one look have the same time.
        """
        began, mono = time.thread_time(), time.monotonic_ns()
        failed = ""
        before, self._sent = self._sent, {}
        traced = namespaces.traced(self._home, self._only)
        for inode, (name, path) in islice(traced.items(), MOST):
            try:
                with namespaces.inside(path, inode):
                    found = {table: read() for table, read in _TABLES.items()}
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                # EINVAL: the file of a namespace that was deleted, or not yet mounted.
                if error.errno != errno.EINVAL:
                    reason = error.strerror or str(error)
                    failed = failed or f"network namespace {name or inode} cannot be read: {reason}"
                continue
            sent = self._sent[inode] = before.get(inode, {})
            for table, now in found.items():
                if sent.get(table, {}) != now:
                    yield Kind.TABLES, self._changed(mono, inode, name, table, now, table in sent)
                    sent[table] = now
        if gone := [inode for inode in before if inode not in self._sent]:
            yield Kind.TABLES, {"mono": mono, "gone": gone}
        # What had no frame has not changed.
        yield Kind.TABLES, {"mono": mono}
        self._mono = mono
        self.interval = max(_EVERY, (time.thread_time() - began) * _SHARE)
        if failed:
            raise CaptureError(failed)
        if len(traced) > MOST:
            raise CaptureError(
                f"{len(traced):,} network namespaces: reassembly and conntrack are watched in"
                f" {MOST:,} of them; choose one with --netns"
            )

    def _changed(
        self, mono: int, inode: int, name: str, table: _Table, now: Values, known: bool
    ) -> Tables:
        frame: Tables = {"mono": mono, "netns": inode, "name": name, "table": table}
        if known and self._mono:
            frame["since"] = self._mono
        frame["values"] = now or None
        return frame

    def close(self) -> None:
        """Does nothing: nothing is held between looks."""
