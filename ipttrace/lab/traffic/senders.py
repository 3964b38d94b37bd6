# SPDX-License-Identifier: GPL-2.0-only
"""Sends packets of each kind; every function returns the exact number sent.

Must not send to other addresses than it is called with.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from typing import Final

from ipttrace.lab.network.ns import socket_in
from ipttrace.lab.traffic import packets
from ipttrace.lab.traffic.sockets import (
    REPLY_TIMEOUT,
    Counts,
    address_family,
    family_of,
    send_all,
    set_ttl,
)
from ipttrace.ready import readable

_IPV6_CHECKSUM: Final = 7  # include/uapi/linux/in6.h
_idents = itertools.count(os.getpid() & 0x3FFF)
_ports = itertools.count(20000)


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
    timeout: float = REPLY_TIMEOUT,
) -> Counts:
    """Sends echo requests with one ident, so of one connection, each after the last one's reply.

    wait=False does not wait for replies.  destination_options adds an IPv6
    destination options header.  timeout (s) is for each reply; after the first
    missing one, requests are sent without waiting.
    """
    family = family_of(dst)
    proto = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    ident = next(_idents) & 0xFFFF if ident is None else ident
    received = blocked = 0
    with socket_in(ns, address_family(dst), socket.SOCK_RAW, proto) as sock:
        if source:
            sock.bind((source, 0))
        if destination_options:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, packets.DESTINATION_OPTIONS)
        for seq in range(1, count + 1):
            message = packets.echo(family, ident, seq, bytes(size))
            blocked += send_all(sock, [message], dst, 0).blocked
            if wait:
                wait = _await_reply(sock, family, dst, ident, seq, timeout)
                received += wait
    return Counts(count, received, blocked)


def _await_reply(
    sock: socket.socket, family: int, dst: str, ident: int, seq: int, timeout: float
) -> bool:
    deadline = time.monotonic() + timeout
    while readable(sock, timeout=max(0.0, deadline - time.monotonic())):
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
    """Sends datagrams from one socket, so of one connection, at rate packets/s or unpaced.

    A payload above the link's 1472 (IPv6: 1452) bytes is sent in fragments.
    """
    with socket_in(ns, address_family(dst), socket.SOCK_DGRAM) as sock:
        sock.bind((source, sport))
        set_ttl(sock, ttl)
        return send_all(sock, itertools.repeat(payload, count), dst, port, rate)


def ask(ns: str, dst: str, port: int, count: int = 1, timeout: float = REPLY_TIMEOUT) -> Counts:
    """Sends DNS queries from one socket, each after the last one's answer."""
    received = 0
    with socket_in(ns, address_family(dst), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        for ident in range(1, count + 1):
            sock.sendto(packets.dns_query(ident), (dst, port))
            try:
                received += sock.recv(4096)[:2] == struct.pack("!H", ident)
            except TimeoutError:
                return Counts(ident, received)
    return Counts(count, received)


def syn(ns: str, dst: str, port: int, count: int, *, source: str = "") -> Counts:
    """Sends SYNs from different ports, so each of a new connection, without retransmissions."""
    with socket_in(ns, address_family(dst), socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        if source:
            sock.bind((source, 0))
        source = source or _source_address(ns, dst)
        if sock.family == socket.AF_INET6:
            # The kernel fills the checksum in at this offset.
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 16)
        messages = (
            packets.tcp_syn(source, 20000 + next(_ports) % 40000, dst, port, seq)
            for seq in range(1, count + 1)
        )
        return send_all(sock, messages, dst, 0)


def _source_address(ns: str, dst: str) -> str:
    # Connecting a UDP socket selects the source address and sends nothing.
    with socket_in(ns, address_family(dst), socket.SOCK_DGRAM) as sock:
        sock.connect((dst, 9))
        return str(sock.getsockname()[0])


def gre(ns: str, dst: str, count: int) -> Counts:
    """Sends GRE packets, each around a small IPv4 packet."""
    return _send_raw(ns, dst, packets.GRE, [packets.gre(packets.inner_ipv4())] * count)


def esp(ns: str, dst: str, count: int, spi: int = 0x1001) -> Counts:
    """Sends ESP packets of one security association."""
    messages = [packets.esp(spi, seq) for seq in range(1, count + 1)]
    return _send_raw(ns, dst, packets.ESP, messages)


def sctp(ns: str, dst: str, port: int, count: int) -> Counts:
    """Sends SCTP INIT chunks, each of a new association."""
    messages = [
        packets.sctp_init(20000 + next(_ports) % 40000, port, 0x5C000000 + seq)
        for seq in range(1, count + 1)
    ]
    return _send_raw(ns, dst, packets.SCTP, messages)


def _send_raw(ns: str, dst: str, proto: int, messages: list[bytes]) -> Counts:
    with socket_in(ns, address_family(dst), socket.SOCK_RAW, proto) as sock:
        return send_all(sock, messages, dst, 0)
