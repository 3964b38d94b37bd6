# SPDX-License-Identifier: GPL-2.0-only
"""One packet as it entered one table, and the names of conntrack's states and statuses.

Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ipttrace.stream import record
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row
from ipttrace.trace.store import Columns

# enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h), by bit; NAT
# has the names of the targets.
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
# enum ip_conntrack_info (same header): these three, then the same in reply direction.
_STATES: Final = ("ESTABLISHED", "RELATED", "NEW")
_IS_REPLY: Final = 3
_UNTRACKED: Final = 7


@dataclass(frozen=True, slots=True)
class Observation:
    """A packet as it entered a table."""

    row: Row
    columns: Columns  # of its part of the store
    at: int  # its index there

    def number(self, name: str) -> int:
        """The value of a column."""
        return int(self.columns[name][self.at])

    def octets(self, name: str) -> bytes:
        """The bytes of a column of several bytes."""
        octets: bytes = self.columns[name][self.at].tobytes()
        return octets

    @property
    def tracked(self) -> bool:
        """Whether the packet has a conntrack entry, all of which is known."""
        return bool(self.number("flags") & record.F_CONNTRACK)

    @property
    def has_state(self) -> bool:
        """Whether the packet has a conntrack entry, of which at least the state is known."""
        return self.tracked or bool(self.number("ct_flags") & record.CT_STATE)

    @property
    def ct_mark(self) -> int | None:
        """The mark of its conntrack entry, None if unknown."""
        return self.row.ct_mark

    @property
    def conntrack_known(self) -> bool:
        """False if the engine cannot tell whether it is tracked (netlink)."""
        return self.row.ct_state is not None or self.row.engine != "netlink"

    @property
    def readable_after(self) -> bool:
        """Whether the kernel read the packet again after the table: its verdict kept the skb."""
        return bool(self.number("exit_flags") & record.EXIT_F_ALIVE)

    @property
    def bytes(self) -> bytes:
        """The captured bytes, from the network header on."""
        caplen, length = self.number("caplen"), self.row.len
        return self.octets("packet")[: caplen if length is None else min(caplen, length)]

    @property
    def state(self) -> str | None:
        """Conntrack's state, with "reply" in that direction."""
        if not self.has_state:
            return self.row.ct_state
        return _state(True, self.number("ct_info"))

    @property
    def state_after(self) -> str | None:
        """The state after the table; meaningful only if `readable_after`."""
        info = self.number("ct_info_after")
        if self.tracked or info == _UNTRACKED:
            return _state(self.tracked and info != _UNTRACKED, info)
        return self.state

    def has_tuple(self, direction: str) -> bool:
        """Whether conntrack's tuple in `direction` is known: netlink reports the reply's late."""
        return self.tracked and any(
            any(self.octets(f"ct_{direction}_{end}")) for end in ("src", "dst")
        )

    def tuple(self, direction: str) -> str:
        """Conntrack's tuple in `direction`, orig or reply: ``10.0.0.1:80 → 10.0.0.2:9``."""
        proto = self.number("ct_proto")
        both = f"{self.endpoint(direction, 'src')} → {self.endpoint(direction, 'dst')}"
        if proto in (ip.ICMP, ip.ICMPV6):
            # struct nf_conntrack_tuple: the identifier is in src, type and code are in dst.
            kind, identifier = (self.number(f"ct_{direction}_{at}") for at in ("dport", "sport"))
            return f"{both} type {kind >> 8} id {identifier}"
        return both

    def endpoint(self, direction: str, end: str) -> str:
        """One end, src or dst, of conntrack's tuple in `direction`: ``10.0.0.1:80``."""
        address = _address(self.octets(f"ct_{direction}_{end}"), self.row.family)
        ports = ip.DECODED[self.number("ct_proto")] == ip.HAS_PORTS
        return endpoint(address, self.number(f"ct_{direction}_{end[0]}port") if ports else None)


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


def endpoint(address: str, port: int | None) -> str:
    """``10.0.0.1:80``, ``[::1]:80``; "-" without an address."""
    if not address:
        return "-"
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def status_names(bits: int) -> tuple[str, ...]:
    """Names of the IPS_* bits that are set; bits without a name as one number."""
    names = [name for bit, name in enumerate(STATUS) if bits & 1 << bit]
    if rest := bits >> len(STATUS) << len(STATUS):
        names.append(f"0x{rest:x}")
    return tuple(names)
