# SPDX-License-Identifier: GPL-2.0-only
"""A packet as described by words or found in a recording.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58
SCTP: Final = 132
PORTS: Final = (TCP, UDP, SCTP, 33, 136)  # protocols whose header begins with two ports

FLAGS: Final = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
"""TCP flags to their bits, RFC 9293."""

Ends = tuple[str, int | None, str, int | None]
"""Source, its port, destination, its port; ports are None without ports."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A conntrack entry that is to exist before the packet comes.

    `original` and `reply` are its two directions; `reply` is None if it is to be what the
    rules make of the connection's first packet.  `marks`: its mark and zone.
    """

    original: Ends
    reply: Ends | None
    proto: int
    mark: int = 0
    zone: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """What to send.  None: to be chosen.

    `device` is where it comes in; an outgoing packet (`out`) is sent by this host.  `state` is
    what connection tracking is to find: new, established, related; `is_reply`: the packet goes
    against the direction of its connection's first packet, of which `original` may have the
    addresses.  `raw`: the bytes of an IP packet, which make all other values of headers
    irrelevant; `connection`: the entry it had, if that is known.
    """

    family: int = 4
    proto: int = TCP
    src: str | None = None
    sport: int | None = None
    dst: str = ""
    dport: int | None = None
    device: str = ""
    out: bool = False
    flags: int = 2
    icmp: tuple[int, int] = (8, 0)
    state: str = "new"
    is_reply: bool = False
    original: Ends | None = None
    ttl: int = 64
    tos: int = 0
    ident: int = 1
    mark: int = 0
    ct_mark: int = 0
    ct_zone: int = 0
    mac_src: str = ""
    mac_dst: str = ""
    vlan: int | None = None
    length: int | None = None
    payload: bytes = b""
    fragment: tuple[int, bool] | None = None  # offset in bytes, more follow
    no_fragment: bool = False
    raw: bytes = b""
    connection: Connection | None = None
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> Ends:
        """Its addresses and ports."""
        return (self.src or "", self.sport, self.dst, self.dport)
