# SPDX-License-Identifier: GPL-2.0-only
"""A namespace that receives packets from outside, as bytes, and forwards or takes them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace


@contextlib.contextmanager
def wired_namespace() -> Iterator[RulesetNamespace]:
    """What is sent on `far` is received on `near`; no device has an address.

    10.9.0.0/16 and fd09::/16 are local, 10.7.0.0/16 and fd07::/16 behind `out`.
    """
    with ruleset_namespace() as one:
        forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        one.run("sysctl", "-qw", *forward, "net.ipv6.conf.default.addr_gen_mode=1")
        pair = "type veth peer name"
        for command in (
            "ip addr flush dev lo",
            f"ip link add near address 02:00:00:00:00:01 {pair} far",
            f"ip link add out {pair} sink",
            *(f"ip link set {name} up" for name in ("near", "far", "out", "sink")),
            "ip route add local 10.9.0.0/16 dev lo",
            "ip route add 10.7.0.0/16 dev out",
            "ip route add 10.5.0.0/16 dev near",
            "ip route add local fd09::/16 dev lo",
            "ip route add fd07::/16 dev out",
            "ip route add fd05::/16 dev near",
        ):
            one.run(*command.split())
        one.run("sysctl", "-qw", *(f"net.ipv4.conf.{name}.rp_filter=0" for name in ("all", "near")))
        yield one


def send(namespace: RulesetNamespace, packet: bytes) -> None:
    """Sends an IP packet from outside."""
    ethertype = "86dd" if packet[0] >> 4 == 6 else "0800"
    frame = bytes.fromhex(f"020000000001 020000000002 {ethertype}") + packet
    with namespace.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("far", 0))
        sender.send(frame)


def ipv4(protocol: int, destination: str, payload: bytes, *, number: int = 1) -> bytes:
    """A packet from 10.5.0.5; `number`: its identification."""
    ends = socket.inet_aton("10.5.0.5") + socket.inet_aton(destination)
    fields = (0x45, 0, 20 + len(payload), number, 0, 64, protocol)
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
