# SPDX-License-Identifier: GPL-2.0-only
"""The bytes of a virtio-serial port, with an end of file.

On the host a port has no end of file: bytes may still be queued in QEMU after
the guest's writer has exited, and the ports of a VM have no common order.  The
guest's init therefore writes a random token after the last byte of each port;
it is removed here.

Must not interpret the bytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import IO, Final

CHUNK: Final = 1 << 18


class Tail:
    """Passes bytes through up to the token that ends them."""

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.ended = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the bytes that are known to precede the token; may hold back its start."""
        if self.ended:
            return b""
        data = self._held + data
        at = data.find(self.token)
        if at >= 0:
            self.ended = True
            self._held = b""
            return data[:at]
        keep = self._length_held(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep] if keep else data

    def flush(self) -> bytes:
        """Returns the bytes held back, once no more can follow."""
        held, self._held = self._held, b""
        return held

    def _length_held(self, data: bytes) -> int:
        """Returns the length of the longest suffix of ``data`` that is a prefix of the token."""
        for length in range(min(len(self.token) - 1, len(data)), 0, -1):
            if data.endswith(self.token[:length]):
                return length
        return 0


class Channel(threading.Thread):
    """Delivers a port's bytes to ``sink`` until the token, or until the VM ends.

    ``done`` is called at the end, with whether the token was seen.  If the sink
    raises OSError (a closed pipe), the error is kept in ``error``, ``done(False)``
    is called at once, and later bytes are dropped; the VM keeps running.
    """

    def __init__(
        self,
        name: str,
        port: socket.socket,
        token: bytes,
        sink: Callable[[bytes], object],
        done: Callable[[bool], object],
    ) -> None:
        super().__init__(name=f"vm-{name}", daemon=True)
        self.error: OSError | None = None
        self._port = port
        self._tail = Tail(token)
        self._sink = sink
        self._done = done

    def run(self) -> None:
        while not self._tail.ended:
            try:
                data = self._port.recv(CHUNK)
            except OSError:
                break
            if not data:
                break
            self._deliver(self._tail.feed(data))
        self._deliver(self._tail.flush())
        self._done(self._tail.ended)

    def _deliver(self, data: bytes) -> None:
        if not data or self.error:
            return
        try:
            self._sink(data)
        except OSError as error:
            self.error = error
            self._done(False)


class Bridge:
    """Connects the stream's port to a socket, ``user``, that ends with the guest's command."""

    def __init__(self, port: socket.socket, token: bytes) -> None:
        self.user, self._inner = socket.socketpair()
        for end in (self.user, self._inner):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._port = port
        self._to_user = Channel("stream", port, token, self._inner.sendall, self._finish)
        self._to_guest = threading.Thread(target=self._forward, name="vm-control", daemon=True)

    def start(self) -> None:
        """Starts a thread for each direction."""
        self._to_user.start()
        self._to_guest.start()

    def _finish(self, complete: bool) -> None:
        with contextlib.suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)

    def _forward(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._inner.recv(CHUNK):
                self._port.sendall(data)

    def close(self) -> None:
        """Ends both directions; what the user's end has already received stays readable."""
        for end in (self._inner, self._port):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in (self._to_user, self._to_guest):
            if thread.ident is not None:
                thread.join()
        self._inner.close()


class LineSink:
    """A sink that calls ``receive`` with each line, without its end."""

    def __init__(self, receive: Callable[[str], object]) -> None:
        self._receive = receive
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-65536:]
        for line in lines:
            self._receive(line.decode(errors="replace").rstrip("\r"))


def byte_sink(file: IO[bytes] | None, descriptor: int) -> Callable[[bytes], object]:
    """Returns a sink that writes to ``file`` and flushes; without a file, to ``descriptor``."""

    def to_file(data: bytes) -> None:
        assert file is not None
        file.write(data)
        file.flush()

    def to_descriptor(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return to_descriptor if file is None else to_file
