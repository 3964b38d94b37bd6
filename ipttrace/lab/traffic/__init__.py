# SPDX-License-Identifier: GPL-2.0-only
"""The traffic generator: every function says exactly how much it sent.

Sockets are made inside a namespace given by name; the caller stays where it is.
`python -m ipttrace.lab.traffic --help` starts each from a shell.  Sends nothing
but what it is asked for, so give it addresses of the lab network only.  Must not
import a user interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ipttrace.lab.network.ns import NetworkError, call_in, socket_in
from ipttrace.lab.traffic import packets

# Long, because a guest without KVM may stand still for seconds.
REPLY_WAIT: Final = 20.0
_IPV6_CHECKSUM: Final = 7  # include/uapi/linux/in6.h
_idents = itertools.count(os.getpid() & 0x3FFF)
_ports = itertools.count(20000)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was sent and what came back, in packets.

    blocked: of the sent ones, those that the sender's own OUTPUT rules refused
    (they were handed to the rules all the same, so they count as sent).
    """

    sent: int
    received: int = 0
    blocked: int = 0


@dataclass(frozen=True, slots=True)
class Connection:
    """How a TCP connection went: open, refused, unreachable, or filtered (no answer)."""

    outcome: str
    sent: int = 0  # bytes of payload
    received: int = 0


def family_of(address: str) -> int:
    """4 or 6.  Raises NetworkError if address is not one."""
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        raise NetworkError(f"not an IP address: {address!r}") from None


def _af(address: str) -> int:
    return socket.AF_INET if family_of(address) == 4 else socket.AF_INET6


def _set_ttl(sock: socket.socket, ttl: int | None) -> None:
    if ttl is not None:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)


def _send_all(
    sock: socket.socket, messages: Iterable[bytes], dst: str, port: int, rate: float | None = None
) -> Counts:
    """Send each message; rate is packets/s."""
    sent = blocked = 0
    start = time.monotonic()
    for message in messages:
        if rate:
            # Pacing, not waiting for anything.
            time.sleep(max(0.0, start + sent / rate - time.monotonic()))
        try:
            sock.sendto(message, (dst, port))
        except PermissionError:
            blocked += 1
        sent += 1
    return Counts(sent, 0, blocked)


def ping(
    ns: str,
    dst: str,
    count: int,
    *,
    source: str = "",
    ident: int | None = None,
    size: int = 56,
    wait: bool = True,
    destination_options: bool = False,
    timeout: float = REPLY_WAIT,
) -> Counts:
    """Echo requests, each after the answer to the one before; one ident, so one connection.

    wait=False sends them without waiting for answers.  destination_options puts
    an IPv6 destination options header in front.  timeout (s) is for each answer;
    with the first that does not come the waiting ends, not the sending.
    """
    family = family_of(dst)
    proto = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    ident = next(_idents) & 0xFFFF if ident is None else ident
    received = blocked = 0
    with socket_in(ns, _af(dst), socket.SOCK_RAW, proto) as sock:
        if source:
            sock.bind((source, 0))
        if destination_options:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, packets.DESTINATION_OPTIONS)
        for seq in range(1, count + 1):
            message = packets.echo(family, ident, seq, bytes(size))
            blocked += _send_all(sock, [message], dst, 0).blocked
            if wait:
                wait = _reply(sock, family, dst, ident, seq, timeout)
                received += wait
    return Counts(count, received, blocked)


def _reply(
    sock: socket.socket, family: int, dst: str, ident: int, seq: int, timeout: float
) -> bool:
    deadline = time.monotonic() + timeout
    while select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data, peer = sock.recvfrom(65536)
        at = (data[0] & 15) * 4 if family == 4 else 0
        if peer[0] != dst or len(data) < at + 8:
            continue
        kind, _, _, reply_ident, reply_seq = struct.unpack_from("!BBHHH", data, at)
        if (kind, reply_ident, reply_seq) == (packets.ICMP_REPLY[family], ident, seq):
            return True
    return False


def udp(
    ns: str,
    dst: str,
    port: int,
    count: int,
    *,
    rate: float | None = None,
    payload: bytes = b"ipttrace",
    source: str = "",
    sport: int = 0,
    ttl: int | None = None,
) -> Counts:
    """Datagrams from one socket, so one connection; rate in packets/s, None: as they go.

    A payload larger than the link's 1472 (IPv6: 1452) bytes leaves in fragments.
    """
    with socket_in(ns, _af(dst), socket.SOCK_DGRAM) as sock:
        sock.bind((source, sport))
        _set_ttl(sock, ttl)
        return _send_all(sock, itertools.repeat(payload, count), dst, port, rate)


def ask(ns: str, dst: str, port: int, count: int = 1, timeout: float = REPLY_WAIT) -> Counts:
    """DNS questions, each after the answer to the one before, from one socket."""
    received = 0
    with socket_in(ns, _af(dst), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        for ident in range(1, count + 1):
            sock.sendto(packets.dns_query(ident), (dst, port))
            try:
                received += sock.recv(4096)[:2] == struct.pack("!H", ident)
            except TimeoutError:
                return Counts(ident, received)
    return Counts(count, received)


def tcp(
    ns: str,
    dst: str,
    port: int,
    *,
    send: bytes = b"",
    receive: bool = False,
    abort: bool = False,
    timeout: float = REPLY_WAIT,
) -> Connection:
    """Connect, send, read to the end if receive is set, close.

    abort closes with a reset: a connection that sends nothing is then SYN,
    SYN+ACK, ACK, RST and no more.  "filtered" comes after timeout seconds; the
    kernel repeats its SYN after one.
    """
    order = _in_order() if abort else contextlib.nullcontext()
    with order, socket_in(ns, _af(dst), socket.SOCK_STREAM) as sock:
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
def _in_order() -> Iterator[None]:
    """Stay on one CPU: each has a queue of its own between the namespaces.

    Else the reset may overtake the ACK, and the server answers that with a reset
    of its own.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def web(ns: str, dst: str, port: int) -> Connection:
    """Fetch a page."""
    return tcp(ns, dst, port, send=b"GET / HTTP/1.0\r\nHost: lab\r\n\r\n", receive=True)


def syn(ns: str, dst: str, port: int, count: int, *, source: str = "") -> Counts:
    """Bare SYNs, never repeated, each from a port of its own, so a new connection each."""
    with socket_in(ns, _af(dst), socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        if source:
            sock.bind((source, 0))
        source = source or _source_towards(ns, dst)
        if sock.family == socket.AF_INET6:
            # Else the kernel takes the checksum for payload; it makes it itself.
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 16)
        messages = (
            packets.tcp_syn(source, 20000 + next(_ports) % 40000, dst, port, seq)
            for seq in range(1, count + 1)
        )
        return _send_all(sock, messages, dst, 0)


def _source_towards(ns: str, dst: str) -> str:
    # Connecting a UDP socket sends nothing.
    with socket_in(ns, _af(dst), socket.SOCK_DGRAM) as sock:
        sock.connect((dst, 9))
        return str(sock.getsockname()[0])


def gre(ns: str, dst: str, count: int) -> Counts:
    """GRE packets with a small IPv4 packet in each."""
    return _protocol(ns, dst, packets.GRE, [packets.gre(packets.inner_ipv4())] * count)


def esp(ns: str, dst: str, count: int, spi: int = 0x1001) -> Counts:
    """ESP packets of one security association."""
    messages = [packets.esp(spi, seq) for seq in range(1, count + 1)]
    return _protocol(ns, dst, packets.ESP, messages)


def sctp(ns: str, dst: str, port: int, count: int) -> Counts:
    """SCTP INIT chunks, each of a new association."""
    messages = [
        packets.sctp_init(20000 + next(_ports) % 40000, port, 0x5C000000 + seq)
        for seq in range(1, count + 1)
    ]
    return _protocol(ns, dst, packets.SCTP, messages)


def _protocol(ns: str, dst: str, proto: int, messages: list[bytes]) -> Counts:
    with socket_in(ns, _af(dst), socket.SOCK_RAW, proto) as sock:
        return _send_all(sock, messages, dst, 0)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint))


def flood(
    ns: str,
    dst: str,
    port: int,
    *,
    count: int | None = None,
    duration: float | None = None,
    size: int = 18,
    batch: int = 64,
) -> Counts:
    """Datagrams of size bytes as fast as one thread can (sendmmsg(2)), from one socket.

    Ends after count packets or duration seconds, whichever comes first; sent is
    what the kernel took, exactly.
    """
    if count is None and duration is None:
        raise NetworkError("a flood needs an end: give a count or a duration")
    libc = ctypes.CDLL(None, use_errno=True)
    payload = ctypes.create_string_buffer(size)
    iov = _IoVec(ctypes.cast(payload, ctypes.c_void_p), size)
    name = ctypes.create_string_buffer(_sockaddr(dst, port))
    header = _MsgHdr(ctypes.cast(name, ctypes.c_void_p), len(name) - 1, ctypes.pointer(iov), 1)
    vector = (_MMsgHdr * batch)(*(_MMsgHdr(header, 0) for _ in range(batch)))
    end = time.monotonic() + duration if duration is not None else float("inf")
    sent = blocked = 0
    with socket_in(ns, _af(dst), socket.SOCK_DGRAM) as sock:
        while (count is None or sent < count) and time.monotonic() < end:
            wanted = batch if count is None else min(batch, count - sent)
            done = libc.sendmmsg(sock.fileno(), vector, wanted, 0)
            if done < 0:
                # The first of the batch was refused by the sender's own rules.
                number = ctypes.get_errno()
                if number == errno.EPERM:
                    done = 1
                    blocked += 1
                elif number in (errno.EINTR, errno.ENOBUFS, errno.EAGAIN):
                    continue
                else:
                    raise NetworkError(f"flood to {dst}: {os.strerror(number)}")
            sent += done
    return Counts(sent, 0, blocked)


def _sockaddr(dst: str, port: int) -> bytes:
    address = ipaddress.ip_address(dst).packed
    if len(address) == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + address + bytes(8)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
    return head + address + struct.pack("=I", 0)


def local_ports(ns: str) -> set[int]:
    """The TCP ports somebody listens on in the namespace, for messages and tests."""

    def read() -> set[int]:
        found: set[int] = set()
        for name in ("tcp", "tcp6"):
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
            found |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
        return found

    return call_in(ns, read)
