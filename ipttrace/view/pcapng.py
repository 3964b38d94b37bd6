# SPDX-License-Identifier: GPL-2.0-only
"""Rows as packets for Wireshark and tshark, with their traversals as comments.

A journey becomes one packet per form: traversals with the same bytes and the same
device are comments of one packet; NAT, a lower TTL or another device begins the next.
From PREROUTING to INPUT, a packet is on the device it came in by; from FORWARD or
OUTPUT on, on the device it leaves by, as tcpdump would see it there.  A packet that
FORWARD drops stays on the device it came in by.  What happened outside the tables is a
comment as well.

The format is draft-ietf-opsawg-pcapng, little-endian.  All text is escaped.  Must
not do I/O.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from ipttrace import __version__
from ipttrace.stream import record
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.drops import explain
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import table_name
from ipttrace.trace.store import Store
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.stations import outcome, reason_and_place
from ipttrace.view.values import duration, path_text

LINKTYPE_RAW: Final = 101
SNAPLEN: Final = 128  # bytes of a packet in a record

# How long a packet is held back for more traversals of its form, ns; NFQUEUE may take longer.
_HOLD: Final = 100_000_000
# The most packets held back, whatever their times.
_MOST_HELD: Final = 1 << 14
# A forged stream could have endless traversals of one skb.
_MOST_COMMENTS: Final = 64
_MOST_INTERFACES: Final = 1 << 12
# In characters; an option holds 65,535 bytes, of which each takes up to four.
_LONGEST: Final = 8000
_SHORT: Final = 256

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D

_COMMENT: Final = 1
_SHB_HARDWARE, _SHB_OS, _SHB_USERAPPL = 2, 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS, _EPB_PACKETID = 2, 5
_INBOUND, _OUTBOUND = 1, 2

_INCOMING: Final = frozenset({"PREROUTING", "INPUT"})
_IN_STATIONS: Final = frozenset({"received", "delivered"})
_GOES_ON: Final = frozenset({"ACCEPT", "STOP", "REPEAT", None})

_Form = tuple[int, int, str | None, bool]
"""Host, network namespace, device, is it incoming."""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, text: str, longest: int = _SHORT) -> bytes:
    """Returns `text` as an option: escaped, UTF-8, at most `longest` characters."""
    return _option(code, clean(text, longest).encode())


def _block(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


@dataclass(slots=True)
class _Packet:
    """One form of a journey, open for more traversals."""

    form: _Form
    length: int | None  # None: unknown
    data: bytes
    rows: list[Row]

    def includes(self, form: _Form, length: int | None, data: bytes) -> bool:
        """Does a traversal with these bytes belong to this packet?  Capture lengths differ."""
        if self.form != form or len(self.rows) >= _MOST_COMMENTS:
            return False
        if self.length != length and self.length is not None and length is not None:
            return False
        return self.data.startswith(data) or data.startswith(self.data)

    @property
    def outgoing(self) -> bool:
        """Is it on the device it leaves by?"""
        if _is_incoming(self.rows[0]):
            return False
        last = self.rows[-1]
        return last.hook != "FORWARD" or last.verdict in _GOES_ON


def _is_incoming(row: Row) -> bool:
    """Is the packet on the device it came in by?"""
    if row.station is None:
        return row.hook in _INCOMING
    return row.station in _IN_STATIONS or row.out is None


class Pcapng:
    """An `Output`.  `names` is used when the first packet of a namespace comes."""

    def __init__(self, names: LabelSource = None) -> None:
        self._labels = labels_of(names)
        self._interfaces: dict[tuple[int, int, str | None], int] = {}
        self._open: dict[int, _Packet] = {}  # by journey
        self._held: list[tuple[int, int, _Packet]] = []  # a heap: time, number, packet
        self._made = 0
        self._newest = 0

    def begin(self, about: Mapping[str, object]) -> bytes:
        options = []
        for code, name, before in ((_SHB_HARDWARE, "arch", ""), (_SHB_OS, "kernel", "Linux ")):
            if about.get(name):
                options.append(_text(code, before + str(about[name])))
        options.append(_text(_SHB_USERAPPL, f"ipttrace {__version__}"))
        for name, before in (("host", "traced on "), ("expr", "filter: ")):
            if about.get(name):
                options.append(_text(_COMMENT, before + str(about[name])))
        # Version 1.0, section of unknown length.
        return _block(
            _SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1), *options, _option(0, b"")
        )

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        """Returns packets in order of time, if the rows came so; `seqs` in any order."""
        wanted = np.sort(np.asarray(seqs, np.int64))
        packets = _packets(store, wanted)
        count = 0
        # Rows that left the store after their bytes were copied are skipped.
        for row in store.rows(wanted):
            data = packets.get(row.index)
            if data is not None:
                self._take(row, data)
                count += 1
        return b"".join(self._due(self._newest - _HOLD)), count

    def pause(self) -> bytes:
        return self.end()

    def end(self) -> bytes:
        return b"".join(self._due(None))

    def _take(self, row: Row, data: bytes) -> None:
        incoming = _is_incoming(row)
        device = row.in_ or row.out if incoming else row.out or row.in_
        form = (row.host, row.netns, device, incoming)
        packet = self._open.get(row.journey)
        if packet is None or not packet.includes(form, row.len, data):
            packet = self._open[row.journey] = _Packet(form, row.len, data, [])
            heapq.heappush(self._held, (row.time, self._made, packet))
            self._made += 1
        packet.length = row.len if packet.length is None else packet.length
        packet.data = max(packet.data, data, key=len)
        packet.rows.append(row)
        self._newest = max(self._newest, row.time)

    def _due(self, until: int | None) -> Iterator[bytes]:
        """Yields the blocks of packets that began before `until`, and of those beyond the limit."""
        while self._held and (
            until is None or self._held[0][0] < until or len(self._held) > _MOST_HELD
        ):
            packet = heapq.heappop(self._held)[2]
            journey = packet.rows[0].journey
            if self._open.get(journey) is packet:
                del self._open[journey]
            yield from self._blocks(packet)

    def _blocks(self, packet: _Packet) -> Iterator[bytes]:
        first = packet.rows[0]
        outgoing = packet.outgoing
        device = first.out or first.in_ if outgoing else first.in_ or first.out
        key = (first.host, first.netns, device)
        number = self._interfaces.get(key)
        if number is None:
            # A forged stream could have a new name in every packet.
            if len(self._interfaces) >= _MOST_INTERFACES:
                key = (0, 0, "(too many devices)")
            number = self._interfaces.get(key)
        if number is None:
            number = self._interfaces[key] = len(self._interfaces)
            yield self._interface(*key)
        data = packet.data
        name = self._labels.name(first.host, first.netns)
        high, low = divmod(min(max(first.time, 0), 2**64 - 1), 1 << 32)
        yield _block(
            _ENHANCED_PACKET,
            struct.pack("<IIIII", number, high, low, len(data), max(packet.length or 0, len(data))),
            data,
            bytes(-len(data) % 4),
            *(_text(_COMMENT, _traversal(row, name), _LONGEST) for row in packet.rows),
            _text(_COMMENT, _owner(packet.rows[-1]), _LONGEST),
            _option(_EPB_FLAGS, struct.pack("<I", _OUTBOUND if outgoing else _INBOUND)),
            # One packet that several devices saw has one id.
            _option(_EPB_PACKETID, struct.pack("<Q", first.journey)),
            _option(0, b""),
        )

    def _interface(self, host: int, netns: int, device: str | None) -> bytes:
        name = self._labels.name(host, netns)
        location = f"namespace {name} ({netns})" if name else f"namespace {netns}"
        if host or self._labels.several:
            location += f" of host {self._labels.host(host)}"
        return _block(
            _INTERFACE,
            struct.pack("<HHI", LINKTYPE_RAW, 0, SNAPLEN),
            _text(_IF_NAME, device or "(no device)"),
            _text(_IF_DESCRIPTION, f"{device or 'no device'} in {location}"),
            _option(_IF_TSRESOL, b"\x09"),  # 10^-9 s
            _option(0, b""),
        )


def _packets(store: Store, wanted: Array) -> dict[int, bytes]:
    """Returns the captured bytes of the held rows among `wanted` (int64, ascending)."""
    found: dict[int, bytes] = {}
    if not len(wanted):
        return found
    for part in store.parts(int(wanted[0]), int(wanted[-1]) + 1):
        a, b = np.searchsorted(wanted, (part.first, part.first + len(part)))
        at = wanted[a:b] - part.first
        # A forged record can claim more bytes than it has room for.
        sizes = np.minimum(part.columns["caplen"][at], SNAPLEN)
        unknown = part.columns["flags"][at] & record.F_NO_LEN != 0
        sizes = np.minimum(sizes, np.where(unknown, SNAPLEN, part.columns["len"][at]))
        packed = part.columns["packet"][at].tobytes()
        for position, (seq, size) in enumerate(
            zip(wanted[a:b].tolist(), sizes.tolist(), strict=True)
        ):
            found[seq] = packed[position * SNAPLEN : position * SNAPLEN + size]
    return found


@lru_cache(maxsize=4096)
def _path(path: tuple[Step, ...], partial: bool) -> str:
    return path_text(path, partial)


def _traversal(row: Row, netns: str | None) -> str:
    """Returns `FORWARD filter FORWARD:2 → DOCKER-USER:1 DROP 12.3 µs rule: -A DOCKER-USER …`.

    Of a station, `DROPPED IP_RPFILTER at ip_rcv_finish_core+0x1d2: RPF: the reverse path …`.
    """
    if row.station is not None:
        return _station(row, netns)
    table = table_name(row.tables, row.table)
    end = row.verdict or "(verdict unknown)"
    words = [row.hook, table, _path(row.path, row.partial), end]
    if row.cost_ns is not None:
        words.append(duration(row.cost_ns))
    if row.rule:
        words.append(f"rule: {row.rule}")
    return " ".join(word for word in words if word)


def _station(row: Row, netns: str | None) -> str:
    head = f"{outcome(row)} {reason_and_place(row)}".rstrip()
    return f"{head}: {explain(row, netns)}"


def _owner(row: Row) -> str:
    """Returns what the bytes do not contain: `skb 0x…, process ping/4242, mark 0x1, …`."""
    words = [row.engine]
    if row.skb is not None:
        words.append(f"skb {row.skb:#x}")
    if row.trace_id is not None:
        words.append(f"trace id {row.trace_id:08x}")
    if row.comm or row.pid is not None:
        words.append(f"process {row.comm or '-'}/{'-' if row.pid is None else row.pid}")
    if row.cpu is not None:
        words.append(f"cpu {row.cpu}")
    if row.mark:
        words.append(f"mark {row.mark:#x}")
    if row.ct_state:
        origin = " → ".join(
            f"{address} port {port}" if port is not None else address
            for address, port in (
                (row.ct_orig_src, row.ct_orig_sport),
                (row.ct_orig_dst, row.ct_orig_dport),
            )
            if address
        )
        words.append(f"conntrack {row.ct_state} {origin}".rstrip())
    if row.ct_mark:
        words.append(f"ct mark {row.ct_mark:#x}")
    if row.ct_zone:
        words.append(f"ct zone {row.ct_zone}")
    if row.physin:
        words.append(f"physin {row.physin}")
    if row.physout:
        words.append(f"physout {row.physout}")
    return ", ".join(words)
