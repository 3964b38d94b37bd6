# SPDX-License-Identifier: GPL-2.0-only
"""The lab's servers: web, DNS and sinks, which count what arrives.

One thread and one selector serve all.  Must not import tui, view or textual.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections import Counter
from types import TracebackType
from typing import Final

from ipttrace.lab.network.ns import NetworkError, call_in
from ipttrace.lab.traffic import packets

WEB: Final = 80
DNS: Final = 53
SINK: Final = 5001
SYSLOG: Final = 514
SYNPROXY: Final = 8888
CLOSED: Final = 7  # UDP: the firewall accepts it and no server listens
TUNNELS: Final = (packets.GRE, packets.ESP, packets.SCTP)

_PAGE: Final = b"<p>It works.</p>\n" * 64
_RESPONSE: Final = (
    b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(_PAGE)
) + _PAGE


class Server:
    """A context manager: servers in one namespace, for both families, ready once entered.

    received[(proto, port)] counts datagrams, for TCP bytes; proto is "udp",
    "tcp", or the number of an IP protocol (as text, with port 0).  Raw sockets
    receive GRE, ESP and SCTP, which the kernel would otherwise answer with ICMP
    errors.
    """

    def __init__(
        self,
        ns: str,
        *,
        tcp: tuple[int, ...] = (WEB, SINK, SYNPROXY),
        udp: tuple[int, ...] = (DNS, SYSLOG, SINK),
        raw: tuple[int, ...] = TUNNELS,
    ) -> None:
        self.ns = ns
        self.received: Counter[tuple[str, int]] = Counter()
        self._ports = {"tcp": tcp, "udp": udp, "raw": raw}
        self._selector = selectors.DefaultSelector()
        self._changed = threading.Condition()
        self._wake_send, self._wake_receive = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=f"servers in {ns}", daemon=True)

    def __enter__(self) -> Server:
        self._selector.register(self._wake_receive, selectors.EVENT_READ, ("wake", 0))
        try:
            call_in(self.ns, self._open)
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wake_send.send(b"x")
        self._thread.join()
        self._close()

    def wait_received(self, proto: str, port: int, count: int, timeout: float = 30.0) -> int:
        """Waits until count has arrived, at most timeout seconds; returns what has arrived."""
        with self._changed:
            self._changed.wait_for(lambda: self.received[proto, port] >= count, timeout)
            return self.received[proto, port]

    def _open(self) -> None:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
                continue
            for kind, ports in self._ports.items():
                for port in ports:
                    self._listen(family, address, kind, port)

    def _listen(self, family: int, address: str, kind: str, port: int) -> None:
        types = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW}
        sock = socket.socket(family, types[kind], port if kind == "raw" else 0)
        key = (str(port), 0) if kind == "raw" else (kind, port)
        self._selector.register(sock, selectors.EVENT_READ, key)
        sock.setblocking(False)
        if kind == "raw":
            return
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {kind} port {port} in {self.ns}: {error.strerror}"
            ) from None
        if kind == "tcp":
            sock.listen(64)
            self._selector.modify(sock, selectors.EVENT_READ, ("listen", port))

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                kind, port = key.data
                if kind == "wake":
                    return
                # A client may reset the connection at any point.
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    if kind == "listen":
                        client, _ = sock.accept()
                        self._selector.register(client, selectors.EVENT_READ, ("tcp", port))
                    elif kind == "tcp":
                        self._receive_stream(sock, port)
                    else:
                        self._receive_datagram(sock, kind, port)

    def _receive_stream(self, sock: socket.socket, port: int) -> None:
        try:
            data = sock.recv(1 << 18)
            self._count("tcp", port, len(data))
            if data and port == WEB:
                # The request fits in one segment, the page in the send buffer.
                sock.sendall(_RESPONSE)
                data = b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(sock)
            sock.close()

    def _receive_datagram(self, sock: socket.socket, kind: str, port: int) -> None:
        data, peer = sock.recvfrom(1 << 16)
        self._count(kind, port, 1)
        if kind == "udp" and port == DNS:
            with contextlib.suppress(OSError):
                sock.sendto(packets.dns_answer(data), peer)

    def _count(self, proto: str, port: int, number: int) -> None:
        with self._changed:
            self.received[proto, port] += number
            self._changed.notify_all()

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake_send.close()
