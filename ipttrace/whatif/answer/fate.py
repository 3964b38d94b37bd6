# SPDX-License-Identifier: GPL-2.0-only
"""What became of a packet: it left, was delivered, or died, and where.

Pure: from rows, frames that left the copy, and the kernel's counters.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipttrace.trace.row import Row
from ipttrace.whatif.packet.repair import upper_layer
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, TCP, UDP

_DIED: Final = {
    "TcpExtIPReversePathFilter": "rp_filter: its source is not reached through this device",
    "IpExtInNoRoutes": "no route to its destination",
    "Ip6InNoRoutes": "no route to its destination",
    "IpOutNoRoutes": "no route to its destination",
    "Ip6OutNoRoutes": "no route to its destination",
    "IpInHdrErrors": "its TTL ends here, or its header is wrong",
    "Ip6InHdrErrors": "its hop limit ends here, or its header is wrong",
    "IpFragFails": "too large for the device that it leaves through, and may not be fragmented",
    "Ip6InTooBigErrors": "too large for the device that it leaves through",
    "IpInAddrErrors": "not for this host, and not to be forwarded",
    "Ip6InAddrErrors": "not for this host, and not to be forwarded",
    "IpExtInTruncatedPkts": "it is shorter than its header says",
    "Ip6InTruncatedPkts": "it is shorter than its header says",
    "IpExtInCsumErrors": "its checksum is wrong",
    "TcpExtArpFilter": "its destination's neighbour is not to be asked for",
}
_DELIVERED: Final = ("IpInDelivers", "Ip6InDelivers")
_ETHERTYPES: Final = (b"\x08\x00", b"\x86\xdd")


@dataclass(frozen=True, slots=True)
class Left:
    """A packet that left the copy, with its headers as they were then."""

    device: str
    mac_src: str
    mac_dst: str
    vlan: tuple[int, ...]
    proto: int
    src: str
    sport: int | None
    dst: str
    dport: int | None
    ttl: int


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a packet.

    `verdict`: ACCEPT or DROP.  `how`: left, delivered, rule (dropped by `row`), queue, kernel
    (discarded outside the rules, `reason` says why).  `left`: every copy of it that left.
    """

    verdict: str
    how: str
    reason: str = ""
    row: Row | None = None
    left: tuple[Left, ...] = ()


def judge(
    sent: bytes,
    rows: Sequence[Row],
    seen: Sequence[tuple[str, bytes]],
    counters: Mapping[str, int],
    refused: Sequence[str],
) -> Fate:
    """Returns the fate of the IP packet `sent`.

    `rows`: of the packet itself, in order; `seen`: device and frame; `refused`: why the kernel
    did not send it.
    """
    last = rows[-1] if rows else None
    left = tuple(_left(device, frame) for device, frame in seen if is_same(sent, network(frame)))
    if last is not None and last.verdict == "QUEUE":
        return Fate("DROP", "queue", "a program decides (NFQUEUE); the copy has none", last)
    if last is not None and last.verdict not in ("ACCEPT", None, "REPEAT"):
        how = "" if last.verdict == "DROP" else f"{last.verdict}: the rule took the packet"
        return Fate("DROP", "rule", how, last, left if last.verdict != "DROP" else ())
    if left:
        return Fate("ACCEPT", "left", "", last, left)
    if last is not None and last.verdict is None and not _went_on(counters):
        return Fate("DROP", "rule", "", last)
    if any(counters.get(name) for name in _DELIVERED) and not any(map(counters.get, _DIED)):
        return Fate("ACCEPT", "delivered", "", last)
    reasons = [text for name, text in _DIED.items() if counters.get(name)]
    reason = reasons[0] if reasons else ""
    if refused and not reason:
        reason = refused[0].lower()
    return Fate("DROP", "kernel", reason, last)


def _went_on(counters: Mapping[str, int]) -> bool:
    return any(counters.get(name) for name in (*_DELIVERED, *_DIED))


def network(frame: bytes) -> bytes:
    """Returns the IP packet in an Ethernet frame, b"" if there is none."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 2] not in _ETHERTYPES:
        return b""
    data = frame[at + 2 :]
    least = 20 if data[:1] and data[0] >> 4 == 4 else 40
    return data if len(data) >= least else b""


def is_same(sent: bytes, seen: bytes) -> bool:
    """Whether `seen` is the packet `sent`, or its first fragment, after NAT and other changes."""
    if not seen or seen[0] >> 4 != sent[0] >> 4:
        return False
    proto, at, _ = upper_layer(sent)
    other, there, _ = upper_layer(seen)
    if proto != other:
        return False
    a, b = sent[at:], seen[there:]
    if proto == TCP:
        return a[4:8] == b[4:8] and len(b) >= 8
    if proto == UDP:
        a, b = a[8:], b[8:]
    elif proto in (ICMP, ICMPV6):
        if a[:2] != b[:2]:
            return False
        # NAT changes the identifier, and in errors the packet that they are about.
        errors = a[:1] and (a[0] in (3, 4, 5, 11, 12) if proto == ICMP else a[0] < 128)
        a, b = (b"", b"") if errors else (a[6:], b[6:])
    elif proto in PORTS:
        a, b = a[4:8], b[4:8]
    size = min(len(a), len(b))
    return a[:size] == b[:size]


def _left(device: str, frame: bytes) -> Left:
    data = network(frame)
    tags = []
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        tags.append(struct.unpack_from("!H", frame, at + 2)[0] & 0xFFF)
        at += 4
    four = data[0] >> 4 == 4
    src, dst = (data[12:16], data[16:20]) if four else (data[8:24], data[24:40])
    proto, upper, _ = upper_layer(data)
    ports: tuple[int | None, int | None] = (None, None)
    if proto in PORTS and len(data) >= upper + 4:
        ports = struct.unpack_from("!HH", data, upper)
    return Left(
        device,
        frame[6:12].hex(":"),
        frame[:6].hex(":"),
        tuple(tags),
        proto,
        str(ipaddress.ip_address(src)),
        ports[0],
        str(ipaddress.ip_address(dst)),
        ports[1],
        data[8] if four else data[7],
    )


def as_object(left: Left) -> dict[str, Any]:
    """Returns it for JSON."""
    return {
        "device": left.device,
        "mac_src": left.mac_src,
        "mac_dst": left.mac_dst,
        "vlan": list(left.vlan),
        "src": left.src,
        "sport": left.sport,
        "dst": left.dst,
        "dport": left.dport,
        "ttl": left.ttl,
    }
