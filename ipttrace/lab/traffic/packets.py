# SPDX-License-Identifier: GPL-2.0-only
"""Bytes of packets that ordinary sockets do not send, with valid checksums.

All functions return what follows the IP header, which the kernel adds.  Must not
open sockets.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from ipttrace.checksums import checksum

ICMP_ECHO: Final = {4: 8, 6: 128}
ICMP_REPLY: Final = {4: 0, 6: 129}
GRE: Final = 47
ESP: Final = 50
SCTP: Final = 132

# RFC 8200, 4.6: next header and length (the kernel fills both in), then PadN of 4.
DESTINATION_OPTIONS: Final = b"\x00\x00\x01\x04\x00\x00\x00\x00"


def crc32c(data: bytes) -> int:
    """Returns the CRC of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def echo(family: int, ident: int, seq: int, payload: bytes) -> bytes:
    """Returns an echo request (RFC 792, RFC 4443); the kernel fills in ICMPv6's checksum."""
    kind = ICMP_ECHO[family]
    body = struct.pack("!BBHHH", kind, 0, 0, ident, seq) + payload
    if family == 6:
        return body
    return struct.pack("!BBHHH", kind, 0, checksum(body), ident, seq) + payload


def tcp_syn(source: str, sport: int, dst: str, dport: int, seq: int) -> bytes:
    """Returns a SYN with an MSS option (RFC 9293)."""

    def header(check: int) -> bytes:
        return struct.pack("!HHIIBBHHHBBH", sport, dport, seq, 0, 6 << 4, 2, 64240, check, 0, *mss)

    mss = (2, 4, 1460)
    src, to = ipaddress.ip_address(source).packed, ipaddress.ip_address(dst).packed
    segment = header(0)
    # Both pseudo headers, RFC 9293 3.1 and RFC 8200 8.1, have the same sum.
    return header(checksum(src + to + struct.pack("!HH", 6, len(segment)) + segment))


def gre(inner: bytes, ethertype: int = 0x0800) -> bytes:
    """Returns GRE without options (RFC 2784) around a packet."""
    return struct.pack("!HH", 0, ethertype) + inner


def inner_ipv4(payload: bytes = b"") -> bytes:
    """Returns an IPv4 UDP packet between documentation addresses, for use inside a tunnel."""
    udp = struct.pack("!HHHH", 1024, 1024, 8 + len(payload), 0) + payload
    addresses = bytes((192, 0, 2, 1, 192, 0, 2, 2))
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    check = checksum(head + addresses)
    return head[:10] + struct.pack("!H", check) + addresses + udp


def esp(spi: int, seq: int) -> bytes:
    """Returns ESP (RFC 4303): SPI, sequence number and 64 bytes in place of a ciphertext."""
    return struct.pack("!II", spi, seq) + bytes(range(64))


def sctp_init(sport: int, dport: int, tag: int) -> bytes:
    """Returns an INIT chunk (RFC 9260, 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, tag, 65535, 10, 10, tag)
    head = struct.pack("!HHI", sport, dport, 0)
    # The CRC is sent with its low byte first.
    check = struct.pack("<I", crc32c(head + b"\0\0\0\0" + chunk))
    return head + check + chunk


def dns_query(ident: int, name: str = "www.example.org") -> bytes:
    """Returns a query for an A record (RFC 1035)."""
    labels = b"".join(bytes((len(part),)) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"


def dns_answer(query: bytes) -> bytes:
    """Returns the answer to dns_query(), one A record; a query that is too short, unchanged."""
    if len(query) < 12:
        return query
    head = query[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, 1, 0, 0)
    record = b"\xc0\x0c\0\x01\0\x01" + struct.pack("!IH", 60, 4) + bytes((192, 0, 2, 80))
    return head + query[12:] + record
