# SPDX-License-Identifier: GPL-2.0-only
"""Findings that nobody takes do not pile up: the watch waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import pytest

from ipttrace.capture.watch import Finding, Watcher
from ipttrace.stream.frames import Kind

COUNT = 20


class LargeFindings:
    """Finds COUNT notes of 1,000 characters at its first look."""

    interval = 60.0

    def __init__(self) -> None:
        self.found = 0
        self.done = threading.Event()

    def look(self) -> Iterable[Finding]:
        for _ in range(COUNT):
            self.found += 1
            yield Kind.NOTE, {"level": "info", "text": "x" * 1000}
        self.done.set()

    def close(self) -> None:
        pass


def test_a_watch_waits_while_its_findings_of_many_bytes_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ipttrace.capture.watch._MOST_BYTES", 4_000)
    watch, watcher = LargeFindings(), Watcher()
    watcher.add(lambda: watch, "test")
    taken: list[Finding] = []
    deadline = time.monotonic() + 60
    try:
        while len(taken) < COUNT:
            assert time.monotonic() < deadline
            # THEN there are never more than a few, and one more that waits
            some = watcher.take()
            assert len(some) <= COUNT // 2
            taken += some
            assert watch.found <= len(taken) + 5
            time.sleep(0.01)
    finally:
        watcher.close()
    assert watch.done.is_set()
