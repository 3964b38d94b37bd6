# SPDX-License-Identifier: GPL-2.0-only
"""The flow of each packet.

A flow is both directions of a conntrack tuple (the original one, before NAT) or, without
conntrack, of the packet's addresses, protocol and ports.  An ICMP error belongs to the
flow that it quotes, a fragment to the flow of its datagram.  A packet that conntrack has
not seen yet (raw table) belongs to the translated flow with this reply tuple, if there
is one.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash, Recent
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip

_DATAGRAMS: Final = 1 << 14
_TRANSLATED: Final = 1 << 16

_IPS_NAT_MASK: Final = 0x30  # IPS_SRC_NAT, IPS_DST_NAT
_IPS_TEMPLATE: Final = 1 << 11


@dataclass(slots=True)
class _Tuples:
    """The input of a flow's hash: arrays (n,), addresses (n, 16)."""

    src: Array
    dst: Array
    sport: Array
    dport: Array
    proto: Array  # protocol, zone and family as one word

    def set(self, rows: Array, other: _Tuples) -> None:
        """Replaces the tuples at `rows`."""
        self.src[rows] = other.src
        self.dst[rows] = other.dst
        self.sport[rows] = other.sport
        self.dport[rows] = other.dport
        self.proto[rows] = other.proto


class Flows:
    """Assigns flows to packets, which come in order of time."""

    def __init__(self) -> None:
        self._end = Hash(5)
        self._both = Hash(5)
        self._datagram = Hash(10)
        self._datagrams = Recent(_DATAGRAMS)
        self._translated = Recent(_TRANSLATED)

    def assign(self, entries: Array, headers: packet.Headers) -> Array:
        """Returns uint64 (n,), equal for both directions of a flow; 0 if unknown.

        `entries`: entry records, shape (n,); `headers`: those of their packets.
        """
        tuples = _of_packets(headers)
        tracked = is_tracked(entries)
        untracked = np.flatnonzero(~tracked)
        if untracked.size:
            self._quoted(tuples, untracked, entries, headers)
        rows = np.flatnonzero(tracked)
        if rows.size:
            tuples.set(rows, _of_conntrack(entries, rows, "orig"))
        flows = self._hash(tuples)
        if rows.size:
            self._learn(entries, rows, flows)
        if untracked.size:
            flows[untracked[headers.version[untracked] == 0]] = 0
            self._translate(flows, untracked)
            fragments = untracked[(headers.known[untracked] & packet.FRAGMENT) != 0]
            if fragments.size:
                self._fragments(tuples, headers, flows, fragments)
        return flows

    def _hash(self, tuples: _Tuples) -> Array:
        """Symmetric: both endpoints are hashed alike, and the smaller hash comes first."""
        a = self._end.full([*_words(tuples.src), tuples.sport])
        b = self._end.full([*_words(tuples.dst), tuples.dport])
        words = []
        for half in (np.minimum(a, b), np.maximum(a, b)):
            words += [half >> np.uint64(32), half & np.uint64(0xFFFFFFFF)]
        return self._both.full([*words, tuples.proto])

    def _learn(self, entries: Array, rows: Array, flows: Array) -> None:
        """Remembers the reply tuples of flows with NAT."""
        nat = rows[(entries["ct_status"][rows] & _IPS_NAT_MASK) != 0]
        if nat.size:
            reply = self._hash(_of_conntrack(entries, nat, "reply"))
            self._translated.put(reply, flows[nat])

    def _translate(self, flows: Array, untracked: Array) -> None:
        if len(self._translated):
            better, known = self._translated.get(flows[untracked])
            flows[untracked[known]] = better[known]

    def _quoted(
        self, tuples: _Tuples, untracked: Array, entries: Array, headers: packet.Headers
    ) -> None:
        """Replaces the tuples of ICMP errors with those of the packets that they quote."""
        is_icmp = (headers.known[untracked] & packet.ICMP) != 0
        if not is_icmp.any():
            return
        rows = untracked[is_icmp]
        types = headers.icmp_type[rows]
        rows = rows[
            np.where(headers.version[rows] == 4, ip.ICMP_ERROR[types], ip.ICMPV6_ERROR[types])
        ]
        if not rows.size:
            return
        packets = entries["packet"]
        width = packets.shape[1]
        at = headers.l4[rows].astype(np.int64) + 8
        cap = np.minimum(entries["caplen"][rows], width) - at
        positions = np.minimum(at[:, None] + np.arange(width), width - 1)
        inner = packet.decode(
            packets[rows[:, None], positions],
            np.maximum(cap, 0),
            # The quote is cut, so only its own header has its length.
            np.full(len(rows), 1 << 17),
        )
        good = (inner.version == headers.version[rows]) & (inner.proto >= 0)
        tuples.set(rows[good], _of_packets(inner.at(good)))

    def _fragments(
        self, tuples: _Tuples, headers: packet.Headers, flows: Array, rows: Array
    ) -> None:
        """Gives fragments without ports the flow of the first fragment."""
        some = (tuples.src[rows], tuples.dst[rows])
        keys = self._datagram.full(
            [*_words(some[0]), *_words(some[1]), headers.frag_id[rows], tuples.proto[rows]]
        )
        first = headers.frag_off[rows] == 0
        self._datagrams.put(keys[first], flows[rows[first]])
        found, known = self._datagrams.get(keys)
        known &= ~first
        flows[rows[known]] = found[known]


def is_tracked(entries: Array) -> Array:
    """Returns bool (n,): do these entry records have a conntrack tuple?

    The template that ``-j CT`` attaches to a packet has none.
    """
    tracked: Array = (entries["flags"] & record.F_CONNTRACK) != 0
    tracked &= (entries["ct_status"] & _IPS_TEMPLATE) == 0
    return tracked


def _words(addresses: Array) -> list[Array]:
    words = np.ascontiguousarray(addresses).view(np.uint32)
    return [words[:, at] for at in range(4)]


def _of_packets(headers: packet.Headers) -> _Tuples:
    query = (headers.known & packet.QUERY) != 0
    return _Tuples(
        headers.src.copy(),
        headers.dst.copy(),
        np.where(query, headers.sub, headers.sport),
        np.where(query, headers.sub, headers.dport),
        (headers.proto & 0xFF).astype(np.uint32) | ((headers.version == 6) * np.uint32(0x100)),
    )


def _of_conntrack(entries: Array, rows: Array, direction: str) -> _Tuples:
    proto = entries["ct_proto"][rows]
    sport = entries[f"ct_{direction}_sport"][rows].astype(np.uint16)
    dport = entries[f"ct_{direction}_dport"][rows].astype(np.uint16)
    # For ICMP, the source port is the identifier, the other one type and code
    # (struct nf_conntrack_tuple).
    query = (proto == ip.ICMP) | (proto == ip.ICMPV6)
    dport[query] = sport[query]
    # For GRE, conntrack's key need not be in the packet.
    sport[proto == ip.GRE] = 0
    dport[proto == ip.GRE] = 0
    six = entries["family"][rows] == NFPROTO_IPV6
    word = proto.astype(np.uint32) | (six * np.uint32(0x100))
    word |= entries["ct_zone"][rows].astype(np.uint32) << np.uint32(16)
    return _Tuples(
        entries[f"ct_{direction}_src"][rows],
        entries[f"ct_{direction}_dst"][rows],
        sport,
        dport,
        word,
    )
