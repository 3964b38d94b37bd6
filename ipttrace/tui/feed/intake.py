# SPDX-License-Identifier: GPL-2.0-only
"""From a source's bytes to frames that wait for the screen.

One thread reads and decodes; the app's thread takes the frames and is the only
one that touches the trace and its store.  The reason: drawing reads the store all
the time, so a trace that the reader feeds would need a lock, which would make keys
wait for feeding or feeding wait for drawing, and gain no speed in one interpreter.
Decoding has its own thread because it may block (in read) and releases the
interpreter lock (in read and in the checksum).

The queue is bounded in bytes: if the screen cannot keep up, the reader waits, the
pipe fills, and the agent counts records that find no room as lost.

The thread is a daemon, not one of the app's pool: the pool is joined at exit, and
a source that does not wake up would then hang the terminal.  Must not touch
widgets or the trace.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Final

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame, StreamError
from ipttrace.tui.feed.source import Source, SourceError

LIMIT: Final = 16 << 20


class Intake:
    """The reader of one source and the queue between it and the screen.

    `notify` is called from the reader's thread, at most once for each `arm`: so the
    thread that takes frames sets the pace and never misses one.
    """

    def __init__(self, source: Source, notify: Callable[[], object], limit: int = LIMIT) -> None:
        self._source = source
        self._notify = notify
        self._limit = limit
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._armed = True
        self._closed = False
        self._over = False
        self.error: str | None = None  # valid once `drained`
        self._thread = threading.Thread(target=self._run, name="ipttrace-reader", daemon=True)

    def start(self) -> None:
        """Starts the reader's thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the reader's thread is running."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> bool:
        """Whether there is a frame to take."""
        return bool(self._frames)

    @property
    def drained(self) -> bool:
        """Whether the stream is over and all its frames have been taken."""
        return self._over and not self._frames

    def take(self) -> Frame | None:
        """Returns and removes the next frame; None if none is waiting."""
        with self._changed:
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= len(frame.payload)
            self._changed.notify_all()
            return frame

    def arm(self) -> bool:
        """Asks for one call of `notify`.  True: a frame or the end is there already, no call."""
        with self._changed:
            if self._frames or self._over:
                return True
            self._armed = True
            return False

    def close(self, timeout: float = 1.0) -> bool:
        """Ends the source and the thread.  True: the thread has ended.  May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        error: str | None = None
        try:
            self._read()
        except (StreamError, SourceError) as broken:
            error = str(broken)
        except Exception as bug:  # shown on the screen, which must go on
            error = f"the reader failed: {type(bug).__name__}: {bug}"
        self._source.close()
        with self._changed:
            self.error = None if self._closed else error
            self._over = True
        self._notify_once()

    def _read(self) -> None:
        decoder = Decoder()
        with closing(self._source.chunks()) as chunks:
            for data in chunks:
                if not self._put(decoder.feed(data)):
                    return
                # The call above returns the frames before a damage; this one raises.
                # A live source may send nothing more that would make it raise.
                self._put(decoder.feed(b""))
        decoder.finish()

    def _put(self, frames: list[Frame]) -> bool:
        for frame in frames:
            with self._changed:
                while self._bytes >= self._limit and not self._closed:
                    self._changed.wait()
                if self._closed and self._bytes >= self._limit:
                    return False
                self._frames.append(frame)
                self._bytes += len(frame.payload)
            self._notify_once()
        return True

    def _notify_once(self) -> None:
        with self._changed:
            if not self._armed:
                return
            self._armed = False
        self._notify()
