# SPDX-License-Identifier: GPL-2.0-only
"""What changed in a packet between two tables or inside one: NAT, marks, conntrack, bytes.

A value that one of the observations cannot know is "-", never guessed.  Must not do
I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.story.observation import Observation, endpoint, status_names

# SNAT_DONE and DNAT_DONE: NAT has decided, which SNAT and DNAT show already.
_QUIET: Final = 0x180
_MOST_RANGES: Final = 4


@dataclass(frozen=True, slots=True)
class PacketChange:
    """One value that changed; all text is safe for a terminal."""

    name: str
    text: str  # "before → after", or "+SNAT -DYING"


class _Changes:
    def __init__(self) -> None:
        self.found: list[PacketChange] = []

    def note(self, name: str, before: object, after: object) -> None:
        """Add a change unless the values are equal; None is "-"."""
        if before != after:
            was = "-" if before is None else before
            now = "-" if after is None else after
            self.found.append(PacketChange(name, f"{was} → {now}"))

    def status(self, before: int, after: int) -> None:
        """Add the IPS_* bits that were set and cleared."""
        added, removed = after & ~before & ~_QUIET, before & ~after & ~_QUIET
        if added or removed:
            names = [f"+{name}" for name in status_names(added)]
            names += [f"-{name}" for name in status_names(removed)]
            self.found.append(PacketChange("ct status", " ".join(names)))


def changes_by_table(packet: Observation) -> tuple[PacketChange, ...]:
    """What the table changed; nothing if the packet could not be read after it."""
    changes = _Changes()
    if packet.readable_after:
        changes.note("mark", _hex(packet.row.mark), _hex(packet.number("mark_after")))
        changes.note("ct", packet.state, packet.state_after)
        if packet.tracked and packet.state_after != "UNTRACKED":
            changes.status(packet.number("ct_status"), packet.number("ct_status_after"))
    return tuple(changes.found)


def changes_between(before: Observation, after: Observation) -> tuple[PacketChange, ...]:
    """What changed from the end of `before`'s table to the beginning of `after`'s."""
    changes = _Changes()
    a, b = before.row, after.row
    was, now = before.bytes, after.bytes
    changes.note("netns", a.netns, b.netns)
    changes.note("src", endpoint(a.src, a.sport), endpoint(b.src, b.sport))
    changes.note("dst", endpoint(a.dst, a.dport), endpoint(b.dst, b.dport))
    changes.note("proto", a.proto or None, b.proto or None)
    if a.station is None and b.station is None:
        # Between tables, a packet is on one device.
        changes.note("in", a.in_, b.in_)
        changes.note("out", a.out, b.out)
    left = before.number("mark_after") if before.readable_after else a.mark
    changes.note("mark", _hex(left), _hex(b.mark))
    if a.len is not None and b.len is not None:
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
        changes.found.append(PacketChange("packet", text))
    return tuple(changes.found)


def _conntrack(changes: _Changes, before: Observation, after: Observation) -> None:
    if not (before.conntrack_known and after.conntrack_known):
        return
    state = before.state_after if before.readable_after else before.state
    changes.note("ct", state, after.state)
    if not after.has_state:
        return
    if not before.has_state:
        changes.status(0, after.number("ct_status"))
        return
    both = before.tracked and after.tracked
    for direction in ("orig", "reply"):
        if not (before.has_tuple(direction) and after.has_tuple(direction)):
            continue
        names = [f"ct_{direction}_{end}" for end in ("src", "dst", "sport", "dport")]
        if all(before.octets(name) == after.octets(name) for name in names):
            continue
        old, new = before.tuple(direction), after.tuple(direction)
        changes.note(f"ct {direction}", f"({old})", f"({new})")
    name = "ct_status_after" if before.readable_after else "ct_status"
    changes.status(before.number(name), after.number("ct_status"))
    if before.ct_mark is not None and after.ct_mark is not None:
        changes.note("ct mark", _hex(before.ct_mark), _hex(after.ct_mark))
    if both:
        changes.note("zone", before.number("ct_zone"), after.number("ct_zone"))


def _hex(number: int | None) -> str | None:
    return None if number is None else f"0x{number:x}"


def _version(packet: bytes) -> int:
    """4 or 6 if the fixed header was captured completely, else 0."""
    kind = packet[0] >> 4 if packet else 0
    return kind if (kind == 4 and len(packet) >= 20) or (kind == 6 and len(packet) >= 40) else 0


def _ttl(packet: bytes) -> int:
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def _traffic_class(packet: bytes) -> int:
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] & 0x0F) << 4 | packet[1] >> 4


# Bytes that other changes cover, or that follow from them (checksums), from the
# network header and from the transport header on.
_COVERED_NETWORK: Final = {
    4: {1, 2, 3, 6, 7, 8, 10, 11, *range(12, 20)},
    6: {0, 1, 4, 5, 7, *range(8, 40)},
}
_COVERED_TRANSPORT: Final = {
    ip.TCP: {0, 1, 2, 3, 13, 16, 17},
    ip.UDP: {0, 1, 2, 3, 4, 5, 6, 7},
    ip.UDPLITE: {0, 1, 2, 3, 6, 7},
    ip.SCTP: {0, 1, 2, 3, 8, 9, 10, 11},
    ip.DCCP: {0, 1, 2, 3, 6, 7},
    ip.ICMP: {0, 1, 2, 3},
    ip.ICMPV6: {0, 1, 2, 3},
}


def _other_bytes(before: Observation, after: Observation, was: bytes, now: bytes) -> str:
    """Offsets of captured bytes that changed otherwise: "bytes 20, 26-27"."""
    if was == now:
        return ""
    covered: set[int] = set()
    version, l4 = _version(was), after.number("l4")
    if version and version == _version(now) and l4 == before.number("l4"):
        covered = set(_COVERED_NETWORK[version])
        if l4:
            covered |= {l4 + at for at in _COVERED_TRANSPORT.get(after.number("proto"), ())}
    differ = [
        at
        for at, (old, new) in enumerate(zip(was, now, strict=False))
        if old != new and at not in covered
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
