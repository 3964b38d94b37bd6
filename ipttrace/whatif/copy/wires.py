# SPDX-License-Identifier: GPL-2.0-only
"""Frames into the copy's devices, packets from the copy itself, and what leaves it.

Everything runs on one CPU, whose backlog is a queue: once a frame that was sent later has
arrived on the loopback device, those before it have been processed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from ipttrace.ready import readable
from ipttrace.whatif.errors import WhatIfError

_ALL: Final = 0x0003  # ETH_P_ALL
_SENTINEL: Final = 0x88B5  # for local experiments, IEEE 802
_OUTGOING: Final = 4  # PACKET_OUTGOING: our own
_ROUNDS: Final = 4  # a packet may go through loopback, a bridge, a VLAN
_PATIENCE: Final = 5.0  # s
_MOST_SEEN: Final = 4096
_IPV6_HDRINCL: Final = 36
_VNET_HEADER: Final = 15  # PACKET_VNET_HDR
_GSO: Final = {4: 1, 6: 4}  # VIRTIO_NET_HDR_GSO_TCPV4, TCPV6
_NEEDS_CHECKSUM: Final = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that left the copy through `device`."""

    device: str
    frame: bytes


class Wires:
    """The sockets.  Made outside; `enter` is called in the copy."""

    def __init__(self) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[:1])
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._outer = socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL))
        self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._large = socket.socket(socket.AF_PACKET, kind, 0)
        self._large.setsockopt(263, _VNET_HEADER, 1)  # SOL_PACKET
        self._count = 0

    def enter(self) -> None:
        """Opens the sockets of the copy, in which the process is now."""
        self._sentinel = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_SENTINEL)
        )
        self._raw: dict[int, socket.socket] = {}
        with contextlib.suppress(OSError):
            self._raw[4] = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with contextlib.suppress(OSError):
            six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            six.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            self._raw[6] = six

    def send_in(self, device: str, frame: bytes) -> None:
        """Sends a frame to the device.  Raises WhatIfError."""
        try:
            self._outer.sendto(frame, (device, 0))
        except OSError as error:
            raise WhatIfError(f"{device} takes no packet: {error.strerror}") from None

    def send_large(self, device: str, frame: bytes, mtu: int) -> None:
        """Sends a TCP segment larger than the device's MTU, as offloading makes them."""
        version = frame[14] >> 4
        head = 14 + ((frame[14] & 15) * 4 if version == 4 else 40)
        whole = head + (frame[head + 12] >> 4) * 4
        size = mtu - (whole - 14)
        fields = (_NEEDS_CHECKSUM, _GSO[version], whole, size, head, 16)
        segment = bytearray(frame)
        ends = frame[26:34] if version == 4 else frame[22:54]
        pseudo = ends + struct.pack("!HH", 6, len(frame) - head)
        total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        segment[head + 16 : head + 18] = struct.pack("!H", total)
        try:
            self._large.sendto(struct.pack("=BBHHHH", *fields) + segment, (device, 0))
        except OSError as error:
            raise WhatIfError(f"{device} takes no packet: {error.strerror}") from None

    def send_out(self, packet: bytes, mark: int) -> str:
        """Sends an IP packet from the copy; returns why the kernel refused it, "" if not."""
        version = packet[0] >> 4
        sender = self._raw.get(version)
        if sender is None:
            raise WhatIfError(f"this host has no IPv{version}")
        if version == 4:
            to: tuple[str, int] = (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0)
        else:
            to = (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0)
        try:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(packet, to)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def settle(self) -> None:
        """Returns once all that was sent has been processed.  Raises WhatIfError."""
        for _ in range(_ROUNDS):
            self._count += 1
            mark = struct.pack("!I", self._count)
            self._sentinel.sendto(
                bytes(12) + struct.pack("!H", _SENTINEL) + mark + bytes(42), ("lo", _SENTINEL)
            )
            deadline = time.monotonic() + _PATIENCE
            while not self._arrived(mark):
                left = deadline - time.monotonic()
                if left <= 0 or not readable(self._sentinel, timeout=left):
                    raise WhatIfError("the kernel does not process packets in time")

    def _arrived(self, mark: bytes) -> bool:
        while True:
            try:
                frame, about = self._sentinel.recvfrom(64)
            except BlockingIOError:
                return False
            if frame[14:18] == mark and about[2] != _OUTGOING:
                return True

    def seen(self) -> list[Seen]:
        """Returns the frames that have left the copy since the last call."""
        found: list[Seen] = []
        while True:
            try:
                frame, about = self._outer.recvfrom(1 << 17)
            except BlockingIOError:
                return found
            if about[2] != _OUTGOING and len(found) < _MOST_SEEN:
                found.append(Seen(about[0], frame))
