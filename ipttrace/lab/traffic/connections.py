# SPDX-License-Identifier: GPL-2.0-only
"""Opens TCP connections, as a client does.

Must not connect to other addresses than it is called with.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ipttrace.lab.network.ns import socket_in
from ipttrace.lab.traffic.sockets import REPLY_TIMEOUT, address_family


@dataclass(frozen=True, slots=True)
class Connection:
    """The outcome of a TCP connection: open, refused, unreachable, filtered (no answer), broken."""

    outcome: str
    sent: int = 0  # bytes of payload
    received: int = 0


def tcp(
    ns: str,
    dst: str,
    port: int,
    *,
    send: bytes = b"",
    receive: bool = False,
    abort: bool = False,
    timeout: float = REPLY_TIMEOUT,
) -> Connection:
    """Connects, sends, reads to the end if receive is set, closes.

    abort closes with a reset instead of sending, so the connection is exactly
    SYN, SYN+ACK, ACK, RST.  The outcome is "filtered" after timeout seconds; the
    kernel retransmits its SYN after one.
    """
    order = _on_one_cpu() if abort else contextlib.nullcontext()
    with order, socket_in(ns, address_family(dst), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((dst, port))
        except TimeoutError:
            return Connection("filtered")
        except ConnectionRefusedError:
            return Connection("refused")
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                return Connection("filtered")
            return Connection("unreachable")
        if abort:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Connection("open")
        received = 0
        try:
            sock.sendall(send)
            if receive:
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(1 << 16):
                    received += len(data)
        except OSError:
            return Connection("broken", 0, received)
        return Connection("open", len(send), received)


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keeps this thread on one CPU, as each CPU has its own queue between namespaces.

    Otherwise the reset may overtake the ACK, which the server would answer with a
    reset of its own.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def web(ns: str, dst: str, port: int) -> Connection:
    """Fetches a page from a web server."""
    return tcp(ns, dst, port, send=b"GET / HTTP/1.0\r\nHost: lab\r\n\r\n", receive=True)
