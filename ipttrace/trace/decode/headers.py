# SPDX-License-Identifier: GPL-2.0-only
"""The headers of many packets at once, as columns.

From the network header on: IPv4 (RFC 791), IPv6 and its extension headers
(RFC 8200), TCP (RFC 9293 and the NS bit of RFC 3540), UDP, UDP-Lite, SCTP,
DCCP, ICMP (RFC 792), ICMPv6 (RFC 4443), GRE (RFC 2784, 2890), ESP, AH.

Packets are untrusted: fields that are cut off or inconsistent stay unknown, bytes past
the capture length are never read, and nothing raises.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.decode import protocol as ip

# Bits of Headers.known: which fields are valid.
PORTS: Final = 0x01
TCP_FLAGS: Final = 0x02
ICMP: Final = 0x04
FRAGMENT: Final = 0x08
MORE: Final = 0x10  # fragments follow
QUERY: Final = 0x20  # sub is the identifier of an ICMP query
GRE: Final = 0x40  # sub is the encapsulated protocol
EXTRA: Final = 0x80  # GRE key, SPI of ESP or AH

# More extension headers than make sense; beyond these, proto is unknown.
_MAX_EXTENSIONS: Final = 10


@dataclass(slots=True)
class Headers:
    """Arrays of shape (n,); zero where unknown.  Integers in host order."""

    version: Array  # uint8: 4, 6; 0: unknown, like all other fields
    known: Array  # uint8: the bits above
    proto: Array  # int16, after extension headers; -1: unknown
    src: Array  # uint8, shape (n, 16); IPv4 in the first four
    dst: Array
    sport: Array  # uint16
    dport: Array
    tcp_flags: Array  # uint16: nine bits
    icmp_type: Array  # uint8
    icmp_code: Array
    sub: Array  # uint16
    extra: Array  # uint32
    frag_id: Array  # uint32
    frag_off: Array  # uint16, in bytes
    l4: Array  # uint8: offset of the transport header; 0: unknown

    def at(self, rows: Array) -> Headers:
        """Returns the headers of these rows."""
        return Headers(*(getattr(self, field.name)[rows] for field in fields(self)))


def _empty(count: int) -> Headers:
    return Headers(
        version=np.zeros(count, np.uint8),
        known=np.zeros(count, np.uint8),
        proto=np.full(count, -1, np.int16),
        src=np.zeros((count, 16), np.uint8),
        dst=np.zeros((count, 16), np.uint8),
        sport=np.zeros(count, np.uint16),
        dport=np.zeros(count, np.uint16),
        tcp_flags=np.zeros(count, np.uint16),
        icmp_type=np.zeros(count, np.uint8),
        icmp_code=np.zeros(count, np.uint8),
        sub=np.zeros(count, np.uint16),
        extra=np.zeros(count, np.uint32),
        frag_id=np.zeros(count, np.uint32),
        frag_off=np.zeros(count, np.uint16),
        l4=np.zeros(count, np.uint8),
    )


class _Bytes:
    """The packets, and the number of readable bytes of each."""

    def __init__(self, packets: Array, caplen: Array, length: Array) -> None:
        self.packets = packets
        self.length = length.astype(np.int64)
        limit = min(packets.shape[1], 255)
        self.cap = np.minimum(np.minimum(caplen, limit), self.length).astype(np.int64)

    def word(self, rows: Array | slice, at: int, size: int) -> Array:
        """Returns a big-endian integer at one offset of all rows (must be within cap)."""
        return self.packets[rows, at : at + size].view(f">u{size}")[:, 0]

    def gather(self, rows: Array, at: Array, size: int) -> Array:
        """Returns big-endian integers, each at its own offset (must be within cap)."""
        value = self.packets[rows, at].astype(np.uint32)
        for more in range(1, size):
            value <<= np.uint32(8)
            value |= self.packets[rows, at + more]
        return value


def decode(packets: Array, caplen: Array, length: Array) -> Headers:
    """Returns the headers of `packets`: uint8 (n, width), last axis contiguous.

    `caplen` (n,): their captured bytes; `length` (n,): skb->len, which may differ from
    the lengths in the headers.
    """
    out = _empty(len(packets))
    if not len(packets):
        return out
    raw = _Bytes(packets, caplen, length)
    nibble = packets[:, 0] >> 4
    bound = np.zeros(len(packets), np.int64)
    start = np.zeros(len(packets), np.int64)
    rows4 = np.flatnonzero((nibble == 4) & (raw.cap >= 20))
    if rows4.size:
        _ipv4(raw, rows4, out, start, bound)
    rows6 = np.flatnonzero((nibble == 6) & (raw.cap >= 40))
    if rows6.size:
        _ipv6(raw, rows6, out, start, bound)
    _transport(raw, out, start, bound)
    return out


def _ipv4(raw: _Bytes, rows: Array, out: Headers, start: Array, bound: Array) -> None:
    all_rows: Array | slice = slice(None) if len(rows) == len(out.version) else rows
    ihl = (raw.packets[all_rows, 0] & 0x0F).astype(np.int64) * 4
    if int(ihl.min()) < 20:
        good = ihl >= 20
        rows, ihl = rows[good], ihl[good]
        all_rows = rows
        if not rows.size:
            return
    out.version[all_rows] = 4
    out.src[all_rows, :4] = raw.packets[all_rows, 12:16]
    out.dst[all_rows, :4] = raw.packets[all_rows, 16:20]
    out.proto[all_rows] = raw.packets[all_rows, 9]
    total = raw.word(all_rows, 2, 2).astype(np.int64)
    # The length of GSO packets above 64 KiB does not fit its field.
    big = (total == 0) & (raw.length[all_rows] > 65535)
    total[big] = raw.length[all_rows][big]
    bound[all_rows] = np.minimum(total, raw.cap[all_rows])
    start[all_rows] = ihl
    word = raw.word(all_rows, 6, 2).astype(np.uint16)
    fragment = np.flatnonzero(word & 0x3FFF)
    if fragment.size:
        which, word = rows[fragment], word[fragment]
        offset = (word & 0x1FFF) << 3
        more = (word & 0x2000) != 0
        out.known[which] = FRAGMENT | (more * np.uint8(MORE))
        out.frag_id[which] = raw.word(which, 4, 2)
        out.frag_off[which] = offset
        start[which[offset != 0]] = 0


def _ipv6(raw: _Bytes, rows: Array, out: Headers, start: Array, bound: Array) -> None:
    all_rows: Array | slice = slice(None) if len(rows) == len(out.version) else rows
    out.version[all_rows] = 6
    out.src[all_rows] = raw.packets[all_rows, 8:24]
    out.dst[all_rows] = raw.packets[all_rows, 24:40]
    upper = raw.packets[all_rows, 6].astype(np.int16)
    total = raw.word(all_rows, 4, 2).astype(np.int64) + 40
    # Jumbograms and GSO packets above 64 KiB have length 0.
    length = raw.length[all_rows]
    big = (total == 40) & ((length > 65535 + 40) | (upper == ip.HOPOPTS))
    total[big] = length[big]
    bound[all_rows] = np.minimum(total, raw.cap[all_rows])
    start[all_rows] = 40
    out.proto[all_rows] = upper
    extended = np.flatnonzero(ip.IS_EXTENSION[upper])
    if extended.size:
        _extensions(raw, rows[extended], out, start, bound)


def _extensions(raw: _Bytes, rows: Array, out: Headers, start: Array, bound: Array) -> None:
    """Skips extension headers; sets proto to what follows them, -1 if that was cut off."""
    for _ in range(_MAX_EXTENSIONS):
        # Eight bytes must be readable; otherwise what follows is unknown.
        readable = start[rows] + 8 <= bound[rows]
        start[rows[~readable]] = 0
        out.proto[rows[~readable]] = -1
        rows = rows[readable]
        if not rows.size:
            return
        at = start[rows]
        kind = out.proto[rows]
        upper = raw.gather(rows, at, 1).astype(np.int16)
        size = (raw.gather(rows, at + 1, 1).astype(np.int64) + 1) * 8
        size[kind == ip.AH] = (size[kind == ip.AH] // 8 + 1) * 4
        size[kind == ip.FRAGMENT] = 8
        last = np.zeros(len(rows), bool)
        frag = np.flatnonzero(kind == ip.FRAGMENT)
        if frag.size:
            which = rows[frag]
            word = raw.gather(which, at[frag] + 2, 2)
            offset = word & 0xFFF8
            out.known[which] |= np.uint8(FRAGMENT) | ((word & 1) * MORE).astype(np.uint8)
            out.frag_id[which] = raw.gather(which, at[frag] + 4, 4)
            out.frag_off[which] = offset
            last[frag] = offset != 0
        out.proto[rows] = upper
        start[rows] = np.where(last, 0, at + size)
        rows = rows[~last & ip.IS_EXTENSION[upper]]
        if not rows.size:
            return
    out.proto[rows] = -1
    start[rows] = 0


def _transport(raw: _Bytes, out: Headers, start: Array, bound: Array) -> None:
    start[start >= bound] = 0
    out.l4[:] = start
    proto = np.where(start > 0, out.proto, np.int16(-1))
    left = bound - start
    kind = ip.DECODED[proto]  # index -1 is the last element: not decoded

    rows = np.flatnonzero((kind == ip.HAS_PORTS) & (left >= 4))
    if rows.size:
        ports = raw.gather(rows, start[rows], 4)
        out.sport[rows] = ports >> np.uint32(16)
        out.dport[rows] = ports & np.uint32(0xFFFF)
        out.known[rows] |= np.uint8(PORTS)
        rows = rows[(proto[rows] == ip.TCP) & (left[rows] >= 14)]
        if rows.size:
            out.tcp_flags[rows] = raw.gather(rows, start[rows] + 12, 2) & np.uint32(0x1FF)
            out.known[rows] |= np.uint8(TCP_FLAGS)

    own = np.where(out.version == 4, ip.ICMP, ip.ICMPV6)
    rows = np.flatnonzero((kind == ip.IS_ICMP) & (proto == own) & (left >= 2))
    if rows.size:
        out.icmp_type[rows] = raw.gather(rows, start[rows], 1)
        out.icmp_code[rows] = raw.gather(rows, start[rows] + 1, 1)
        out.known[rows] |= np.uint8(ICMP)
        queries = np.where(
            out.version[rows] == 4,
            ip.ICMP_QUERY[out.icmp_type[rows]],
            ip.ICMPV6_QUERY[out.icmp_type[rows]],
        )
        rows = rows[queries & (left[rows] >= 6)]
        out.sub[rows] = raw.gather(rows, start[rows] + 4, 2)
        out.known[rows] |= np.uint8(QUERY)

    rows = np.flatnonzero((kind == ip.IS_TUNNEL) & (left >= 4))
    if rows.size:
        _tunnel(raw, out, rows, proto[rows], start[rows], left[rows])


def _tunnel(
    raw: _Bytes, out: Headers, rows: Array, proto: Array, start: Array, left: Array
) -> None:
    """Decodes GRE, ESP and AH, of which at least four bytes are readable."""
    gre = proto == ip.GRE
    word = raw.gather(rows[gre], start[gre], 4)
    out.sub[rows[gre]] = word & np.uint32(0xFFFF)
    out.known[rows[gre]] |= np.uint8(GRE)
    # The offset of the key or SPI.  The GRE key follows the checksum field, which is
    # also present with routing (RFC 1701).
    at = np.where(proto == ip.AH, 4, 0)
    at[gre] = np.where(word & np.uint32(0xC0000000), 8, 4)
    there = left >= at + 4
    there[gre] &= (word & np.uint32(0x20000000)) != 0
    rows, at = rows[there], (start + at)[there]
    out.extra[rows] = raw.gather(rows, at, 4)
    out.known[rows] |= np.uint8(EXTRA)
