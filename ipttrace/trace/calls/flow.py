# SPDX-License-Identifier: GPL-2.0-only
"""Which flow each packet belongs to.

A flow is both directions of a conntrack tuple (the original one, before NAT);
without conntrack, of the addresses, protocol and ports in the packet.  ICMP
errors belong to the flow that they quote, fragments to that of their datagram,
and a packet of a translated flow that conntrack has not seen yet (the raw
table) to the flow whose reply tuple it has.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.trace.arrays.hashing import Array, Hash
from ipttrace.trace.arrays.recent import Recent
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip

_DATAGRAMS: Final = 1 << 14
_TRANSLATED: Final = 1 << 16

_IPS_NAT_MASK: Final = 0x30  # IPS_SRC_NAT, IPS_DST_NAT
_IPS_TEMPLATE: Final = 1 << 11


@dataclass(slots=True)
class _Tuples:
    """What a flow's hash is made of: arrays of shape (n,), addresses (n, 16)."""

    src: Array
    dst: Array
    sport: Array
    dport: Array
    proto: Array  # protocol, zone and family as one word

    def set(self, rows: Array, other: _Tuples) -> None:
        self.src[rows] = other.src
        self.dst[rows] = other.dst
        self.sport[rows] = other.sport
        self.dport[rows] = other.dport
        self.proto[rows] = other.proto


class Flows:
    """Gives flows to packets in the order of their time."""

    def __init__(self) -> None:
        self._end = Hash(5)
        self._both = Hash(5)
        self._datagram = Hash(10)
        self._datagrams = Recent(_DATAGRAMS)
        self._translated = Recent(_TRANSLATED)

    def assign(self, entries: Array, headers: packet.Headers) -> Array:
        """uint64, shape (n,): the same for both directions; 0 where nothing is known.

        `entries`: entry records, shape (n,); `headers`: of their packets.
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
        """Symmetric: the two ends are hashed alike and taken in order of size."""
        a = self._end.full([*_words(tuples.src), tuples.sport])
        b = self._end.full([*_words(tuples.dst), tuples.dport])
        words = []
        for half in (np.minimum(a, b), np.maximum(a, b)):
            words += [half >> np.uint64(32), half & np.uint64(0xFFFFFFFF)]
        return self._both.full([*words, tuples.proto])

    def _learn(self, entries: Array, rows: Array, flows: Array) -> None:
        """Remember the reply tuples of flows that are translated."""
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
        """For ICMP errors, the tuple of the packet inside."""
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
            # What is quoted is cut: its own length is the one to believe.
            np.full(len(rows), 1 << 17),
        )
        good = (inner.version == headers.version[rows]) & (inner.proto >= 0)
        tuples.set(rows[good], _of_packets(inner.at(good)))

    def _fragments(
        self, tuples: _Tuples, headers: packet.Headers, flows: Array, rows: Array
    ) -> None:
        """Later fragments have no ports: they take the flow of the first."""
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
    """bool, shape (n,): conntrack has a tuple for these entry records.

    What ``-j CT`` hangs on a packet before that is a template without one.
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
    # Conntrack keeps the identifier of a query in the source port and type and
    # code in the other (struct nf_conntrack_tuple).
    query = (proto == ip.ICMP) | (proto == ip.ICMPV6)
    dport[query] = sport[query]
    # The key of GRE is one that conntrack gives, not the packet.
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
