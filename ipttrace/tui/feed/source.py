# SPDX-License-Identifier: GPL-2.0-only
"""Where the bytes of a stream come from: a live agent or a recorded file.

The screen depends on `Source` only; whether the far end is a process, a socket,
a virtual machine or a file is decided here and by the caller.  Must not decode
anything, touch a widget or start a process.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

PORTION: Final = 1 << 18
# How long a control line may wait for room, in ms: the screen must not hang because
# an agent has stopped reading.
SEND_MS: Final = 200
STOP: Final = b'{"cmd": "stop"}\n'  # see capture/agent.py


class SourceError(Exception):
    """The bytes broke off; the message is one line that says why."""


class Source(Protocol):
    """Bytes of one stream, read by one thread and ended by another."""

    @property
    def live(self) -> bool:
        """Whether rows come as they happen; False: a recording."""
        ...

    @property
    def name(self) -> str:
        """Its name on the screen: "agent", or a path."""
        ...

    @property
    def progress(self) -> str:
        """What happens until the first bytes come, in one line; "" if nothing does."""
        ...

    def chunks(self) -> Generator[bytes, None, None]:
        """The bytes as they come; blocks.  Called once.

        Ends with the stream and soon after `close`.  Raises SourceError if the
        bytes break off.
        """
        ...

    def stop(self) -> bool:
        """Asks the far side to end its stream in order; must not block.

        True: it was asked, so the last books may still come.
        """
        ...

    def close(self) -> None:
        """Releases everything and makes `chunks` end.

        May be called from any thread, at any time, more than once.
        """
        ...


class _Descriptor:
    """A file descriptor that one thread reads and another may end at any moment.

    If it were closed while a thread polls it, the next file opened would get its
    number.  So `end` wakes the reader through a pipe, and the last of the two
    threads closes the descriptor.
    """

    def __init__(self, fd: int, release: Callable[[], None]) -> None:
        self._fd = fd
        self._release = release
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._reading = False
        self._ended = False
        self._released = False

    def read(self) -> Generator[bytes, None, None]:
        with self._lock:
            if self._ended:
                return
            self._reading = True
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            while not self._ended:
                events = dict(poll.poll())
                if self._ended:
                    return
                if events.get(self._fd, 0) & select.POLLNVAL:
                    raise SourceError("the stream's file descriptor was closed elsewhere")
                if self._fd not in events:
                    continue
                try:
                    data = os.read(self._fd, PORTION)
                except BlockingIOError:
                    continue
                if not data:
                    return
                yield data
        except OSError as error:
            raise SourceError(f"reading the stream failed: {error.strerror or error}") from error
        finally:
            with self._lock:
                self._reading = False
                self._ended = True
            self._release_once()

    def end(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            reading = self._reading
            if reading:
                os.write(self._wake_write, b"\0")
        if not reading:
            self._release_once()

    def _release_once(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._release()


class StreamSource:
    """The stream of a live agent: a pipe, socket or serial line, or any file object.

    `stream` must be unbuffered or not read from yet: bytes in a Python buffer would
    be missed.  Without a `fileno` (a BytesIO) it is read directly.  `control`, the
    control line, may be the same socket as `stream`; when it ends, the agent exits.
    `farewell` is the control line's command to end the trace.  `on_close` is called
    once, when everything is released: the place to reap a process.
    """

    live = True

    def __init__(
        self,
        stream: BinaryIO | socket.socket,
        control: BinaryIO | socket.socket | None = None,
        *,
        name: str = "agent",
        farewell: bytes = STOP,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.progress = ""
        self._stream = stream
        self._control = control
        self._farewell = farewell
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closed = False
        self._descriptor: _Descriptor | None = None
        try:
            self._descriptor = _Descriptor(stream.fileno(), self._release)
        except OSError:  # io.UnsupportedOperation too: a stream in memory
            if isinstance(stream, socket.socket):
                raise

    def chunks(self) -> Generator[bytes, None, None]:
        """See `Source`."""
        if self._descriptor is not None:
            yield from self._descriptor.read()
            return
        assert not isinstance(self._stream, socket.socket)
        while not self._closed:
            try:
                data = self._stream.read(PORTION)
            except (OSError, ValueError) as error:
                raise SourceError(f"reading the stream failed: {error}") from error
            if not data:
                return
            yield data

    def _release(self) -> None:
        # Before the socket is closed, which may also be the control line: a reader
        # that gives up on a damaged stream must not leave the agent armed.
        self.stop()
        self._stream.close()

    def send(self, line: bytes) -> bool:
        """Sends one command, newline included, to the agent.  False: it could not be sent.

        `line` must be short (512 bytes): more could block.
        """
        with self._lock:
            if self._control is None:
                return False
            try:
                fd = self._control.fileno()
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                ready = dict(poll.poll(SEND_MS)).get(fd, 0)
                return bool(ready & select.POLLOUT) and os.write(fd, line) == len(line)
            except (OSError, ValueError):
                return False

    def stop(self) -> bool:
        """See `Source`.  Sends the farewell and closes the control line."""
        asked = self.send(self._farewell)
        with self._lock:
            control, self._control = self._control, None
            if control is None:
                return False
            try:
                if isinstance(control, socket.socket):
                    control.shutdown(socket.SHUT_WR)
                    if control is not self._stream:
                        control.close()
                else:
                    control.close()
            except OSError:
                pass
        return asked

    def close(self) -> None:
        """See `Source`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.stop()
        if self._descriptor is not None:
            self._descriptor.end()
        if self._on_close is not None:
            self._on_close()


class FileSource:
    """A recorded stream, read as fast as the screen accepts it."""

    live = False

    def __init__(self, path: str | Path) -> None:
        """Raises OSError if `path` cannot be opened or is a directory."""
        self.name = str(path)
        # A FIFO without a writer must not hang here.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode):
            os.close(fd)
            raise IsADirectoryError(21, "Is a directory", self.name)
        self._size = about.st_size
        self._read = 0
        self._descriptor = _Descriptor(fd, lambda: os.close(fd))

    @property
    def progress(self) -> str:
        """How much of the file has been read."""
        if not 0 < self._read < self._size:
            return ""
        return f"{self._read * 100 // self._size}% of {self._size / 1e6:,.1f} MB read"

    def chunks(self) -> Generator[bytes, None, None]:
        """See `Source`."""
        for data in self._descriptor.read():
            self._read += len(data)
            yield data

    def stop(self) -> bool:
        """See `Source`.  A file has no far side."""
        return False

    def close(self) -> None:
        """See `Source`."""
        self._descriptor.end()
