# SPDX-License-Identifier: GPL-2.0-only
"""One packet's headers field by field, and a dump of its bytes.

Ethernet (IEEE 802.3, VLAN 802.1Q), IPv4 (RFC 791) and IPv6 (RFC 8200) are decoded here,
the protocols above in other modules.

Packets are untrusted: every length is checked against the captured bytes, nothing
raises, and the numbers of layers and fields are bounded.  Must not do I/O.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ipttrace.checksums import checksum
from ipttrace.text import clean
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.decode.icmp import icmp, icmpv6
from ipttrace.trace.decode.layer import (
    DATA,
    NETWORK,
    PROTO,
    Decode,
    Layer,
    Next,
    Put,
    Reader,
    TooShort,
    bits,
    named,
    options,
)
from ipttrace.trace.decode.payload import decode_payload
from ipttrace.trace.decode.upper import UPPER

MOST_LAYERS: Final = 16
_MOST_FIELDS: Final = 48
_DEEPEST: Final = 4  # packets inside packets

ETHERTYPES: Final = {
    0x0800: "IPv4",
    0x0806: "ARP",
    0x8100: "802.1Q",
    0x86DD: "IPv6",
    0x8847: "MPLS",
    0x8863: "PPPoE discovery",
    0x8864: "PPPoE",
    0x88A8: "802.1ad",
}


def dissect(
    data: bytes, length: int, mac: bytes = b"", ethertype: int = 0, vlan: int = 0
) -> tuple[Layer, ...]:
    """Returns the layers of a packet, outermost first.  Never raises.

    `data`: captured bytes from the network header on; `length`: skb->len; `mac`: the
    link-layer header, empty if there is none; `ethertype`: skb->protocol; `vlan`: tag
    control information, 0: no tag.
    """
    layers = []
    if link := _link(mac, ethertype, vlan):
        layers.append(link)
    follow: Next | None = Next(NETWORK, 0)
    reader, depth = Reader(data, max(length, len(data))), 0
    while follow is not None and len(layers) < MOST_LAYERS:
        stop = len(reader.data) if follow.end is None else max(follow.end, follow.at)
        end = reader.length if follow.end is None else min(follow.end, reader.length)
        reader = Reader(reader.data[follow.at : stop], max(end - follow.at, 0))
        depth += follow.inside
        if reader.length == 0 and layers:
            break
        if depth > _DEEPEST:
            layers.append(Layer("Packet", (), "too many nested packets", depth))
            break
        name, decode = _decoder(follow, reader)
        layer, follow = _layer(name, decode, reader, depth)
        layers.append(layer)
    return tuple(layers)


def _layer(name: str, decode: Decode, reader: Reader, depth: int) -> tuple[Layer, Next | None]:
    fields: list[tuple[str, str]] = []

    def put(field: str, value: object) -> None:
        if len(fields) < _MOST_FIELDS:
            fields.append((field, clean(str(value), 256)))

    note = ""
    follow = None
    try:
        follow = decode(reader, put)
    except TooShort:
        note = f"only {len(reader.data)} bytes were captured"
    except ValueError as error:
        note = clean(str(error), 256)
    return Layer(name, tuple(fields), note, depth), follow


def _decoder(follow: Next, reader: Reader) -> tuple[str, Decode]:
    if follow.kind == NETWORK:
        version = reader.data[0] >> 4 if reader.data else 0
        if version == 4:
            return "IPv4", _ipv4
        if version == 6:
            return "IPv6", _ipv6
        return "Network", _no_network
    if follow.kind == PROTO:
        found = _BY_NUMBER.get(follow.number)
        if found is not None:
            return found
        name = ip.proto_name(follow.number)
        return (name if not name.isdigit() else f"Protocol {name}"), _unknown
    return "Data", decode_payload(follow.ports)


def _unknown(reader: Reader, put: Put) -> Next | None:
    put("length", f"{reader.length} bytes")
    return None


def _no_network(reader: Reader, put: Put) -> Next | None:
    if not reader.data:
        raise ValueError("nothing was captured")
    raise ValueError(f"neither IPv4 nor IPv6: version {reader.data[0] >> 4}")


# Link layer.


def _link(mac: bytes, ethertype: int, vlan: int) -> Layer | None:
    fields: list[tuple[str, str]] = []
    name = "Ethernet" if len(mac) in (14, 18) else "Link"
    note = ""
    if name == "Ethernet":
        fields.append(("src", mac[6:12].hex(":")))
        fields.append(("dst", mac[:6].hex(":") + _cast(mac)))
        kind = int.from_bytes(mac[-2:], "big")
        fields.append(("type", _hex_named(kind)))
        if len(mac) == 18:
            fields.append(("vlan", _vlan(int.from_bytes(mac[14:16], "big"))))
    elif mac:
        fields.append(("header", mac[:16].hex(" ")))
    if vlan:
        fields.append(("vlan", _vlan(vlan)))
    if not fields:
        return None
    if ethertype and name != "Ethernet":
        fields.append(("type", _hex_named(ethertype)))
    return Layer(name, tuple(fields), note)


def _cast(mac: bytes) -> str:
    if mac[:6] == b"\xff" * 6:
        return " (broadcast)"
    return " (multicast)" if mac[0] & 1 else ""


def _hex_named(kind: int) -> str:
    name = ETHERTYPES.get(kind)
    return f"{name} (0x{kind:04x})" if name else f"0x{kind:04x}"


def _vlan(tci: int) -> str:
    return f"id {tci & 0xFFF} priority {tci >> 13}"


# Network layer.

_DSCP: Final = {
    0: "default",
    46: "EF",
    **{8 * number: f"CS{number}" for number in range(1, 8)},
    **{8 * c + 2 * d: f"AF{c}{d}" for c in range(1, 5) for d in range(1, 4)},
}
_ECN: Final = ("not ECT", "ECT(1)", "ECT(0)", "CE")
_IP_FLAGS: Final = ((0x8000, "reserved"), (0x4000, "DF"), (0x2000, "MF"))
_IP_OPTIONS: Final = {
    7: "record route",
    68: "timestamp",
    130: "security",
    131: "loose source route",
    136: "stream id",
    137: "strict source route",
    148: "router alert",
}


def _traffic(put: Put, octet: int) -> None:
    put("dscp", named(_DSCP, octet >> 2))
    if octet & 3:
        put("ecn", _ECN[octet & 3])


def _ipv4(reader: Reader, put: Put) -> Next | None:
    header = (reader.u8(0) & 0x0F) * 4
    put("src", IPv4Address(reader.raw(12, 4)))
    put("dst", IPv4Address(reader.raw(16, 4)))
    proto = reader.u8(9)
    put("protocol", named(ip.NAMES, proto))
    put("ttl", reader.u8(8))
    total = reader.u16(2)
    put("length", total)
    put("header", header)
    _traffic(put, reader.u8(1))
    put("id", reader.u16(4))
    word = reader.u16(6)
    put("flags", bits(_IP_FLAGS, word & 0xE000))
    offset = (word & 0x1FFF) * 8
    if word & 0x3FFF:
        put("offset", f"{offset}{' (the first fragment)' if not offset else ''}")
    if header < 20:
        raise ValueError(f"header length is {header} bytes; the minimum is 20")
    put("checksum", _checksum(reader, header))
    for name, value in _options4(reader, header):
        put(name, value)
    if total == 0 and reader.length > 0xFFFF:
        total = reader.length  # GSO: too long for the field
    if total < header:
        raise ValueError(f"length is {total} bytes, less than the header")
    if offset:
        return Next(DATA, header, total)
    return Next(PROTO, header, total, number=proto)


def _checksum(reader: Reader, header: int) -> str:
    given = reader.u16(10)
    correct = checksum(reader.raw(0, 10) + bytes(2) + reader.raw(12, header - 12))
    return f"0x{given:04x} " + ("correct" if given == correct else f"wrong, not 0x{correct:04x}")


def _options4(reader: Reader, header: int) -> list[tuple[str, str]]:
    found = []
    try:
        for kind, at, size in options(reader, 20, header):
            value = reader.raw(at, size).hex(" ")
            found.append(("option", f"{named(_IP_OPTIONS, kind)} {value}".rstrip()))
    except ValueError as error:
        found.append(("option", str(error)))
    return found


def _ipv6(reader: Reader, put: Put) -> Next | None:
    put("src", IPv6Address(reader.raw(8, 16)))
    put("dst", IPv6Address(reader.raw(24, 16)))
    upper = reader.u8(6)
    put("next", named(ip.NAMES, upper))
    put("hop limit", reader.u8(7))
    payload = reader.u16(4)
    put("payload", payload)
    word = reader.u32(0)
    _traffic(put, word >> 20 & 0xFF)
    put("flow label", f"0x{word & 0xFFFFF:05x}")
    total = 40 + payload
    if payload == 0 and (upper == ip.HOPOPTS or reader.length > 0xFFFF):
        total = reader.length  # a jumbogram, or GSO
    return Next(PROTO, 40, total, number=upper)


def _hop_options(reader: Reader, put: Put) -> Next | None:
    upper, size = reader.u8(0), (reader.u8(1) + 1) * 8
    put("next", named(ip.NAMES, upper))
    put("header", size)
    at = 2
    while at < size:
        kind = reader.u8(at)
        if kind == 0:
            at += 1
            continue
        length = reader.u8(at + 1)
        if at + 2 + length > size:
            raise ValueError(f"option {kind} has {length} bytes, more than the header")
        if kind != 1:  # padding
            value = reader.raw(at + 2, length).hex(" ")
            put("option", f"{named(_HOP_OPTIONS, kind)} {value}".rstrip())
        at += 2 + length
    return Next(PROTO, size, number=upper)


_HOP_OPTIONS: Final = {
    5: "router alert",
    0xC2: "jumbo payload",
    0xC9: "home address",
    4: "tunnel limit",
}
_ROUTING: Final = {0: "source route", 2: "mobile", 3: "RPL", 4: "segments"}


def _routing(reader: Reader, put: Put) -> Next | None:
    upper, size = reader.u8(0), (reader.u8(1) + 1) * 8
    put("next", named(ip.NAMES, upper))
    put("header", size)
    put("type", named(_ROUTING, reader.u8(2)))
    put("segments left", reader.u8(3))
    if reader.u8(2) in (0, 2, 4):
        for at in range(8, size - 15, 16):
            put("segment", IPv6Address(reader.raw(at, 16)))
    return Next(PROTO, size, number=upper)


def _fragment(reader: Reader, put: Put) -> Next | None:
    upper, word = reader.u8(0), reader.u16(2)
    put("next", named(ip.NAMES, upper))
    put("id", reader.u32(4))
    put("offset", word & 0xFFF8)
    put("more", "yes" if word & 1 else "no")
    if word & 0xFFF8:
        return Next(DATA, 8)
    return Next(PROTO, 8, number=upper)


def _inner(reader: Reader, put: Put) -> Next | None:
    put("length", f"{reader.length} bytes")
    return Next(NETWORK, 0, inside=True)


_BY_NUMBER: Final[dict[int, tuple[str, Decode]]] = {
    ip.HOPOPTS: ("IPv6 hop-by-hop", _hop_options),
    ip.DSTOPTS: ("IPv6 destination", _hop_options),
    ip.ROUTING: ("IPv6 routing", _routing),
    ip.FRAGMENT: ("IPv6 fragment", _fragment),
    4: ("IPIP", _inner),
    41: ("IPv6 in IP", _inner),
    ip.ICMP: ("ICMP", icmp),
    ip.ICMPV6: ("ICMPv6", icmpv6),
    **UPPER,
}


def hex_dump(data: bytes, wide: int = 16) -> list[tuple[str, str, str]]:
    """Returns lines of `wide` bytes: offset, bytes in hexadecimal, and as ASCII."""
    lines = []
    for at in range(0, len(data), wide):
        some = data[at : at + wide]
        halves = [some[half : half + 8].hex(" ") for half in range(0, len(some), 8)]
        text = "".join(chr(octet) if 0x20 <= octet < 0x7F else "." for octet in some)
        lines.append((f"{at:04x}", "  ".join(halves), text))
    return lines
