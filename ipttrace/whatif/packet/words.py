# SPDX-License-Identifier: GPL-2.0-only
"""PACKET, the words of the command line, to a spec or to where the packet is.

    tcp 10.1.0.2:40000 > 10.2.0.2:443 in eth0 syn
    icmp 10.1.0.2 > 10.2.0.2 in eth0
    udp > 10.2.0.2:53 out
    from row 12 of trace.iptr
    pcap FILE#3 in eth0
    hex 45000028… in eth0

Must not do I/O.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final

from ipttrace.trace.query.error import for_message, suggestion
from ipttrace.whatif.errors import PacketError
from ipttrace.whatif.packet import options
from ipttrace.whatif.packet.options import Tokens
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, SCTP, TCP, Ends, Packet

_MOST: Final = 65536  # characters: a packet in hexadecimal digits has 131,072 at most
_PROTOCOLS: Final = {
    "tcp": TCP,
    "udp": 17,
    "icmp": ICMP,
    "icmp6": ICMPV6,
    "icmpv6": ICMPV6,
    "sctp": SCTP,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "udplite": 136,
    "igmp": 2,
}
_ARROWS: Final = (">", "->", "to")
_FORMS: Final = "tcp ADDRESS:PORT > ADDRESS:PORT in DEVICE"


@dataclass(frozen=True, slots=True)
class Place:
    """A packet that lies in a file, or is given in digits; `rest` has the words behind it.

    `kind`: row, pcap or hex; `number` counts from 1.
    """

    kind: str
    file: str
    number: int
    rest: Packet


def parse(text: str) -> Packet | Place:
    """Returns the packet that `text` describes, or where it is.  Raises PacketError."""
    if len(text) > 2 * _MOST:
        raise PacketError("the packet's words are too long", 0, 1, text[:80])
    tokens = Tokens(text)
    if tokens.end:
        raise PacketError(f"describe a packet: {_FORMS}", 0, 1, text)
    word = tokens.peek().lower()
    if word == "from":
        return _row(tokens)
    if word == "pcap":
        return _pcap(tokens)
    if word == "hex":
        return _hex(tokens)
    return _described(tokens)


def _described(tokens: Tokens) -> Packet:
    proto = _protocol(tokens)
    at = tokens.at
    ends, family = _ends(tokens, proto)
    src, sport, dst, dport = ends
    if family == 6 and proto == ICMP:
        proto = ICMPV6
    if family == 4 and proto == ICMPV6:
        raise tokens.error("icmp6 needs IPv6 addresses", at)
    packet = Packet(
        family=family,
        proto=proto,
        src=src or None,
        sport=sport,
        dst=dst,
        dport=dport,
        icmp=(128, 0) if proto == ICMPV6 else (8, 0),
    )
    packet = options.read(tokens, packet, _ends_of(proto))
    if not packet.device and not packet.out:
        raise tokens.error(
            'where does it come in? add "in DEVICE", or "out" if this host sends it', len(tokens)
        )
    if packet.src is None and not packet.out:
        raise tokens.error("a packet that comes in needs a source address", at)
    return packet


def _ends_of(proto: int) -> options.EndsReader:
    return lambda tokens: _ends(tokens, proto)[0]


def _protocol(tokens: Tokens) -> int:
    at = tokens.at
    word = tokens.take("a protocol").lower()
    if word == "proto":
        at = tokens.at
        word = tokens.take("a protocol's number")
    if word in _PROTOCOLS:
        return _PROTOCOLS[word]
    if re.fullmatch("[0-9]{1,3}", word) and int(word) < 256:
        return int(word)
    more = suggestion(word, [*_PROTOCOLS, "from", "pcap", "hex"])
    raise tokens.error(f'"{for_message(word)}" is not a protocol{more or f"; {_FORMS}"}', at)


def _ends(tokens: Tokens, proto: int) -> tuple[Ends, int]:
    src, sport, versions = "", None, []
    if not tokens.end and tokens.peek() not in _ARROWS:
        src, sport = _end(tokens, proto)
        versions.append(ipaddress.ip_address(src).version)
    at = tokens.at
    if tokens.take("> and the destination") not in _ARROWS:
        raise tokens.error("> belongs here, between source and destination (quote it: '>')", at)
    at = tokens.at
    dst, dport = _end(tokens, proto)
    versions.append(ipaddress.ip_address(dst).version)
    if len(set(versions)) > 1:
        raise tokens.error("one address is IPv4, the other IPv6", at)
    if proto in PORTS and dport is None:
        raise tokens.error(f"the destination's port is missing: {dst}:PORT", at)
    return (src, sport, dst, dport), versions[-1]


def _end(tokens: Tokens, proto: int) -> tuple[str, int | None]:
    at = tokens.at
    word = tokens.take("an address")
    address, port = word, ""
    if found := re.fullmatch(r"\[([^]]*)\](?::(.*))?", word):
        address, port = found[1], found[2] or ""
    elif word.count(":") == 1:
        address, _, port = word.partition(":")
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        raise tokens.error(f'"{for_message(address)}" is not an address', at) from None
    if getattr(one, "scope_id", None):
        raise tokens.error("an address without %DEVICE belongs here", at)
    if not port:
        return str(one), None
    if proto not in PORTS:
        raise tokens.error("this protocol has no ports", at)
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise tokens.error(f'"{for_message(port)}" is not a port, 0 to 65535', at)
    return str(one), int(port)


def _row(tokens: Tokens) -> Place:
    tokens.take("from")
    tokens.expect("row")
    number = options.number(tokens, "a row's number, from 1", 1, 1 << 62)
    tokens.expect("of")
    file = tokens.take("the recording's file")
    return Place("row", file, number, _rest(tokens))


def _pcap(tokens: Tokens) -> Place:
    tokens.take("pcap")
    at = tokens.at
    file, mark, number = tokens.take("FILE#NUMBER").rpartition("#")
    if not mark or not file or not re.fullmatch("[0-9]{1,9}", number) or int(number) < 1:
        raise tokens.error("FILE#NUMBER belongs here: trace.pcap#3 is its third packet", at)
    rest = _rest(tokens)
    if not rest.device and not rest.out:
        raise tokens.error('where does it come in? add "in DEVICE", or "out"', len(tokens))
    return Place("pcap", file, int(number), rest)


def _hex(tokens: Tokens) -> Place:
    tokens.take("hex")
    at = tokens.at
    digits = ""
    while not tokens.end and re.fullmatch("(0x)?([0-9A-Fa-f]{2})+", tokens.peek()):
        digits += tokens.take("digits").removeprefix("0x")
    if not digits or len(digits) > _MOST * 2:
        raise tokens.error("an IP packet's bytes in hexadecimal digits belong here", at)
    rest = _rest(tokens)
    if not rest.device and not rest.out:
        raise tokens.error('where does it come in? add "in DEVICE", or "out"', len(tokens))
    return Place("hex", "", 1, replace(rest, raw=bytes.fromhex(digits)))


def _rest(tokens: Tokens) -> Packet:
    return options.read(tokens, Packet(), None)
