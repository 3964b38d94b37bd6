# SPDX-License-Identifier: GPL-2.0-only
"""What of the packet a condition of iptables is about.

Values that rules can change on the way, or that only the kernel knows, are asked of the kernel:
a rule for each that is possible.  The others are those of the packet's row.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.whatif.packet.repair import upper_layer
from ipttrace.whatif.packet.spec import TCP
from ipttrace.whatif.whynot.conditions import Condition

_STATES: Final = ["INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED", "SNAT", "DNAT"]
_STATUS: Final = ["EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"]
_TYPES: Final = [
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
]
_BITS: Final = {"mark": ("--mark", 32), "connmark": ("--mark", 32), "tos": ("--tos", 8)}
_NUMBERS: Final = {"ttl": ("--ttl-eq", 256), "hl": ("--hl-eq", 256), "dscp": ("--dscp", 64)}
_NAMED: Final = {
    ("conntrack", "--ctstate"): _STATES,
    ("state", "--state"): _STATES[:5],
    ("conntrack", "--ctstatus"): _STATUS,
    ("conntrack", "--ctdir"): ["ORIGINAL", "REPLY"],
    ("addrtype", "--src-type"): _TYPES,
    ("addrtype", "--dst-type"): _TYPES,
    ("pkttype", "--pkt-type"): ["unicast", "broadcast", "multicast"],
}

Questions = list[tuple[str, tuple[str, ...]]]
"""Possible values, and the words of iptables that ask for each."""


def questions(condition: Condition) -> Questions:
    """Returns what to ask of the kernel to learn the packet's value; empty if its row has it."""
    module, option = condition.module, condition.option
    if module in _BITS:
        name, width = _BITS[module]
        bits = [hex(1 << at) for at in range(width)]
        return [(bit, ("-m", module, name, f"{bit}/{bit}")) for bit in bits]
    if module in _NUMBERS:
        name, most = _NUMBERS[module]
        return [(str(n), ("-m", module, name, str(n))) for n in range(most)]
    names = _NAMED.get((module, option), ())
    extra = condition.values[1:] if module == "addrtype" and option.endswith("-type") else ()
    kept = tuple(word for word in extra if word.startswith("--limit-iface"))
    return [(name, ("-m", module, option, name, *kept)) for name in names]


def answered(condition: Condition, hits: Sequence[str]) -> str:
    """Returns the value that the kernel's answers to `questions` amount to."""
    if condition.module in _BITS:
        return hex(sum(int(bit, 16) for bit in hits))
    return ",".join(hits)


def of_row(condition: Condition, row: Row, sent: bytes) -> str:
    """Returns the packet's value, "" if it is not known; `sent`: the packet's bytes."""
    if condition.module == "set":
        return _of_set(condition, row)
    if condition.module == "string":
        return _payload(sent)
    reader = _READERS.get(condition.option)
    return reader(row) if reader else ""


def _device(name: str | None) -> str:
    return name or "none"


def _proto(row: Row) -> str:
    return row.proto.lower() or "unknown"


def _port(row: Row, value: int | None) -> str:
    return str(value) if value is not None else f"{_proto(row)}, without ports"


def _ports(row: Row) -> str:
    return f"{_port(row, row.sport)} and {row.dport}" if row.sport is not None else ""


def _of_set(condition: Condition, row: Row) -> str:
    """The packet's fields that the set was asked for, as ipset(8) writes an element."""
    flags = condition.values[1].split(",") if len(condition.values) > 1 else []
    addresses = {"src": row.src, "dst": row.dst}
    ports = {"src": row.sport, "dst": row.dport}
    parts = [addresses.get(flag, flag) for flag in flags]
    if row.sport is None:
        return f"{','.join(parts)}, {_proto(row)}" if parts else ""
    # A set is of addresses, ports, networks or devices: all that may be meant.
    known = [f"{_proto(row)}:{ports[flag]}" for flag in flags if flag in ports]
    return f"{','.join(parts)}, {' and '.join(known)}" if known else ",".join(parts)


def _payload(sent: bytes) -> str:
    """The first bytes behind the headers."""
    proto, at, _ = upper_layer(sent)
    head = (sent[at + 12] >> 4) * 4 if proto == TCP and len(sent) > at + 12 else 8
    data = sent[at + head :]
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[:24])
    return f"{text!r}, {len(data)} bytes of payload"


_READERS: Final[dict[str, Callable[[Row], str]]] = {
    "-s": lambda row: row.src,
    "-d": lambda row: row.dst,
    "-i": lambda row: _device(row.in_),
    "-o": lambda row: _device(row.out),
    "-p": _proto,
    "-f": lambda row: row.frag or "no fragment",
    "--sport": lambda row: _port(row, row.sport),
    "--dport": lambda row: _port(row, row.dport),
    "--sports": lambda row: _port(row, row.sport),
    "--dports": lambda row: _port(row, row.dport),
    "--ports": _ports,
    "--tcp-flags": lambda row: row.flags or "none",
    "--icmp-type": lambda row: row.icmp or _proto(row),
    "--icmpv6-type": lambda row: row.icmp or _proto(row),
    "--length": lambda row: str(row.len) if row.len is not None else "",
    "--mac-source": lambda row: row.mac_src or "none",
    "--src-range": lambda row: row.src,
    "--dst-range": lambda row: row.dst,
    "--ctproto": _proto,
    "--ctorigsrc": lambda row: row.ct_orig_src or "",
    "--ctorigdst": lambda row: row.ct_orig_dst or "",
    "--ctorigsrcport": lambda row: str(row.ct_orig_sport or ""),
    "--ctorigdstport": lambda row: str(row.ct_orig_dport or ""),
    "--physdev-in": lambda row: _device(row.physin),
    "--physdev-out": lambda row: _device(row.physout),
}
