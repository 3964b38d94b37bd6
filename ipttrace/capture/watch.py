# SPDX-License-Identifier: GPL-2.0-only
"""Watches beside the records: each looks at something now and then, in a thread.

What a watch finds becomes a frame of the stream, written by the agent's own
loop: a watch never writes.  One that fails says so once, as a note, and is
tried again; it never ends the trace.  Must not touch the engine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterable
from typing import Any, Final, Protocol

from ipttrace.capture.errors import CaptureError
from ipttrace.stream.frames import Kind

Seen = tuple[Kind, dict[str, Any]]

# A reader that stands still must not let findings pile up.
_MOST: Final = 1000


class Watch(Protocol):
    """Something to look at.  All three are called from the watch's own thread."""

    interval: float  # s between two looks

    def look(self) -> Iterable[Seen]:
        """What is new.  Raises CaptureError, OSError: one line says what fails."""
        ...

    def close(self) -> None: ...


class Watcher:
    """The threads of some watches, and what they have seen."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._seen: queue.Queue[Seen] = queue.Queue(_MOST)
        self._ended = threading.Event()
        self._wakes: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def add(self, make: Any, name: str) -> threading.Event:
        """A watch that `make()` makes, in its own thread: netlink sockets stay in one.

        Set the event that is returned to have it look at once.
        """
        wake = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(make, name, wake), name=f"ipttrace-{name}", daemon=True
        )
        self._wakes.append(wake)
        self._threads.append(thread)
        thread.start()
        return wake

    def take(self) -> list[Seen]:
        """What has been seen since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._seen.get_nowait())
        return found

    def close(self, timeout: float = 1.0) -> None:
        """End the threads."""
        self._ended.set()
        for wake in self._wakes:
            wake.set()
        for thread in self._threads:
            thread.join(timeout)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self.fd)

    def _put(self, seen: Seen) -> None:
        while not self._ended.is_set():
            try:
                self._seen.put(seen, timeout=0.2)
            except queue.Full:
                continue
            os.eventfd_write(self.fd, 1)
            return

    def _run(self, make: Any, name: str, wake: threading.Event) -> None:
        said = ""
        watch: Watch | None = None
        try:
            while not self._ended.is_set():
                try:
                    if watch is None:
                        watch = make()
                    for seen in watch.look():
                        self._put(seen)
                except (CaptureError, OSError) as error:
                    if str(error) != said:
                        said = str(error)
                        self._put((Kind.NOTE, {"level": "warn", "text": f"{name}: {error}"}))
                wake.wait(5.0 if watch is None else watch.interval)
                wake.clear()
        finally:
            if watch is not None:
                watch.close()
