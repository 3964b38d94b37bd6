# SPDX-License-Identifier: GPL-2.0-only
"""Where the bytes of a stream come from: a live agent or a recorded file.

The screen knows only `Source`; whether the far end is a process, a socket, a
virtual machine or a file is settled here and by the caller.  Must not decode
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
# How long a control line may wait for room, in ms: the screen must not hang on
# an agent that reads no more.
SEND_MS: Final = 200
STOP: Final = b'{"cmd": "stop"}\n'  # see capture/agent.py


class SourceError(Exception):
    """The bytes broke off; one line says how."""


class Source(Protocol):
    """Bytes of one stream, read by one thread and ended by another."""

    @property
    def live(self) -> bool:
        """Rows come as they happen; False: a recording."""
        ...

    @property
    def name(self) -> str:
        """For a person: "agent", a path, …"""
        ...

    @property
    def progress(self) -> str:
        """What is being done until the first bytes come; "" when nothing is."""
        ...

    def chunks(self) -> Generator[bytes, None, None]:
        """The bytes as they come; blocks.  Called once.

        Ends where the stream ends and soon after `close`.  Raises SourceError
        when the bytes break off.
        """
        ...

    def stop(self) -> bool:
        """Ask the far side to end its stream in order; must not block.

        True: it was asked, so the last books may still come.
        """
        ...

    def close(self) -> None:
        """Let go of everything and make `chunks` end.  From any thread, at any time, again."""
        ...


class _Descriptor:
    """A descriptor that one thread reads and another may end at any moment.

    Closing a descriptor under a thread that polls it would hand its number to
    the next file opened; so `end` wakes the reader by a pipe, and whoever is
    last closes.
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
                    raise SourceError("the stream was closed by somebody else")
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
            self._let_go()

    def end(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            reading = self._reading
            if reading:
                os.write(self._wake_write, b"\0")
        if not reading:
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._release()


class StreamSource:
    """The stream of a live agent: a pipe, socket or serial line, or any file object.

    `stream` must be unbuffered, or unread so far: what sits in a Python buffer
    is not seen.  Without a `fileno` (a BytesIO) it is simply read.  `control`,
    if given, is written to and may be the same socket as `stream`; its end
    tells the agent to go.  `farewell` is the line that ends the trace in order.
    `on_close` is called once, when all is let go of: the place to reap a process.
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
        # Before the socket that may be both goes: a reader that gives up on a
        # damaged stream must not leave the agent armed.
        self.stop()
        self._stream.close()

    def send(self, line: bytes) -> bool:
        """One control line to the agent, newline included; False when it does not take it.

        Must be short (512 bytes): longer ones could block.
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
        """See `Source`.  Sends the farewell and ends the control line."""
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
    """A recorded stream, read as fast as the screen takes it."""

    live = False

    def __init__(self, path: str | Path) -> None:
        """Raises OSError when `path` cannot be opened."""
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
        """See `Source`.  A file has nobody to ask."""
        return False

    def close(self) -> None:
        """See `Source`."""
        self._descriptor.end()
