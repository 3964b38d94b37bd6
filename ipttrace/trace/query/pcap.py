# SPDX-License-Identifier: GPL-2.0-only
"""A row's flow as a pcap-filter expression, for the filter in the kernel.

It matches both directions on both sides of NAT, ICMP errors about the flow and, for
IPv4, later fragments.  Its form keeps the paths through the compiled program few, so
that nftables can evaluate it too.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.decode import headers
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row
from ipttrace.trace.store import Store, address

_End = tuple[str, int | None]
_Ends = tuple[_End, _End]  # either may be the source

_TRANSPORTS: Final = {6: "tcp", 17: "udp", 132: "sctp"}
# Unreachable, source quench, redirect, time exceeded, bad parameter: they quote the
# packet they are about.
_ERRORS: Final = "icmp[0] >= 3 and icmp[0] <= 12 and icmp[0] != 8"
_LATER_FRAGMENT: Final = "ip[6:2] & 0x1fff != 0"
_MOST: Final = 5  # pairs of ends: nftables can express that many
_IDENTITY: Final = ("version", "proto", "known", "src", "dst", "sport", "dport")


def flow_expression(store: Store, row: Row) -> str:
    """The expression for the flow of a row in `store`; "" if it has no readable addresses."""
    if not row.src or not row.dst:
        return ""
    raw = store.raw(row.index)
    # Not row.family: a bridge's packets have a family of their own.
    family = 6 if ":" in row.src else 4
    packets = [raw, *(_of_flow(store, row.flow) if row.flow else ())]
    # An ICMP error or a later fragment does not have the ends of its flow.
    packets = [one for one in packets if _is_whole(one, family)] or [raw]
    pairs = dict.fromkeys(pair for one in packets for pair in _ends_of(one, family))
    return _text(family, int(packets[0]["proto"]), list(pairs)[:_MOST])


def _of_flow(store: Store, flow: int) -> Iterator[Mapping[str, Any]]:
    """The columns of rows of the flow, one for each pair of ends."""
    seen: set[bytes] = set()
    for part in store.parts():
        rows = np.flatnonzero(part.flows == np.uint64(flow))
        ends = [part.columns[name][rows].reshape(len(rows), -1) for name in _IDENTITY]
        identity = np.concatenate([np.ascontiguousarray(one).view(np.uint8) for one in ends], 1)
        for at in np.sort(np.unique(identity, axis=0, return_index=True)[1]).tolist():
            if (key := identity[at].tobytes()) not in seen:
                seen.add(key)
                yield {name: column[rows[at]] for name, column in part.columns.items()}


def _is_whole(raw: Mapping[str, Any], family: int) -> bool:
    """Whether it is a packet of this IP version that has the ends of its flow."""
    kind, known = ip.DECODED[int(raw["proto"])], int(raw["known"])
    if int(raw["version"]) != family:
        return False
    if kind == ip.HAS_PORTS:
        return bool(known & headers.PORTS)
    return bool(known & headers.QUERY) if kind == ip.IS_ICMP else True


def _ends_of(raw: Mapping[str, Any], family: int) -> Iterator[_Ends]:
    """The packet's own ends, and those that its connection has on its way, if that is known."""
    has_ports = bool(int(raw["known"]) & headers.PORTS)
    yield _pair(*_tuple(raw, "", family, has_ports))
    if int(raw["flags"]) & record.F_CONNTRACK:
        has_ports = ip.DECODED[int(raw["ct_proto"])] == ip.HAS_PORTS
        orig = _tuple(raw, "ct_orig_", family, has_ports)
        reply = _tuple(raw, "ct_reply_", family, has_ports)
        yield _pair(*orig)
        if bytes(raw["ct_reply_src"]).strip(b"\0"):  # netlink may not report it
            yield _pair(*reply)
            yield _pair(orig[0], reply[0])  # behind DNAT, before the source is translated


def _tuple(raw: Mapping[str, Any], prefix: str, family: int, has_ports: bool) -> _Ends:
    """Source and destination."""
    src, dst = (
        (
            address(bytes(raw[f"{prefix}{end}"]), family),
            int(raw[f"{prefix}{port}"]) if has_ports else None,
        )
        for end, port in (("src", "sport"), ("dst", "dport"))
    )
    return src, dst


def _pair(one: _End, other: _End) -> _Ends:
    """The same for both directions."""
    a, b = sorted((one, other), key=str)
    return a, b


def _text(family: int, number: int, pairs: list[_Ends]) -> str:
    directions = [way for a, b in pairs for way in ((a, b), (b, a))]
    hosts = list(dict.fromkeys(f"(host {a[0]} and host {b[0]})" for a, b in pairs))
    word = _TRANSPORTS.get(number)
    if word is not None and all(end[1] is not None for pair in pairs for end in pair):
        ways = [
            f"(src host {src[0]} and src port {src[1]} and dst host {dst[0]} and dst port {dst[1]})"
            for src, dst in directions
        ]
        if family == 4:
            ways.append(f"({_LATER_FRAGMENT} and {_any(hosts)})")
        flow = f"({word} and {_any(ways)})"
    else:
        flow = f"({'ip6' if family == 6 else 'ip'} proto {number} and {_any(hosts)})"
    if family != 4 or number == ip.ICMP:
        return flow
    # 8 bytes of ICMP, then the quoted IPv4 header: source at offset 20, destination at 24.
    quoted = dict.fromkeys(
        f"(icmp[20:4] = {_word(src[0])} and icmp[24:4] = {_word(dst[0])})"
        for src, dst in directions
    )
    return f"{flow} or ({_ERRORS} and {_any(quoted)})"


def _any(texts: Iterable[str]) -> str:
    """Alternatives as one term."""
    texts = list(texts)
    return texts[0] if len(texts) == 1 else f"({' or '.join(texts)})"


def _word(address: str) -> str:
    return f"0x{int.from_bytes(bytes(map(int, address.split('.'))), 'big'):08x}"
