# SPDX-License-Identifier: GPL-2.0-only
"""Packets of recordings and pcap files, with what the recording has of their connections."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Final

import numpy as np

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.repair import (
    MISSING,
    check_headers,
    finish_checksums,
    upper_layer,
    whole,
)
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, Connection, Ends, Packet
from ipttrace.whatif.packet.words import Place

_PORTION: Final = 1 << 20
_MOST_PACKET: Final = 1 << 17
_PCAP: Final = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">",
                b"\xa1\xb2\x3c\x4d": ">"}  # fmt: skip
_PCAPNG: Final = b"\x0a\x0d\x0d\x0a"
# Link types to the bytes before the IP header (pcap-linktype(7)).
_RAW: Final = {1: 14, 12: 0, 14: 0, 101: 0, 113: 16, 228: 0, 229: 0, 276: 20}
# Hooks at which a packet begins, and of them and others those of a packet that is sent.
_BEGINS: Final = ("INGRESS", "PREROUTING", "OUTPUT")
_SENT: Final = ("OUTPUT", "POSTROUTING", "EGRESS")
_STATES: Final = {"ESTABLISHED": "established", "RELATED": "related"}


def find(place: Place) -> Packet:
    """Returns the packet that lies in a file or was given in digits.  Raises WhatIfError."""
    if place.kind == "row":
        trace = read_trace(place.file)
        seq = place.number - 1
        if not trace.store.first <= seq < trace.store.end:
            has = f"it has {trace.store.end}"
            raise WhatIfError(f"{clean(place.file, 120)}: there is no row {place.number}: {has}")
        return _moved(of_row(trace.store, seq), place.rest)
    raw = place.rest.raw if place.kind == "hex" else _of_pcap(place.file, place.number)
    data, missing = whole(raw)
    return replace(place.rest, raw=data, notes=_missing(missing), **_headers(data))


def _moved(packet: Packet, rest: Packet) -> Packet:
    """The packet with what the words behind it say."""
    if rest.device:
        packet = replace(packet, device=rest.device, out=False)
    if rest.out:
        packet = replace(packet, device="", out=True)
    if rest.mac_src:
        packet = replace(packet, mac_src=rest.mac_src)
    return packet


def read_trace(path: str) -> Trace:
    """Returns the trace of a recording.  Raises WhatIfError."""
    trace, decoder = Trace(), Decoder()
    try:
        with open(path, "rb") as file:
            while data := file.read(_PORTION):
                for frame in decoder.feed(data):
                    trace.feed(frame)
            trace.finish()
    except OSError as error:
        raise WhatIfError(f"{clean(path, 120)}: {error.strerror}") from None
    except StreamError as error:
        raise WhatIfError(f"{clean(path, 120)}: {error}") from None
    return trace


def of_row(store: Store, seq: int) -> Packet:
    """Returns the packet of row `seq` as it came to the first table.  Raises WhatIfError.

    Its checksums are made anew: a packet that was recorded before a device finished them does
    not have its own.
    """
    rows = journey(store, seq)
    first = rows[0]
    raw = store.raw(first.index)
    known = bytes(raw["packet"][: int(raw["caplen"])])
    if len(known) < (20 if first.family == 4 else 40):
        raise WhatIfError(MISSING)
    data, missing = whole(known)
    if missing:
        check_headers(known, data)
    notes = _missing(missing)
    outgoing = first.hook in _SENT if first.hook else not first.in_
    if first.hook not in _BEGINS:
        notes += (f"the recording has this packet only from {first.hook or 'a late hook'} on",)
    if outgoing and any(row.ct_state == "RELATED" for row in rows):
        notes += ("the kernel sent it because of another packet, without which it is not the same",)
    connected = next((row for row in rows if row.ct_state), None)
    state, connection = "new", None
    if connected is None:
        connection = _by_flow(store, first)
        state = "established" if connection else "new"
    elif connected.ct_state in _STATES:
        state = _STATES[connected.ct_state]
        connection = _connection(store.raw(connected.index), connected, data)
    return Packet(
        raw=finish_checksums(data),
        device="" if outgoing else first.in_ or "",
        out=outgoing,
        mark=int(raw["mark"]) if outgoing else 0,
        mac_src=first.mac_src or "",
        mac_dst=first.mac_dst or "",
        state=state,
        connection=connection,
        notes=notes,
        **_headers(data),
    )


def journey(store: Store, seq: int) -> list[Row]:
    """Returns the rows of the packet of row `seq`.  Raises KeyError if it is not held."""
    row = store.row(seq)
    same = store.column("journey") == np.uint64(row.journey)
    return store.rows(np.flatnonzero(same) + store.first)


def _by_flow(store: Store, row: Row) -> Connection | None:
    """The connection of a packet of which the recording has no state, from its flow so far."""
    flow = store.raw(row.index)["flow"]
    mine = (store.column("flow") == flow) & (store.column("netns") == row.netns)
    before = np.flatnonzero(mine)[: 1 << 12] + store.first
    firsts: dict[int, Row] = {}
    for one in store.rows(before[before <= row.index]):
        firsts.setdefault(one.journey, one)
    if len(firsts) < 2:
        return None
    begun = next(iter(firsts.values()))
    data = store.raw(begun.index)["packet"]
    proto = upper_layer(bytes(data))[0]
    original = _ends(begun, bytes(data))
    replies = (one for one in firsts.values() if one.src not in (begun.src,) and not _is_error(one))
    reply = next((_ends(one, bytes(data)) for one in replies), None)
    if reply is None and _is_error(row):
        reply = _quoted(bytes(store.raw(row.index)["packet"]))
    return Connection(original, reply, proto)


def _quoted(data: bytes) -> Ends | None:
    """The reply direction of the connection that an ICMP error is about, after NAT."""
    inner = data[upper_layer(data)[1] + 8 :]
    size = 4 if data[0] >> 4 == 4 else 16
    at = 12 if size == 4 else 8
    proto, ports, _ = upper_layer(inner)
    if proto not in PORTS or len(inner) < ports + 4:
        return None
    source, target = inner[at : at + size], inner[at + size : at + 2 * size]
    sport, dport = struct.unpack_from("!HH", inner, ports)
    return str(ipaddress.ip_address(target)), dport, str(ipaddress.ip_address(source)), sport


def _is_error(row: Row) -> bool:
    kind = (row.icmp or "").partition("/")[0]
    return kind in (("3", "4", "5", "11", "12") if row.family == 4 else ("1", "2", "3", "4"))


def _ends(row: Row, data: bytes) -> Ends:
    if row.sport is not None:
        return row.src, row.sport, row.dst, row.dport
    if row.icmp is not None:
        return row.src, _echo_id(data), row.dst, int(row.icmp.partition("/")[0])
    return row.src, None, row.dst, None


def _missing(count: int) -> tuple[str, ...]:
    return (f"{count} bytes of the packet were not recorded: they are zero",) if count else ()


def _headers(data: bytes) -> dict[str, Any]:
    """The addresses of an IP packet, for the answer."""
    four = data[0] >> 4 == 4
    src, dst = (data[12:16], data[16:20]) if four else (data[8:24], data[24:40])
    return {
        "family": 4 if four else 6,
        "proto": data[9] if four else data[6],
        "src": str(ipaddress.ip_address(src)),
        "dst": str(ipaddress.ip_address(dst)),
    }


def _connection(raw: dict[str, Any], row: Row, data: bytes) -> Connection | None:
    proto = int(raw["ct_proto"])
    size = 4 if row.family == 4 else 16

    def ends(which: str) -> Ends | None:
        source, target = (bytes(raw[f"ct_{which}_{end}"][:size]) for end in ("src", "dst"))
        if not any(source) and not any(target):
            return None
        ports: list[int | None] = [int(raw[f"ct_{which}_{end}port"]) for end in "sd"]
        if proto in (ICMP, ICMPV6):
            ports = [_echo_id(data), 8 if proto == ICMP else 128]
        elif proto not in PORTS:
            ports = [None, None]
        return (
            str(ipaddress.ip_address(source)),
            ports[0],
            str(ipaddress.ip_address(target)),
            ports[1],
        )

    original = ends("orig")
    if original is None:
        return None
    return Connection(original, ends("reply"), proto, int(raw["ct_mark"]), int(raw["ct_zone"]))


def _echo_id(data: bytes) -> int:
    at = ((data[0] & 15) * 4 if data[0] >> 4 == 4 else 40) + 4
    return int(struct.unpack_from("!H", data, at)[0]) if len(data) >= at + 2 else 0


def _of_pcap(path: str, number: int) -> bytes:
    """Returns the IP packet `number` of a pcap or pcapng file.  Raises WhatIfError."""
    shown = clean(path, 120)
    try:
        with open(path, "rb") as file:
            for count, (link, data) in enumerate(_packets(file), 1):
                if count == number:
                    return _network_layer(link, data)
    except OSError as error:
        raise WhatIfError(f"{shown}: {error.strerror}") from None
    except (struct.error, IndexError, ValueError):
        raise WhatIfError(f"{shown}: not a pcap file, or damaged") from None
    raise WhatIfError(f"{shown}: there is no packet {number}")


def _network_layer(link: int, data: bytes) -> bytes:
    at = _RAW.get(link)
    if at is None:
        raise WhatIfError(f"a link type that is not supported ({link})")
    if link == 1:
        while data[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
    return data[at:]


def _packets(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    magic = file.read(4)
    if magic == _PCAPNG:
        yield from _blocks(file)
        return
    order = _PCAP.get(magic, "")
    if not order:
        raise ValueError
    link = struct.unpack(f"{order}20xI", file.read(20)[-24:].rjust(24, b"\0"))[0] & 0xFFFF
    while head := file.read(16):
        size = struct.unpack(f"{order}8xII", head)[0]
        if size > _MOST_PACKET:
            raise ValueError
        yield link, file.read(size)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    file.seek(0)
    order = "<"
    links: list[int] = []
    while head := file.read(8):
        if head[:4] == _PCAPNG:
            magic = file.read(4)
            order = "<" if magic == b"\x4d\x3c\x2b\x1a" else ">"
            size = struct.unpack(f"{order}I", head[4:])[0]
            links = []
            file.seek(size - 12, 1)
            continue
        kind, size = struct.unpack(f"{order}II", head)
        if size < 12 or size > 1 << 24:
            raise ValueError
        body = file.read(size - 8)
        if kind == 1:
            links.append(struct.unpack_from(f"{order}H", body)[0])
        elif kind == 6:
            which, captured = struct.unpack_from(f"{order}I8xI", body)
            yield links[which], body[20 : 20 + captured]
        elif kind == 3:
            yield links[0], body[4:-4]
