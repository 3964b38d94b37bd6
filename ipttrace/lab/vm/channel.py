# SPDX-License-Identifier: GPL-2.0-only
"""One direction of a virtio-serial port, with an end.

A port has no end of file on the host: bytes may still wait in QEMU when the
guest's writer is long gone, and the ports of a machine overtake one another.
So the guest's init writes a random token behind the last byte of each port;
it is cut off here.

Must not know what the bytes mean.
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
    """Takes bytes, gives them on, and notices the token that ends them."""

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.ended = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What of ``data`` is certainly in front of the token."""
        if self.ended:
            return b""
        data = self._held + data
        at = data.find(self.token)
        if at >= 0:
            self.ended = True
            self._held = b""
            return data[:at]
        keep = self._kept(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep] if keep else data

    def flush(self) -> bytes:
        """What was held back, once it is certain that nothing follows."""
        held, self._held = self._held, b""
        return held

    def _kept(self, data: bytes) -> int:
        """Length of the longest end of ``data`` that the token starts with."""
        for length in range(min(len(self.token) - 1, len(data)), 0, -1):
            if data.endswith(self.token[:length]):
                return length
        return 0


class Channel(threading.Thread):
    """Carries a port's bytes to ``sink`` until the token, or the end of the machine.

    ``done`` is called once at the end, with whether the token was seen.  A
    sink that raises OSError (a closed pipe) ends the delivery, not the
    machine: the error is in ``error``, and what follows is dropped.
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
    """Gives the stream's port to the user as a socket that ends when the guest's command ends."""

    def __init__(self, port: socket.socket, token: bytes, done: Callable[[bool], object]) -> None:
        self.user, self._inner = socket.socketpair()
        for end in (self.user, self._inner):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._port = port
        self._to_user = Channel("stream", port, token, self._inner.sendall, self._finish)
        self._to_guest = threading.Thread(target=self._carry, name="vm-control", daemon=True)
        self._told = done
        self._finished = False

    def start(self) -> None:
        self._to_user.start()
        self._to_guest.start()

    def _finish(self, whole: bool) -> None:
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)
        self._told(whole)

    def _carry(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._inner.recv(CHUNK):
                self._port.sendall(data)

    def close(self) -> None:
        """End both directions; what the user's end holds already stays readable."""
        for end in (self._inner, self._port):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in (self._to_user, self._to_guest):
            if thread.ident is not None:
                thread.join()
        self._inner.close()


class Lines:
    """A sink that cuts bytes into lines."""

    def __init__(self, take: Callable[[str], object]) -> None:
        self._take = take
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-65536:]
        for line in lines:
            self._take(line.decode(errors="replace").rstrip("\r"))


def sink(file: IO[bytes] | None, descriptor: int) -> Callable[[bytes], object]:
    """Takes bytes to ``file``, at once; without one to ``descriptor``."""

    def to_file(data: bytes) -> None:
        assert file is not None
        file.write(data)
        file.flush()

    def to_descriptor(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return to_descriptor if file is None else to_file
