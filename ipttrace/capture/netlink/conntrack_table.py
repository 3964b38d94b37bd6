# SPDX-License-Identifier: GPL-2.0-only
"""Completes nftables' rows from conntrack's table: tuples and zone of a connection.

nftables reports the id and the state of a connection, and no more.  The packet's own
addresses, as they are or turned round, are those of the entry in one direction or the
other, unless both ends were translated: an entry found by them which has the same id is
the packet's own.  An entry keeps its original tuple and its zone for life, so both are
sure although they are read later; its mark is not, and stays unknown.  Nothing is asked
for a packet whose connection is known, and only so much in a second; the rest stays
unknown.  Must not change anything in the kernel.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from ipttrace.capture.netlink import conntrack
from ipttrace.capture.netlink.attributes import NFGEN, Array
from ipttrace.capture.netlink.keys import PORTED, opaque
from ipttrace.capture.netlink.nft.wire import attribute, nested
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6
from ipttrace.stream import record

_NETLINK_NETFILTER: Final = 12
_GET: Final = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NEW: Final = 1 << 8  # IPCTNL_MSG_CT_NEW, the answer
_REQUEST: Final = 0x001
_HEADER: Final = struct.Struct("=IHHII")
_SO_RCVBUFFORCE: Final = 33
_ROOM: Final = 1 << 20
_WIDTH: Final = 1024  # of an answer; a longer one is cut
_AT_ONCE: Final = 64  # requests in one message: the answers must fit the socket

# enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto
_TUPLE_ORIG: Final = 1
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_NUM, _SPORT, _DPORT = 1, 2, 3
_ICMP: Final[dict[int, int]] = {1: 4, 58: 7}  # protocol → identifier; then type and code
# Types of queries to those of the other direction (nf_conntrack_proto_icmp.c, …_icmpv6.c).
_TURNED: Final = {
    1: {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
    58: {128: 129, 129: 128, 139: 140, 140: 139},
}

_PER_SECOND: Final = 500  # connections that are looked up
_MOST: Final = 1 << 14  # connections that are remembered
# How long, s: a new connection with the same id and tuple could be in another zone.
_KEEP: Final = 2.0
_TRIES: Final = 2  # for a connection in that time, at most: by packets with other addresses

_CONNECTION: Final = np.dtype(conntrack.FIELDS)
_PACKET: Final = np.dtype(
    [
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        ("sport", "u2"),  # of ICMP: the identifier
        ("dport", "u2"),  # of ICMP: type << 8 | code
        ("proto", "u1"),
        ("known", "?"),
    ]
)
_PACKET_LEN: Final = 60  # bytes of a packet that are looked at


_ENTRY: Final[Mapping[str, Any]] = record.ENTRY_DTYPE.fields or {}
_PARTS: Final = np.dtype(
    {
        "names": ["orig_ports", "both_ports", "orig", "both"],
        "formats": ["V6", "V10", "V32", "V64"],
        "offsets": [_ENTRY[name][1] for name in ("ct_zone", "ct_zone", *("ct_orig_src",) * 2)],
        "itemsize": record.ENTRY_DTYPE.itemsize,
    }
)
"""An entry record as bytes that are copied together: zone and ports, and addresses."""


class ConntrackTable:
    """Conntrack's table of one namespace."""

    def __init__(self) -> None:
        """Of the calling thread's namespace.  Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._sequence = 0
        self._allowed, self._since = float(_PER_SECOND), time.monotonic()
        self._forget()

    def _forget(self) -> None:
        """Forgets all connections."""
        self._until = time.monotonic() + _KEEP
        # By id: the index into the next two arrays, 0 if it was not found; tries.
        self._known: dict[int, tuple[int, int]] = {}
        self._entries = np.zeros(64, record.ENTRY_DTYPE)
        self._keys = np.zeros((64, 8), np.uint64)  # of its packets: see _keys_of
        self._used = 1
        # Of those found, and those given up: ids, ascending, and see _find.
        self._ids = np.zeros(0, np.uint64)
        self._at = np.zeros(0, np.intp)

    def close(self) -> None:
        """Closes the socket, which holds the namespace."""
        self._socket.close()

    def fill(self, entries: Array) -> None:
        """Completes those of these entry records, shape (n,), that have CT_STATE alone."""
        which = np.flatnonzero(entries["ct_flags"] & np.uint8(record.CT_STATE))
        if not len(which):
            return
        if time.monotonic() >= self._until or self._used + _PER_SECOND > _MOST:
            self._forget()
        ids = entries["ct"][which]
        packets = entries["packet"][which, :_PACKET_LEN]
        caplens = entries["caplen"][which]
        index = self._find(ids)
        if not index.all():
            missing = np.flatnonzero(index == 0)
            # The first packet of a connection has its addresses before NAT.
            missing = missing[np.argsort(entries["time"][which[missing]], kind="stable")]
            families = entries["family"][which[missing]]
            if self._look_up(ids[missing], families, packets[missing], caplens[missing]):
                index = self._find(ids)
            index = np.maximum(index, 0)
        # Two connections can have the same id, though seldom: 32 bits are hashed.
        keys = _keys_of(packets, caplens)
        sure = (self._keys[index] == keys[:, None]).any(axis=1) & (index != 0) & (keys != 0)
        if not sure.all():
            which, index = which[sure], index[sure]
            if not len(which):
                return
        found = self._entries[index]
        entries["ct_proto"][which] = found["ct_proto"]
        entries["flags"][which] |= record.F_CONNTRACK
        entries["ct_flags"][which] |= record.CT_NO_MARK
        # Until NAT has been decided, the other direction is not known.
        status = entries["ct_status"][which]
        done = (status & conntrack.CONFIRMED != 0) | (found["ct_status"] & conntrack.NAT == 0)
        done |= status & conntrack.NAT_DONE == conntrack.NAT_DONE
        into, parts = entries.view(_PARTS), found.view(_PARTS)
        into["both_ports"][which[done]] = parts["both_ports"][done]
        into["both"][which[done]] = parts["both"][done]
        if not done.all():
            into["orig_ports"][which[~done]] = parts["orig_ports"][~done]
            into["orig"][which[~done]] = parts["orig"][~done]

    def _find(self, ids: Array) -> Array:
        """The index of each connection into `_entries`: shape (n,).

        0 if it is not known, -1 if it was looked up in vain.
        """
        if not len(self._ids):
            return np.zeros(len(ids), np.intp)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        found: Array = np.where(self._ids[at] == ids, self._at[at], 0)
        return found

    def _look_up(self, ids: Array, families: Array, packets: Array, caplens: Array) -> bool:
        """Looks up the connections of these packets, shape (n,); returns whether it did."""
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._since) * _PER_SECOND, float(_PER_SECOND))
        self._since = now
        if self._allowed < 1:
            return False
        asked: dict[int, int] = {}  # id → its first packet that says enough
        tuples = _tuples(packets, caplens, families)
        good = np.flatnonzero(tuples["known"])
        some, first = np.unique(ids[good], return_index=True)
        for one, at in zip(some.tolist(), good[first].tolist(), strict=True):
            index, tries = self._known.get(one, (0, 0))
            if index or tries >= _TRIES or self._allowed < 1 or len(self._known) >= _MOST:
                continue
            self._allowed -= 1
            self._known[one] = (0, tries + 1)
            asked[one] = at
        wanted = list(asked.items())
        for start in range(0, len(wanted), _AT_ONCE // 2):
            self._ask(wanted[start : start + _AT_ONCE // 2], families, tuples)
        if not wanted:
            return False
        known = {
            one: index or -1
            for one, (index, tries) in self._known.items()
            if index or tries >= _TRIES
        }
        numbers = np.fromiter(known, np.uint64, len(known))
        order = np.argsort(numbers)
        self._ids = numbers[order]
        self._at = np.fromiter(known.values(), np.intp, len(known))[order]
        return True

    def _ask(self, wanted: list[tuple[int, int]], families: Array, tuples: Array) -> None:
        """Looks connections up: each an id, and the index of a packet."""
        requests = []
        of: dict[int, int] = {}  # sequence → id
        for one, row in wanted:
            for turned in (False, True):
                self._sequence = self._sequence % 0x3FFFFFFF + 1
                of[self._sequence] = one
                requests.append(request(self._sequence, int(families[row]), tuples[row], turned))
        with contextlib.suppress(OSError):
            for _ in self._answers():
                pass  # what is left of earlier ones
            self._socket.sendto(b"".join(requests), (0, 0))
            # The kernel answers before sendto() returns.
            for sequence, entry in decoded(self._answers()):
                one = of.get(sequence, -1)
                if int(entry["ct"]) == one and not self._known[one][0]:
                    self._add(one, entry)

    def _add(self, one: int, entry: Array) -> None:
        """Remembers the connection `one`, whose entry is of conntrack.FIELDS."""
        if self._used == len(self._entries):
            self._entries = np.concatenate([self._entries, np.zeros_like(self._entries)])
            self._entries = self._entries.astype(record.ENTRY_DTYPE)
            self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
        for name in _CONNECTION.names or ():
            self._entries[name][self._used] = entry[name]
        self._keys[self._used] = _keys_of_connection(entry)
        self._known[one] = (self._used, self._known[one][1])
        self._used += 1

    def _answers(self) -> Iterable[bytes]:
        while True:
            try:
                data, sender = self._socket.recvfrom(_WIDTH)
            except BlockingIOError:
                return
            if not sender[0]:
                yield data


def request(sequence: int, family: int, packet: Array, turned: bool) -> bytes:
    """Asks for the entry, in zone 0, of which a direction is `packet`, one of _PACKET.

    `turned`: a direction of it is the packet's reversed.
    """
    src, dst, proto = packet["src"].tobytes(), packet["dst"].tobytes(), int(packet["proto"])
    sport, dport = int(packet["sport"]), int(packet["dport"])
    if turned:
        src, dst = dst, src
    size, first = (16, 3) if family == NFPROTO_IPV6 else (4, 1)
    inner = attribute(_NUM, bytes([proto]))
    if proto in _ICMP:
        kind = dport >> 8
        kind = _TURNED[proto].get(kind, kind) if turned else kind
        inner += attribute(_ICMP[proto], struct.pack(">H", sport))
        inner += attribute(_ICMP[proto] + 1, bytes([kind]))
        inner += attribute(_ICMP[proto] + 2, bytes([dport & 0xFF]))
    else:
        ports = (dport, sport) if turned else (sport, dport)
        for kind, port in zip((_SPORT, _DPORT), ports, strict=True):
            inner += attribute(kind, struct.pack(">H", port))
    addresses = attribute(first, src[:size]) + attribute(first + 1, dst[:size])
    body = struct.pack(">BBH", family, 0, 0) + nested(
        _TUPLE_ORIG, nested(_TUPLE_IP, addresses), nested(_TUPLE_PROTO, inner)
    )
    return _HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST, sequence, 0) + body


def decoded(answers: Iterable[bytes]) -> list[tuple[int, Array]]:
    """Sequence number and connection, conntrack.FIELDS, of each answer that has one."""
    good = [one for one in answers if len(one) >= NFGEN and _HEADER.unpack_from(one)[1] == _NEW]
    if not good:
        return []
    data = np.zeros((len(good), _WIDTH), np.uint8)
    for row, one in zip(data, good, strict=True):
        row[: len(one)] = np.frombuffer(one, np.uint8)
    claimed = data[:, :4].copy().view(np.uint32)[:, 0]
    ends = np.minimum(np.array([len(one) for one in good]), claimed).astype(np.int64)
    found = np.zeros(len(good), _CONNECTION)
    start = np.full(len(good), NFGEN, np.int32)
    size = np.maximum(ends - NFGEN, 0).astype(np.int32)
    conntrack.fill(found, np.arange(len(good)), data, start, size)
    sequences = data[:, 8:12].copy().view(np.uint32)[:, 0].tolist()
    return list(zip(sequences, found, strict=True))


_QUERIES: Final = [proto << 8 | kind for proto, kinds in _TURNED.items() for kind in kinds]


def _headers(packets: Array, caplens: Array) -> tuple[Array, Array, Array, Array]:
    """Is it IPv6; the protocol; the transport header's first 8 bytes; does it have them?"""
    six = packets[:, 0] >> 4 == 6
    proto = np.where(six, packets[:, 6], packets[:, 9])
    if (packets[:, 0] == 0x45).all():
        l4 = np.full(len(packets), 20)
        head = packets[:, 20:28]
    else:
        l4 = np.where(six, 40, (packets[:, 0] & 15).astype(np.intp) * 4)
        at = np.minimum(l4[:, None] + np.arange(8), packets.shape[1] - 1)
        head = packets[np.arange(len(packets))[:, None], at]
    # Fragments other than the first have no ports.
    later = ~six & ((packets[:, 6] & 0x1F) | packets[:, 7] != 0)
    fits = (l4 + 8 <= caplens) & ~later & ~opaque(six, proto, l4)
    return six, proto, np.ascontiguousarray(head), fits


def _tuples(packets: Array, caplens: Array, families: Array) -> Array:
    """The packets' addresses as conntrack has them: _PACKET, shape (n,)."""
    six, proto, head, fits = _headers(packets, caplens)
    found = np.zeros(len(packets), _PACKET)
    addresses = np.zeros((len(packets), 32), np.uint8)
    addresses[six] = packets[six, 8:40]
    addresses[~six, :4], addresses[~six, 16:20] = packets[~six, 12:16], packets[~six, 16:20]
    found["src"], found["dst"] = addresses[:, :16], addresses[:, 16:]
    found["proto"] = proto
    words = head.view(">u2")
    icmp = np.isin(proto, tuple(_ICMP))
    found["sport"] = np.where(icmp, words[:, 2], words[:, 0])
    found["dport"] = np.where(icmp, words[:, 0], words[:, 1])
    query = np.isin(proto.astype(np.int64) << 8 | head[:, 0], _QUERIES)
    version = families == np.where(six, NFPROTO_IPV6, NFPROTO_IPV4)
    found["known"] = fits & version & (PORTED[proto] | query)
    return found


def _keys_of(packets: Array, caplens: Array) -> Array:
    """Hashes of both ends and the protocol: uint64, shape (n,); 0 if the packet has no ports.

    Of ICMP's queries the identifier takes the place of both ports.
    """
    six, proto, head, fits = _headers(packets, caplens)
    addresses = np.ascontiguousarray(packets[:, 12:20]).view("<u8")[:, 0].copy()
    if six.any():
        addresses[six] = 0
        for column in np.ascontiguousarray(packets[six, 8:40]).view("<u8").T:
            addresses[six] = _mix(addresses[six], column)
    words = head.view("<u4")
    ports = words[:, 0].astype(np.uint64)
    ported = PORTED[proto]
    if not ported.all():
        query = np.isin(proto.astype(np.int64) << 8 | head[:, 0], _QUERIES)
        identifier = words[:, 1].astype(np.uint64) & np.uint64(0xFFFF)
        ports = np.where(query, identifier << np.uint64(16) | identifier, ports)
        ported |= query
    keys = _mix(addresses, ports << np.uint64(8) | proto)
    return np.where(fits & ported, keys | np.uint64(1), 0)


def _keys_of_connection(entry: Array) -> Array:
    """The _keys_of of its packets, in both directions, translated or not: shape (8,)."""
    six = entry["ct_orig_src"][4:].any() or entry["ct_reply_src"][4:].any()
    proto = int(entry["ct_proto"])
    icmp = proto in _ICMP

    def end(direction: str, side: str) -> tuple[bytes, int]:
        port = entry[f"ct_{direction}_{'sport' if side == 'src' or icmp else 'dport'}"]
        return entry[f"ct_{direction}_{side}"].tobytes()[: 16 if six else 4], int(port)

    sources = {
        "orig": [end("orig", "src"), end("reply", "dst")],
        "reply": [end("reply", "src"), end("orig", "dst")],
    }
    packets = np.zeros((8, _PACKET_LEN), np.uint8)
    pairs = [
        pair
        for one, other in (("orig", "reply"), ("reply", "orig"))
        for pair in itertools.product(sources[one], sources[other])
    ]
    for row, ((src, sport), (dst, dport)) in zip(packets, pairs, strict=True):
        kind = min(_TURNED[proto]) << 8 if icmp else 0
        words = (kind, 0, sport, 0) if icmp else (sport, dport, 0, 0)
        head = struct.pack(">4H", *words)
        if six:
            fixed = struct.pack(">IHBB", 6 << 28, 0, proto, 0)
        else:
            fixed = struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 0, proto, 0)
        made = fixed + src + dst + head
        row[: len(made)] = np.frombuffer(made, np.uint8)
    return _keys_of(packets, np.full(8, _PACKET_LEN, np.int64))


def _mix(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore"):
        mixed = (a ^ b.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        found: Array = mixed * np.uint64(0xBF58476D1CE4E5B9) + a
        return found
