# SPDX-License-Identifier: GPL-2.0-only
"""Rows of fragments, and of packets that may have been reassembled from them, as columns.

IPv4 (RFC 791): fragments of one packet have the same source, destination, protocol and
identification, and so has the packet.  IPv6 (RFC 8200): source, destination and
identification; the packet has lost the last with the fragment header.  Must not loop over
rows in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.decode import headers
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.store import Names, Part

# Bytes of the transport header that a first fragment must hold: rules on ports read it whole.
_NEEDED: Final = {ip.TCP: 20, ip.UDP: 8, ip.UDPLITE: 8, ip.SCTP: 12, ip.DCCP: 12}
_PORTS: Final = 4
_TIMEOUT: Final = "FRAG_REASM_TIMEOUT"  # enum skb_drop_reason
_UNKNOWN: Final = 1 << 16  # bytes: more than any header
_FRAGMENT: Final = 44  # the next header of IPv6
# Headers that may stand before the fragment header.
_BEFORE: Final = (0, 43, 60)
_MOST_BEFORE: Final = 4

_needed = np.zeros(257, np.int64)
for _proto, _size in _NEEDED.items():
    _needed[_proto] = _size


@dataclass(frozen=True, slots=True)
class Pieces:
    """n rows of fragments, ascending by `seq`; arrays of shape (n,)."""

    seq: Array  # int64
    time: Array  # int64, ns since the epoch
    place: Array  # uint64: host << 32 | network namespace
    version: Array  # uint8: 4, 6
    key: Array  # uint64: the same for all fragments of a packet, and of later packets like it
    journey: Array  # uint64
    start: Array  # int64: first byte of the packet's payload, and one past the last
    end: Array
    more: Array  # bool: others follow
    short: Array  # bool: a first fragment without the complete transport header
    portless: Array  # bool: not even the ports
    given_up: Array  # bool: a drop because the packet's other fragments did not come

    def __len__(self) -> int:
        return len(self.seq)

    def at(self, rows: Array | slice) -> Pieces:
        """Returns some of the rows."""
        return Pieces(*(getattr(self, one.name)[rows] for one in fields(self)))


@dataclass(frozen=True, slots=True)
class Wholes:
    """m rows of packets that may be those of fragments, ascending by `seq`."""

    seq: Array  # int64
    time: Array  # int64
    key: Array  # uint64, as in Pieces
    journey: Array  # uint64
    size: Array  # int64: bytes of payload; -1: unknown

    def __len__(self) -> int:
        return len(self.seq)

    def at(self, rows: Array | slice) -> Wholes:
        """Returns some of the rows."""
        return Wholes(*(getattr(self, one.name)[rows] for one in fields(self)))


def joined(one: Pieces, two: Pieces) -> Pieces:
    """Returns the rows of both."""
    pairs = ((getattr(one, each.name), getattr(two, each.name)) for each in fields(one))
    return Pieces(*(np.concatenate(pair) for pair in pairs))


def joined_wholes(one: Wholes, two: Wholes) -> Wholes:
    """Returns the rows of both."""
    pairs = ((getattr(one, each.name), getattr(two, each.name)) for each in fields(one))
    return Wholes(*(np.concatenate(pair) for pair in pairs))


def no_pieces() -> Pieces:
    """Returns no rows."""
    long, wide, bits = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, bool)
    small = np.zeros(0, np.uint8)
    return Pieces(long, long, wide, small, wide, wide, long, long, bits, bits, bits, bits)


def no_wholes() -> Wholes:
    """Returns no rows."""
    long, wide = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    return Wholes(long, long, wide, wide, long)


class Extract:
    """Takes fragments and packets out of parts of a store."""

    def __init__(self) -> None:
        self._hash = Hash(13)

    def pieces(self, part: Part, names: Names) -> Pieces:
        """Returns the fragments of a part whose place in their packet is known.

        `names`: of the store, for the reasons of drops.
        """
        columns = part.columns
        known = columns["known"]
        rows = np.flatnonzero(known & np.uint8(headers.FRAGMENT))
        if not rows.size:
            return no_pieces()
        version = columns["version"][rows]
        begin, end = _payload(part, rows, fragmented=True)
        start = columns["frag_off"][rows].astype(np.int64)
        good = (begin > 0) & (end >= begin)
        rows, version, begin, end, start = (
            each[good] for each in (rows, version, begin, end, start)
        )
        more = (known[rows] & np.uint8(headers.MORE)) != 0
        short, portless = _short(part, rows, begin, end, (start == 0) & more)
        return Pieces(
            seq=rows.astype(np.int64) + part.first,
            time=columns["time"][rows],
            place=_places(part, rows),
            version=version,
            key=self._keys(part, rows, columns["frag_id"][rows]),
            journey=columns["journey"][rows],
            start=start,
            end=start + end - begin,
            more=more,
            short=short,
            portless=portless,
            given_up=_given_up(columns["reason"][rows], names),
        )

    def wholes(self, part: Part, pieces: Pieces) -> Wholes:
        """Returns the packets of a part that may be those of `pieces`.

        By their key; or by their journey, because a packet is reassembled in the skb of the
        fragment that came last.
        """
        columns = part.columns
        rows = np.flatnonzero(
            ((columns["known"] & np.uint8(headers.FRAGMENT)) == 0) & (columns["version"] != 0)
        )
        if not rows.size or not len(pieces):
            return no_wholes()
        number = columns["packet"][rows, 4].astype(np.uint32) << np.uint32(8)
        number |= columns["packet"][rows, 5]
        key = self._keys(part, rows, number)
        order = np.argsort(pieces.journey, kind="stable")
        journeys, keys = pieces.journey[order], pieces.key[order]
        at = np.minimum(
            np.searchsorted(journeys, columns["journey"][rows], "right") - 1, len(journeys) - 1
        )
        same_skb = journeys[at] == columns["journey"][rows]
        key = np.where(same_skb, keys[at], key)
        same = (columns["version"][rows] == 4) & np.isin(key, pieces.key)
        found = same_skb | same
        rows, key = rows[found], key[found]
        begin, end = _payload(part, rows, fragmented=False)
        return Wholes(
            seq=rows.astype(np.int64) + part.first,
            time=columns["time"][rows],
            key=key,
            journey=columns["journey"][rows],
            size=np.where(begin > 0, end - begin, -1),
        )

    def _keys(self, part: Part, rows: Array, number: Array) -> Array:
        columns = part.columns
        version = columns["version"][rows].astype(np.uint32)
        # The protocol is part of IPv4's key only.
        proto = np.where(version == 4, columns["proto"][rows], 0).astype(np.uint32)
        words = [columns["host"][rows].astype(np.uint32), columns["netns"][rows], version, proto]
        for end in ("src", "dst"):
            words += list(np.ascontiguousarray(columns[end][rows]).view(np.uint32).T)
        return self._hash.full([*words, number.astype(np.uint32)])


def _given_up(reasons: Array, names: Names) -> Array:
    number = names.find(_TIMEOUT)
    found: Array = reasons == np.uint32(number) if number else np.zeros(len(reasons), bool)
    return found


def _places(part: Part, rows: Array) -> Array:
    host = part.columns["host"][rows].astype(np.uint64)
    places: Array = host << np.uint64(32) | part.columns["netns"][rows]
    return places


def _payload(part: Part, rows: Array, *, fragmented: bool) -> tuple[Array, Array]:
    """Returns where the payload that is fragmented begins and ends; 0, 0 if unknown.

    In bytes from the network header; behind the fragment header, if there is one.
    """
    columns = part.columns
    packet, cap = columns["packet"], columns["caplen"][rows].astype(np.int64)
    version = columns["version"][rows]

    def word(at: int) -> Array:
        both: Array = packet[rows, at].astype(np.int64) << 8 | packet[rows, at + 1]
        return both

    begin = (packet[rows, 0] & np.uint8(0x0F)).astype(np.int64) * 4
    end = word(2)
    six = np.flatnonzero(version == 6)
    if six.size:
        at, wide = rows[six], packet.shape[1]
        here = np.full(len(six), 40, np.int64)
        upper = packet[at, 6]
        for _ in range(_MOST_BEFORE):
            more = np.isin(upper, _BEFORE) & (here + 8 <= np.minimum(cap[six], wide))
            if not more.any():
                break
            which, where = at[more], here[more]
            upper[more] = packet[which, where]
            here[more] += (packet[which, where + 1].astype(np.int64) + 1) * 8
        if fragmented:
            here = np.where(upper == _FRAGMENT, here + 8, 0)
        begin[six] = here
        plain = packet[at, 4].astype(np.int64) << 8
        end[six] = np.where(here > 0, 40 + (plain | packet[at, 5]), 0)
    return begin, end


def _short(part: Part, rows: Array, begin: Array, end: Array, first: Array) -> tuple[Array, Array]:
    """Returns which first fragments lack a part of the transport header, and the ports."""
    columns = part.columns
    proto = columns["proto"][rows]
    l4 = columns["l4"][rows].astype(np.int64)
    complete = columns["caplen"][rows] >= end
    six = columns["version"][rows] == 6
    # Extension headers of IPv6 may reach beyond the fragment, and then l4 is 0 too.
    cut = six & (proto == -1) & complete
    held = np.where(l4 > 0, end - l4, np.where(six, 0, end - begin))
    held[(l4 == 0) & six & ~complete] = _UNKNOWN
    needed = _needed[proto]  # index -1 is the last element: 0
    short = first & (cut | (held < needed))
    portless = first & (cut | ((needed > 0) & (held < _PORTS)))
    return short, portless
