# SPDX-License-Identifier: GPL-2.0-only
"""Rows as packets for tshark and Wireshark, with their traversals as comments.

A journey becomes one packet for each form that it had: as long as its bytes
and the device it is seen on stay the same, its traversals are comments of one
packet; after a NAT rewrite, a TTL that went down or another device comes the
next.  Between PREROUTING and INPUT a packet is seen on the device it came from;
from FORWARD or OUTPUT on, on the one it leaves by, as tcpdump would see it
there; one that FORWARD does not let pass is left on the device it came from.

The format is draft-ietf-opsawg-pcapng, little-endian.  All text is made safe.
Must not do I/O.
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
from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules.frames import table_name
from ipttrace.trace.store import Store
from ipttrace.view.cells import ELLIPSIS, duration, path_text, safe
from ipttrace.view.places import Named, places

LINKTYPE_RAW: Final = 101
SNAPLEN: Final = 128  # bytes of a packet in a record

# Traversals of one form lie this close together, ns; NFQUEUE may take longer.
_HOLD: Final = 100_000_000
# More packets than this are not kept back, whatever their times say.
_MOST_HELD: Final = 1 << 14
# A stream that lies could give one skb traversals without end.
_MOST_COMMENTS: Final = 64
_MOST_INTERFACES: Final = 1 << 12
# A hostile chain name or rule is long; an option holds 65,535 bytes.
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
_GOES_ON: Final = frozenset({"ACCEPT", "STOP", "REPEAT", None})

_Form = tuple[int, int, str | None, bool, int]


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, text: str, longest: int = _SHORT) -> bytes:
    """`text` as an option: safe, valid UTF-8, at most so many characters."""
    text = safe(text)
    if len(text) > longest:
        text = text[: longest - 1] + ELLIPSIS
    return _option(code, text.encode("utf-8", "backslashreplace"))


def _block(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


@dataclass(slots=True)
class _Packet:
    """One form of a journey, still open for more traversals."""

    form: _Form
    data: bytes
    rows: list[Row]

    def takes(self, form: _Form, data: bytes) -> bool:
        """Is a traversal with these bytes one more of it?  Engines catch more or fewer bytes."""
        if self.form != form or len(self.rows) >= _MOST_COMMENTS:
            return False
        return self.data.startswith(data) or data.startswith(self.data)

    @property
    def outgoing(self) -> bool:
        """Is it seen on the device that it leaves by?"""
        if self.rows[0].hook in _INCOMING:
            return False
        last = self.rows[-1]
        return last.hook != "FORWARD" or last.verdict in _GOES_ON


class Pcapng:
    """An `Output`.

    `names` gives namespaces their names by inode, or is Places of several
    hosts; it may be filled until the first packet of a namespace comes.
    """

    def __init__(self, names: Named = None) -> None:
        self._places = places(names)
        self._interfaces: dict[tuple[int, int, str | None], int] = {}
        self._open: dict[int, _Packet] = {}  # by journey
        self._held: list[tuple[int, int, _Packet]] = []  # a heap: time, number, packet
        self._made = 0
        self._newest = 0

    def begin(self, about: Mapping[str, object]) -> bytes:
        options = []
        for code, name, before in ((_SHB_HARDWARE, "arch", ""), (_SHB_OS, "kernel", "Linux ")):
            if about.get(name):
                options.append(_text(code, before + clean(str(about[name]), _SHORT)))
        options.append(_text(_SHB_USERAPPL, f"ipttrace {__version__}"))
        for name, before in (("host", "traced on "), ("expr", "filter: ")):
            if about.get(name):
                options.append(_text(_COMMENT, before + clean(str(about[name]), _SHORT)))
        # Version 1.0; how long the section will be is not known.
        return _block(
            _SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1), *options, _option(0, b"")
        )

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        """`seqs` in any order; packets come out by time, as far as rows came so."""
        wanted = np.sort(np.asarray(seqs, np.int64))
        packets = _packets(store, wanted)
        count = 0
        # Those that went after their bytes were copied are left out too.
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
        device = row.in_ or row.out if row.hook in _INCOMING else row.out or row.in_
        form = (row.host, row.netns, device, row.hook in _INCOMING, row.len)
        packet = self._open.get(row.journey)
        if packet is None or not packet.takes(form, data):
            packet = self._open[row.journey] = _Packet(form, data, [])
            heapq.heappush(self._held, (row.time, self._made, packet))
            self._made += 1
        packet.data = max(packet.data, data, key=len)
        packet.rows.append(row)
        self._newest = max(self._newest, row.time)

    def _due(self, until: int | None) -> Iterator[bytes]:
        """Blocks of the packets that began before `until`, and of what is too much to hold."""
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
            # A hostile stream could bring a new name with every packet.
            if len(self._interfaces) >= _MOST_INTERFACES:
                key = (0, 0, "(too many devices)")
            number = self._interfaces.get(key)
        if number is None:
            number = self._interfaces[key] = len(self._interfaces)
            yield self._interface(*key)
        data = packet.data
        high, low = divmod(min(max(first.time, 0), 2**64 - 1), 1 << 32)
        yield _block(
            _ENHANCED_PACKET,
            struct.pack("<IIIII", number, high, low, len(data), max(first.len, len(data))),
            data,
            bytes(-len(data) % 4),
            *(_text(_COMMENT, _traversal(row), _LONGEST) for row in packet.rows),
            _text(_COMMENT, _owner(packet.rows[-1]), _LONGEST),
            _option(_EPB_FLAGS, struct.pack("<I", _OUTBOUND if outgoing else _INBOUND)),
            # What several devices saw of one packet has one id.
            _option(_EPB_PACKETID, struct.pack("<Q", first.journey)),
            _option(0, b""),
        )

    def _interface(self, host: int, netns: int, device: str | None) -> bytes:
        name = self._places.name(host, netns)
        where = f"namespace {name} ({netns})" if name else f"namespace {netns}"
        if host or self._places.several:
            where += f" of host {self._places.host(host)}"
        return _block(
            _INTERFACE,
            struct.pack("<HHI", LINKTYPE_RAW, 0, SNAPLEN),
            _text(_IF_NAME, device or "(no device)"),
            _text(_IF_DESCRIPTION, f"{device or 'no device'} in {where}"),
            _option(_IF_TSRESOL, b"\x09"),  # 10^-9 s
            _option(0, b""),
        )


def _packets(store: Store, wanted: Array) -> dict[int, bytes]:
    """The captured bytes of rows `wanted` (int64, ascending) that are held."""
    found: dict[int, bytes] = {}
    if not len(wanted):
        return found
    for part in store.parts(int(wanted[0]), int(wanted[-1]) + 1):
        a, b = np.searchsorted(wanted, (part.first, part.first + len(part)))
        at = wanted[a:b] - part.first
        # A record can say that it holds more than it has room for.
        sizes = np.minimum(np.minimum(part.columns["caplen"][at], SNAPLEN), part.columns["len"][at])
        whole = part.columns["packet"][at].tobytes()
        for place, (seq, size) in enumerate(zip(wanted[a:b].tolist(), sizes.tolist(), strict=True)):
            found[seq] = whole[place * SNAPLEN : place * SNAPLEN + size]
    return found


@lru_cache(maxsize=4096)
def _path(path: tuple[Step, ...], partial: bool) -> str:
    return path_text(path, partial)


def _traversal(row: Row) -> str:
    """`FORWARD filter FORWARD:2 → DOCKER-USER:1 DROP 12.3 µs rule: -A DOCKER-USER …`."""
    table = table_name(row.tables, row.table)
    end = row.verdict or "(verdict not known)"
    words = [row.hook, table, _path(row.path, row.partial), end]
    if row.cost_ns is not None:
        words.append(duration(row.cost_ns))
    if row.rule:
        words.append(f"rule: {row.rule}")
    return " ".join(word for word in words if word)


def _owner(row: Row) -> str:
    """What tshark cannot read from the bytes: `skb 0x…, ping/4242, mark 0x1, conntrack NEW …`."""
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
    return ", ".join(words)
