# SPDX-License-Identifier: GPL-2.0-only
"""What all senders share: address families, and sending a list of messages.

Must not create sockets.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipttrace.lab.network.ns import NetworkError

# Long: a guest without KVM may stall for seconds.
REPLY_TIMEOUT: Final = 20.0  # s


@dataclass(frozen=True, slots=True)
class Counts:
    """Packets sent and received.

    blocked: how many of the sent packets the sender's own OUTPUT rules dropped;
    they traversed these rules, so they count as sent.
    """

    sent: int
    received: int = 0
    blocked: int = 0


def family_of(address: str) -> int:
    """Returns 4 or 6.  Raises NetworkError if address is not an IP address."""
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        raise NetworkError(f"not an IP address: {address!r}") from None


def address_family(address: str) -> int:
    """Returns AF_INET or AF_INET6.  Raises NetworkError if address is not an IP address."""
    return socket.AF_INET if family_of(address) == 4 else socket.AF_INET6


def set_ttl(sock: socket.socket, ttl: int | None) -> None:
    """Sets the TTL or hop limit of sent packets; None keeps the default."""
    if ttl is not None:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)


def send_all(
    sock: socket.socket, messages: Iterable[bytes], dst: str, port: int, rate: float | None = None
) -> Counts:
    """Sends each message in a packet of its own, at most rate packets/s."""
    sent = blocked = 0
    start = time.monotonic()
    for message in messages:
        if rate:
            # The pace, not a wait for an event.
            time.sleep(max(0.0, start + sent / rate - time.monotonic()))
        try:
            sock.sendto(message, (dst, port))
        except PermissionError:
            blocked += 1
        sent += 1
    return Counts(sent, 0, blocked)
