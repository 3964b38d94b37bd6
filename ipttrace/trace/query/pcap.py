# SPDX-License-Identifier: GPL-2.0-only
"""A row's flow as a pcap-filter expression, for the filter in the kernel.

It matches both directions (before and after NAT), ICMP errors about the flow and, for
IPv4, later fragments.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ipttrace.stream import record
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row
from ipttrace.trace.store import address

_Tuple = tuple[str, int | None, str, int | None]

_TRANSPORTS: Final = {6: "tcp", 17: "udp", 132: "sctp"}
# Unreachable, source quench, redirect, time exceeded, bad parameter: they quote the
# packet they are about.
_ERRORS: Final = "(icmp[0] >= 3 and icmp[0] <= 12 and icmp[0] != 8)"


def flow_expression(raw: Mapping[str, Any], row: Row) -> str:
    """The expression; "" if the packet has no readable addresses.

    `raw`: the row's columns, from `Store.raw`.
    """
    if not row.src or not row.dst:
        return ""
    number = int(raw["proto"])
    # Not row.family: a bridge's packets have a family of their own.
    family = 6 if ":" in row.src else 4
    tuples = [(row.src, row.sport, row.dst, row.dport)]
    if int(raw["flags"]) & record.F_CONNTRACK:
        tuples += [_tracked(raw, side, family) for side in ("orig", "reply")]
    texts = [_text(family, number, *one) for one in tuples]
    return " or ".join(dict.fromkeys(texts))


def _tracked(raw: Mapping[str, Any], side: str, family: int) -> _Tuple:
    """Conntrack's tuple in direction `side`, orig or reply."""
    ports = ip.DECODED[int(raw["ct_proto"])] == ip.HAS_PORTS
    return (
        address(bytes(raw[f"ct_{side}_src"]), family),
        int(raw[f"ct_{side}_sport"]) if ports else None,
        address(bytes(raw[f"ct_{side}_dst"]), family),
        int(raw[f"ct_{side}_dport"]) if ports else None,
    )


def _text(
    family: int, number: int, src: str, sport: int | None, dst: str, dport: int | None
) -> str:
    a, b = sorted([(src, sport), (dst, dport)], key=str)
    hosts = f"host {a[0]} and host {b[0]}"
    word = _TRANSPORTS.get(number)
    if word is not None and a[1] is not None and b[1] is not None:
        ports = f"{word} port {a[1]} and {word} port {b[1]}"
        if family == 4:
            ports = f"({ports} or (ip proto {number} and ip[6:2] & 0x1fff != 0))"
        flow = f"({hosts} and {ports})"
    else:
        flow = f"({hosts} and {'ip6' if family == 6 else 'ip'} proto {number})"
    if family != 4 or number == ip.ICMP:
        return flow
    x, y = _word(a[0]), _word(b[0])
    # 8 bytes of ICMP, then the quoted IPv4 header: source at offset 20, destination at 24.
    quoted = " or ".join(f"(icmp[20:4] = {s} and icmp[24:4] = {d})" for s, d in ((x, y), (y, x)))
    return f"{flow} or ({_ERRORS} and ({quoted}))"


def _word(address: str) -> str:
    return f"0x{int.from_bytes(bytes(map(int, address.split('.'))), 'big'):08x}"
