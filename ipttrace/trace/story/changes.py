# SPDX-License-Identifier: GPL-2.0-only
"""What became of a packet between two looks at it: NAT, marks, conntrack, bytes.

A look is what was seen when the packet entered a table.  Numbers that one look
cannot know are "-" and never guessed.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from ipttrace.stream import record
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row
from ipttrace.trace.store.schema import Columns

# enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h), by bit; NAT
# under the names of the targets.
STATUS: Final = (
    "EXPECTED",
    "SEEN_REPLY",
    "ASSURED",
    "CONFIRMED",
    "SNAT",
    "DNAT",
    "SEQ_ADJUST",
    "SNAT_DONE",
    "DNAT_DONE",
    "DYING",
    "FIXED_TIMEOUT",
    "TEMPLATE",
    "UNTRACKED",
    "HELPER",
    "OFFLOAD",
    "HW_OFFLOAD",
)
# That NAT has decided says nothing that SNAT and DNAT do not say.
_QUIET: Final = 0x180
# enum ip_conntrack_info, there too: these three, then the same in reply.
_STATES: Final = ("ESTABLISHED", "RELATED", "NEW")
_IS_REPLY: Final = 3
_UNTRACKED: Final = 7
_MOST_RANGES: Final = 4


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that became another; all text is safe for a terminal."""

    name: str
    text: str  # "before → after", or "+SNAT -DYING"


@dataclass(frozen=True, slots=True)
class Look:
    """A packet as it entered a table."""

    row: Row
    columns: Columns  # of the part of the store that it is in
    at: int  # its place there

    def number(self, name: str) -> int:
        """A column of one element."""
        return int(self.columns[name][self.at])

    def octets(self, name: str) -> bytes:
        """A column of several bytes."""
        octets: bytes = self.columns[name][self.at].tobytes()
        return octets

    @property
    def tracked(self) -> bool:
        """Whether conntrack has an entry for it."""
        return bool(self.number("flags") & record.F_CONNTRACK)

    @property
    def told_of_conntrack(self) -> bool:
        """Whether it is known what conntrack knew of it: over netlink it may not be."""
        known = self.tracked or self.number("ct_info") == _UNTRACKED
        return known or self.row.engine != "netlink"

    @property
    def alive(self) -> bool:
        """Whether the packet could be looked at after the table, too."""
        return bool(self.number("exit_flags") & record.EXIT_F_ALIVE)

    @property
    def bytes(self) -> bytes:
        """What was captured, from the network header on."""
        return self.octets("packet")[: min(self.number("caplen"), self.number("len"))]

    @property
    def state(self) -> str | None:
        """Conntrack's state with the direction."""
        return _state(self.tracked, self.number("ct_info"))

    @property
    def state_after(self) -> str | None:
        """The same after the table; only where alive."""
        info = self.number("ct_info_after")
        if self.tracked or info == _UNTRACKED:
            return _state(self.tracked and info != _UNTRACKED, info)
        return self.state

    def tuple(self, direction: str) -> str:
        """Conntrack's tuple, orig or reply: ``10.0.0.1:80 → 10.0.0.2:9``."""
        family, proto = self.row.family, self.number("ct_proto")
        src = _address(self.octets(f"ct_{direction}_src"), family)
        dst = _address(self.octets(f"ct_{direction}_dst"), family)
        sport, dport = self.number(f"ct_{direction}_sport"), self.number(f"ct_{direction}_dport")
        if ip.DECODED[proto] == ip.HAS_PORTS:
            return f"{endpoint(src, sport)} → {endpoint(dst, dport)}"
        both = f"{endpoint(src, None)} → {endpoint(dst, None)}"
        if proto in (ip.ICMP, ip.ICMPV6):
            # struct nf_conntrack_tuple: the identifier, then type and code.
            return f"{both} type {dport >> 8} id {sport}"
        return both


def _state(tracked: bool, info: int) -> str | None:
    if not tracked:
        return "UNTRACKED" if info == _UNTRACKED else None
    if info >= 2 * _IS_REPLY:
        return None
    return _STATES[info % _IS_REPLY] + (" reply" if info >= _IS_REPLY else "")


def _address(raw: bytes, family: int) -> str:
    if family == 4:
        return str(IPv4Address(raw[:4]))
    return str(IPv6Address(raw[:16])) if family == 6 else ""


def endpoint(of: str, port: int | None) -> str:
    """``10.0.0.1:80``, ``[::1]:80``; "-" where there is no address."""
    if not of:
        return "-"
    if port is None:
        return of
    return f"[{of}]:{port}" if ":" in of else f"{of}:{port}"


def status_names(bits: int) -> tuple[str, ...]:
    """IPS_* bits by name; those without one as a number."""
    names = [name for bit, name in enumerate(STATUS) if bits & 1 << bit]
    if rest := bits >> len(STATUS) << len(STATUS):
        names.append(f"0x{rest:x}")
    return tuple(names)


class _Changes:
    def __init__(self) -> None:
        self.found: list[Change] = []

    def note(self, name: str, before: Any, after: Any) -> None:
        if before != after:
            was = "-" if before is None else before
            now = "-" if after is None else after
            self.found.append(Change(name, f"{was} → {now}"))

    def status(self, before: int, after: int) -> None:
        came, went = after & ~before & ~_QUIET, before & ~after & ~_QUIET
        if came or went:
            names = [f"+{name}" for name in status_names(came)]
            names += [f"-{name}" for name in status_names(went)]
            self.found.append(Change("ct status", " ".join(names)))


def inside(look: Look) -> tuple[Change, ...]:
    """What the table itself changed; nothing where the packet was gone after it."""
    changes = _Changes()
    if look.alive:
        changes.note("mark", _hex(look.row.mark), _hex(look.number("mark_after")))
        changes.note("ct", look.state, look.state_after)
        if look.tracked and look.state_after != "UNTRACKED":
            changes.status(look.number("ct_status"), look.number("ct_status_after"))
    return tuple(changes.found)


def between(before: Look, after: Look) -> tuple[Change, ...]:
    """What changed from where `before` left its table to where `after` came in."""
    changes = _Changes()
    a, b = before.row, after.row
    was, now = before.bytes, after.bytes
    changes.note("netns", a.netns, b.netns)
    changes.note("src", endpoint(a.src, a.sport), endpoint(b.src, b.sport))
    changes.note("dst", endpoint(a.dst, a.dport), endpoint(b.dst, b.dport))
    changes.note("proto", a.proto or None, b.proto or None)
    changes.note("in", a.in_, b.in_)
    changes.note("out", a.out, b.out)
    left = before.number("mark_after") if before.alive else a.mark
    changes.note("mark", _hex(left), _hex(b.mark))
    changes.note("len", a.len, b.len)
    if _version(was) == _version(now) != 0:
        changes.note("ttl", _ttl(was), _ttl(now))
        old, new = _traffic_class(was), _traffic_class(now)
        changes.note("dscp", old >> 2, new >> 2)
        changes.note("ecn", old & 3, new & 3)
    _conntrack(changes, before, after)
    changes.note("icmp", a.icmp, b.icmp)
    changes.note("frag", a.frag, b.frag)
    changes.note("tcp", a.flags, b.flags)
    if text := _other_bytes(before, after, was, now):
        changes.found.append(Change("packet", text))
    return tuple(changes.found)


def _conntrack(changes: _Changes, before: Look, after: Look) -> None:
    if not (before.told_of_conntrack and after.told_of_conntrack):
        return
    state = before.state_after if before.alive else before.state
    changes.note("ct", state, after.state)
    if not after.tracked:
        return
    if not before.tracked:
        changes.status(0, after.number("ct_status"))
        return
    for direction in ("orig", "reply"):
        names = [f"ct_{direction}_{end}" for end in ("src", "dst", "sport", "dport")]
        if all(before.octets(name) == after.octets(name) for name in names):
            continue
        old, new = before.tuple(direction), after.tuple(direction)
        changes.note(f"ct {direction}", f"({old})", f"({new})")
    name = "ct_status_after" if before.alive else "ct_status"
    changes.status(before.number(name), after.number("ct_status"))
    changes.note("ct mark", _hex(before.number("ct_mark")), _hex(after.number("ct_mark")))
    changes.note("zone", before.number("ct_zone"), after.number("ct_zone"))


def _hex(number: int) -> str:
    return f"0x{number:x}"


def _version(packet: bytes) -> int:
    """4 or 6 where all of the fixed header is there, else 0."""
    kind = packet[0] >> 4 if packet else 0
    return kind if (kind == 4 and len(packet) >= 20) or (kind == 6 and len(packet) >= 40) else 0


def _ttl(packet: bytes) -> int:
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def _traffic_class(packet: bytes) -> int:
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] & 0x0F) << 4 | packet[1] >> 4


# Bytes that the other changes speak of, or that follow from them (checksums).
_TOLD_NETWORK: Final = {
    4: {1, 2, 3, 6, 7, 8, 10, 11, *range(12, 20)},
    6: {0, 1, 4, 5, 7, *range(8, 40)},
}
_TOLD_TRANSPORT: Final = {
    ip.TCP: {0, 1, 2, 3, 13, 16, 17},
    ip.UDP: {0, 1, 2, 3, 4, 5, 6, 7},
    ip.UDPLITE: {0, 1, 2, 3, 6, 7},
    ip.SCTP: {0, 1, 2, 3, 8, 9, 10, 11},
    ip.DCCP: {0, 1, 2, 3, 6, 7},
    ip.ICMP: {0, 1, 2, 3},
    ip.ICMPV6: {0, 1, 2, 3},
}


def _other_bytes(before: Look, after: Look, was: bytes, now: bytes) -> str:
    """Where else the captured bytes differ: "bytes 20, 26-27"."""
    if was == now:
        return ""
    told: set[int] = set()
    version, l4 = _version(was), after.number("l4")
    if version and version == _version(now) and l4 == before.number("l4"):
        told = set(_TOLD_NETWORK[version])
        if l4:
            told |= {l4 + at for at in _TOLD_TRANSPORT.get(after.number("proto"), ())}
    differ = [
        at
        for at, (old, new) in enumerate(zip(was, now, strict=False))
        if old != new and at not in told
    ]
    if not differ:
        return ""
    return f"bytes {_ranges(differ)}"


def _ranges(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_MOST_RANGES]]
    return ", ".join(texts) + (", …" if len(ranges) > _MOST_RANGES else "")
