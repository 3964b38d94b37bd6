# SPDX-License-Identifier: GPL-2.0-only
"""The flow of each packet.

A flow is both directions of a conntrack tuple (the original one, before NAT) or, without
conntrack, of the packet's addresses, protocol and ports.  An ICMP error belongs to the
flow that it quotes, a fragment to the flow of its datagram.  A packet that conntrack has
not seen yet (raw table) belongs to the translated flow with this reply tuple, if there
is one.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash, Recent
from ipttrace.trace.calls.aliases import Aliases
from ipttrace.trace.calls.translated import Translated, Tuples
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip

_DATAGRAMS: Final = 1 << 14

_IPS_NAT_MASK: Final = 0x30  # IPS_SRC_NAT, IPS_DST_NAT
_IPS_TEMPLATE: Final = 1 << 11


class Flows:
    """Assigns flows to packets, which come in order of time."""

    def __init__(self, aliases: Aliases | None = None) -> None:
        """`aliases`: where it notes which flows are one, for rows that it has assigned already."""
        self._end = Hash(5)
        self._both = Hash(5)
        self._datagram = Hash(10)
        self._datagrams = Recent(_DATAGRAMS)
        self._translated = Translated(Aliases() if aliases is None else aliases)

    def assign(
        self, entries: Array, headers: packet.Headers, journeys: Array, now: int = 0
    ) -> Array:
        """Returns uint64 (n,), equal for both directions of a flow; 0 if unknown.

        `entries`: entry records, shape (n,); `headers`: those of their packets;
        `journeys`: uint64 (n,); `now`: the newest time, ns since the epoch.
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
            self._learn(entries, rows, flows, now)
        if untracked.size:
            flows[untracked[headers.version[untracked] == 0]] = 0
            fragments = untracked[(headers.known[untracked] & packet.FRAGMENT) != 0]
            if fragments.size:
                self._fragments(tuples, headers, flows, fragments)
        netlink = entries["source"] != record.SOURCE_KERNEL
        if netlink.any():
            self._join(tuples, headers, flows, journeys, np.flatnonzero(netlink), now)
        if len(self._translated):
            if untracked.size:
                flows[untracked] = self._translated.roots(flows[untracked])
            if rows.size and self._translated.matters_in(entries["netns"]):
                flows[rows] = self._translated.roots_elsewhere(flows[rows], entries["netns"][rows])
        return flows

    def _hash(self, tuples: Tuples) -> Array:
        """Symmetric: both endpoints are hashed alike, and the smaller hash comes first."""
        a = self._end.full([*_words(tuples.src), tuples.sport])
        b = self._end.full([*_words(tuples.dst), tuples.dport])
        words = []
        for half in (np.minimum(a, b), np.maximum(a, b)):
            words += [half >> np.uint64(32), half & np.uint64(0xFFFFFFFF)]
        return self._both.full([*words, tuples.proto])

    def _learn(self, entries: Array, rows: Array, flows: Array, now: int) -> None:
        """Remembers the reply tuples of flows with NAT."""
        nat = rows[(entries["ct_status"][rows] & _IPS_NAT_MASK) != 0]
        # Netlink does not report the reply's tuple before NAT has been decided.
        nat = nat[entries["ct_reply_src"][nat].any(axis=1)]
        if nat.size:
            reply = self._hash(_of_conntrack(entries, nat, "reply"))
            self._translated.learn(reply, flows[nat], now, entries["netns"], nat)

    def _join(
        self,
        tuples: Tuples,
        headers: packet.Headers,
        flows: Array,
        journeys: Array,
        rows: Array,
        now: int,
    ) -> None:
        """Learns from packets whose conntrack entries netlink does not tell."""
        rows = rows[flows[rows] != 0]
        whole = headers.proto[rows] >= 0
        cut, rows = rows[~whole], rows[whole]
        if rows.size:
            self._translated.join(journeys[rows], flows[rows], tuples.at(rows), now)
        if cut.size:
            # Some chains see less of a packet than others: neither protocol nor ports.
            of_packet, known = self._translated.of_packets(journeys[cut], tuples.at(cut))
            flows[cut[known]] = of_packet[known]

    def _quoted(
        self, tuples: Tuples, untracked: Array, entries: Array, headers: packet.Headers
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
        quoted = _of_packets(inner.at(good))
        # The error is on its way back.
        back = Tuples(quoted.dst, quoted.src, quoted.dport, quoted.sport, quoted.proto)
        tuples.set(rows[good], back)

    def _fragments(
        self, tuples: Tuples, headers: packet.Headers, flows: Array, rows: Array
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
    return tracked & ~is_template(entries)


def is_template(entries: Array) -> Array:
    """Returns bool (n,): is what these entry records say of conntrack of a template?"""
    template: Array = (entries["ct_status"] & _IPS_TEMPLATE) != 0
    return template


def _words(addresses: Array) -> list[Array]:
    words = np.ascontiguousarray(addresses).view(np.uint32)
    return [words[:, at] for at in range(4)]


def _of_packets(headers: packet.Headers) -> Tuples:
    query = (headers.known & packet.QUERY) != 0
    return Tuples(
        headers.src.copy(),
        headers.dst.copy(),
        np.where(query, headers.sub, headers.sport),
        np.where(query, headers.sub, headers.dport),
        (headers.proto & 0xFF).astype(np.uint32) | ((headers.version == 6) * np.uint32(0x100)),
    )


def _of_conntrack(entries: Array, rows: Array, direction: str) -> Tuples:
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
    return Tuples(
        entries[f"ct_{direction}_src"][rows],
        entries[f"ct_{direction}_dst"][rows],
        sport,
        dport,
        word,
    )
