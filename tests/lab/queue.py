# SPDX-License-Identifier: GPL-2.0-only
"""Holds packets that a rule gives to NFQUEUE.  Must not change them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_NETLINK_NETFILTER = 12
_CONFIG, _VERDICT = 3 << 8 | 2, 3 << 8 | 1  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_*
_REQUEST, _ACK = 1, 4
_ACCEPT = 1


class Queue:
    """One queue of the calling thread's namespace."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self._number = number
        self._link = link
        self._send(_CONFIG, 1, struct.pack(">BxH", 1, 0))  # NFQA_CFG_CMD: bind
        self._send(_CONFIG, 2, struct.pack(">IB", 0, 1))  # NFQA_CFG_PARAMS: no packet data

    def _send(self, kind: int, attribute: int, value: bytes) -> None:
        value = struct.pack("=HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
        body = struct.pack(">BBH", 0, 0, self._number) + value
        flags = _REQUEST | _ACK if kind == _CONFIG else _REQUEST
        self._link.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body)
        if kind == _CONFIG:
            assert struct.unpack_from("=i", self._link.recv(4096), 16) == (0,)

    def accept_one(self) -> None:
        """Waits for a packet, and lets it go on."""
        # Its first attribute is NFQA_PACKET_HDR, which begins with the packet's number.
        (number,) = struct.unpack_from(">I", self._link.recv(1 << 16), 24)
        self._send(_VERDICT, 2, struct.pack(">II", _ACCEPT, number))


@contextmanager
def queue(number: int) -> Iterator[Queue]:
    """Of the calling thread's namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link:
        link.settimeout(60)  # against a hang only
        link.bind((0, 0))
        yield Queue(number, link)
