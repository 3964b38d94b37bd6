# SPDX-License-Identifier: GPL-2.0-only
"""What is known of a packet at one moment, to tell whether it is the same at another.

Left out is what may change on its way: TTL, checksums, marks, and what NAT rewrites.
Addresses and ports are compared end by end.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.netfilter import DROP, STOLEN
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.store import Columns

FACTS: Final = np.dtype(
    [
        ("skb", "u8"),
        ("time", "u8"),  # of the records, ns
        ("end", "u8"),  # of a call; of a station its time
        ("journey", "u8"),  # without the host
        ("seq", "i8"),  # of the row
        ("key", "u8"),  # of what no router changes; 0: unreadable
        ("src", "u8"),  # address and port; this and the next
        ("dst", "u8"),
        ("ct", "u8"),
        ("netns", "u4"),
        ("what", "u1"),  # index into record.STATIONS
        ("hook", "u1"),
        ("is", "u1"),  # the bits below
    ]
)
FIRST: Final = 0x01  # no record of this packet came before
TRACED: Final = 0x02
DROPPED: Final = 0x04  # by a rule
STOLEN_: Final = 0x08
BY_NETFILTER: Final = 0x10  # a drop of what a hook has refused

_UDP_LIKE: Final = (17, 33, 136)
_SCTP: Final = 132
_TCP: Final = 6
_L4: Final = 16  # bytes of the transport header

_KEY: Final = Hash(7)
_END: Final = Hash(5)


def facts_of(columns: Columns, times: Array, ends: Array, journeys: Array) -> Array:
    """Returns FACTS (n,) of rows' columns; `times`, `ends`, `journeys`: uint64 (n,)."""
    facts = np.zeros(len(times), FACTS)
    facts["time"], facts["end"], facts["journey"] = times, ends, journeys
    for name in ("skb", "ct", "netns", "what", "hook"):
        facts[name] = columns[name]
    facts["key"] = _keys(columns)
    query = (columns["known"] & packet.QUERY) != 0
    for end, port in (("src", "sport"), ("dst", "dport")):
        number = np.where(query, columns["sub"], columns[port])
        facts[end] = _END.full([*_words(columns[end]), number])
    first = columns["flags"] & record.F_FIRST != 0
    facts["is"] = first * np.uint8(FIRST)
    return facts


def note_calls(facts: Array, columns: Columns) -> None:
    """Adds what calls became of their packets."""
    verdict = columns["verdict"] & 0xFF
    known = columns["exit_flags"] & record.EXIT_F_NO_VERDICT == 0
    facts["is"] |= TRACED
    facts["is"][known & (verdict == DROP)] |= DROPPED
    facts["is"][known & (verdict == STOLEN)] |= STOLEN_


def alike(a: Array, b: Array) -> Array:
    """Returns bool (n,): can these FACTS be of one packet, as far as its bytes show?"""
    same = (a["key"] == b["key"]) & (a["key"] != 0)
    ends = (a["src"] == b["src"]) | (a["dst"] == b["dst"])
    # NAT may have changed both ends, but not the connection.
    found: Array = same & (ends | ((a["ct"] == b["ct"]) & (a["ct"] != 0)))
    return found


def _words(raw: Array) -> list[Array]:
    words = np.ascontiguousarray(raw).view(np.uint32)
    return [words[:, at] for at in range(words.shape[1])]


def _keys(columns: Columns) -> Array:
    version, proto = columns["version"], columns["proto"]
    packets = columns["packet"]
    count, width = packets.shape
    at = columns["l4"].astype(np.intp)[:, None] + np.arange(_L4)
    held = at < np.minimum(columns["caplen"], width)[:, None]
    held &= (columns["l4"] != 0)[:, None]
    l4 = np.where(held, packets[np.arange(count)[:, None], np.minimum(at, width - 1)], 0)
    l4 = l4.astype(np.uint8)
    ported = ip.DECODED[proto] == ip.HAS_PORTS
    query = (columns["known"] & packet.QUERY) != 0
    l4[ported, :4] = 0
    l4[np.isin(proto, _UDP_LIKE), 6:8] = 0
    l4[proto == _SCTP, 8:12] = 0
    tcp = proto == _TCP
    l4[tcp, 12] = 0
    l4[tcp, 13] &= 0x3F  # without ECN
    l4[tcp, 14:16] = 0
    icmp = (columns["known"] & packet.ICMP) != 0
    l4[icmp, 2:4] = 0
    l4[query, 4:6] = 0
    four = version == 4
    fragment = np.where(four, 0, columns["frag_id"]).astype(np.uint32)
    fragment[four] = packets[four, 4:8].view(">u4")[:, 0] & np.uint32(0xFFFF3FFF)
    kind = (proto & 0xFF).astype(np.uint32) | version.astype(np.uint32) << 8
    kind |= columns["frag_off"].astype(np.uint32) << 16
    keys = _KEY.full([kind, fragment, *_words(l4)])
    keys[version == 0] = 0
    return keys
