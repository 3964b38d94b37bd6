# SPDX-License-Identifier: GPL-2.0-only
"""Packets as bytes, and a namespace's wires over which they come from outside.

Must not make a namespace nor check rows.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from typing import Final

# What is sent on `far` is received on `near`; no device has an address.  10.9.0.0/16 and
# fd09::/16 are local, 10.7.0.0/16 and fd07::/16 behind `out`.
_SYSCTLS: Final = """\
net.ipv4.ip_forward=1
net.ipv6.conf.default.addr_gen_mode=1
net.ipv4.conf.all.rp_filter=0
net.ipv4.conf.default.rp_filter=0
"""
# A router joins a group of each device that can multicast, as new ones can, and reports it some
# seconds later (MLD), whatever they can by then: packets that no test sent.
_LATER: Final = "net.ipv6.conf.all.forwarding=1\n"
_LINKS: Final = """\
addr flush dev lo
link add near address 02:00:00:00:00:01 type veth peer name far
link add out type veth peer name sink
link set near multicast off up
link set far multicast off up
link set out multicast off up
link set sink multicast off up
route add local 10.9.0.0/16 dev lo
route add 10.7.0.0/16 dev out
route add 10.5.0.0/16 dev near
route add local fd09::/16 dev lo
route add fd07::/16 dev out
route add fd05::/16 dev near
"""


def lay_wires(run: Callable[[list[str], str], object], links: str = "") -> None:
    """Lays them in the namespace in which `run` runs a command with a text on its stdin.

    `links`: further lines for ``ip -batch``.
    """
    run(["sysctl", "-qp", "-"], _SYSCTLS)
    run(["ip", "-batch", "-"], _LINKS + links)
    run(["sysctl", "-qp", "-"], _LATER)


def transmit(packets: Iterable[bytes]) -> None:
    """Sends IP packets from outside; the calling thread is in the namespace."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("far", 0))
        for packet in packets:
            ethertype = "86dd" if packet[0] >> 4 == 6 else "0800"
            sender.send(bytes.fromhex(f"020000000001 020000000002 {ethertype}") + packet)


def ipv4(
    protocol: int, destination: str, payload: bytes, *, number: int = 1, fragment: int = 0
) -> bytes:
    """A packet from 10.5.0.5; `number`: its identification; `fragment`: its offset in bytes."""
    ends = socket.inet_aton("10.5.0.5") + socket.inet_aton(destination)
    fields = (0x45, 0, 20 + len(payload), number, fragment // 8, 64, protocol)
    head = struct.pack("!BBHHHBB", *fields)
    total = sum(struct.unpack("!9H", head + ends))
    return head + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + ends + payload


def ipv6(protocol: int, destination: str, payload: bytes) -> bytes:
    """A packet from fd05::5."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, one) for one in ("fd05::5", destination))
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


def udp(port: int, data: bytes = b"data") -> bytes:
    """A datagram to `port`, from port 4000, without a checksum."""
    return struct.pack("!HHHH", 4000, port, 8 + len(data), 0) + data


def tcp(port: int, flags: int) -> bytes:
    """A segment to `port`, from port 4000, without options and with a wrong checksum."""
    return struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 5 << 4, flags, 8192, 0, 0)


def extension(following: int, data: bytes = b"\x01\x04" + bytes(4)) -> bytes:
    """An IPv6 extension header, by default with an option that is padding (RFC 8200, 4.2)."""
    return struct.pack("!BB", following, (2 + len(data)) // 8 - 1) + data


def fragment(following: int, offset: int, number: int) -> bytes:
    """The fragment header of a last fragment at `offset` bytes (RFC 8200, 4.5)."""
    return struct.pack("!BBHI", following, 0, offset, number)
