# SPDX-License-Identifier: GPL-2.0-only
"""Watches beside the records: each looks at something from time to time, in its own thread.

What a watch finds becomes a frame of the stream, written by the agent's own loop: a
watch never writes.  One that fails reports it once, as a note, and is tried again; it
never ends the trace.  Must not touch the engine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ipttrace.capture.errors import CaptureError
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import Message

Finding = tuple[Kind, Message]
"""A frame to be written: RULES, COUNTERS, NEIGHBOURS, TABLES or NOTE, and its object."""

# When the reader has stopped, watches wait instead of piling up findings.
_MOST_PENDING: Final = 1000
_MOST_BYTES: Final = 32 << 20  # of pending findings, estimated; one alone may be larger
_RETRY: Final = 5.0  # s after a watch could not be made
_JOIN: Final = 1.0  # s that `close` waits for each thread


class Watch(Protocol):
    """Something to look at.  Its methods are called from its own thread."""

    interval: float  # s between two looks

    def look(self) -> Iterable[Finding]:
        """What has changed.  Raises CaptureError, OSError: one line says what failed."""
        ...

    def close(self) -> None:
        """Releases what the watch holds."""
        ...


class Watcher:
    """The threads of several watches, and a queue of what they found."""

    def __init__(self) -> None:
        """`fd` is readable while there are findings to take."""
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._findings: queue.Queue[tuple[int, Finding]] = queue.Queue(_MOST_PENDING)
        self._pending = 0  # bytes
        self._room = threading.Condition()  # for `_pending`
        self._ended = threading.Event()
        self._wakes: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def add(self, make: Callable[[], Watch], name: str) -> threading.Event:
        """Starts a thread for the watch that `make()` makes in it.

        `make` runs in the thread because netlink sockets are bound to one.  Setting the
        returned event makes the watch look at once.
        """
        wake = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(make, name, wake), name=f"ipttrace-{name}", daemon=True
        )
        self._wakes.append(wake)
        self._threads.append(thread)
        thread.start()
        return wake

    def take(self) -> list[Finding]:
        """The findings since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        taken = []
        with contextlib.suppress(queue.Empty):
            while True:
                size, finding = self._findings.get_nowait()
                taken.append(finding)
                with self._room:
                    self._pending -= size
                    self._room.notify_all()
        return taken

    def close(self) -> None:
        """Ends the threads."""
        self._ended.set()
        for wake in self._wakes:
            wake.set()
        for thread in self._threads:
            thread.join(_JOIN)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self.fd)

    def _put(self, finding: Finding) -> None:
        size = _size(finding[1])
        with self._room:
            while self._pending and self._pending + size > _MOST_BYTES:
                if self._ended.is_set():
                    return
                self._room.wait(0.2)
            self._pending += size
        while not self._ended.is_set():
            try:
                self._findings.put((size, finding), timeout=0.2)
            except queue.Full:
                continue
            os.eventfd_write(self.fd, 1)
            return

    def _run(self, make: Callable[[], Watch], name: str, wake: threading.Event) -> None:
        reported = ""
        watch: Watch | None = None
        try:
            while not self._ended.is_set():
                try:
                    if watch is None:
                        watch = make()
                    for finding in watch.look():
                        self._put(finding)
                except (CaptureError, OSError) as error:
                    if str(error) != reported:
                        reported = str(error)
                        self._put((Kind.NOTE, {"level": "warn", "text": f"{name}: {error}"}))
                wake.wait(_RETRY if watch is None else watch.interval)
                wake.clear()
        finally:
            if watch is not None:
                watch.close()


def _size(value: object) -> int:
    """About how many bytes of memory a JSON value takes."""
    if isinstance(value, str):
        return 50 + len(value)
    if isinstance(value, dict):
        return 64 + sum(_size(one) + _size(other) for one, other in value.items())
    if isinstance(value, list | tuple):
        return 64 + sum(map(_size, value))
    return 32
