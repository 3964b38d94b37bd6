# SPDX-License-Identifier: GPL-2.0-only
"""The first bytes of TCP and UDP payloads.

DNS questions (RFC 1035), the type of a TLS record (RFC 8446) and, if enough bytes were
captured, the server name (RFC 6066), and first lines of text protocols.  Must
not do I/O.
"""

from __future__ import annotations

import re
from typing import Final

from ipttrace.text import clean
from ipttrace.trace.decode.layer import Decode, Next, Put, Reader, TooShort, named

_DNS_PORTS: Final = frozenset({53, 5353, 5355})
_DNS_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    65: "HTTPS",
    255: "ANY",
}
_RCODES: Final = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
}
_TLS_KINDS: Final = {20: "change cipher spec", 21: "alert", 22: "handshake", 23: "data"}
_HANDSHAKES: Final = {1: "ClientHello", 2: "ServerHello", 11: "Certificate", 16: "key exchange"}
_TEXT: Final = re.compile(
    rb"(?:[A-Z]{3,10} \S+ HTTP/1|HTTP/1|SSH-|220[ -]|EHLO |\* OK |\+OK |USER |M-SEARCH |NOTIFY )"
)
_MOST_LABELS: Final = 32


def decode_payload(ports: tuple[int, int] | None) -> Decode:
    """Returns a decoder for payload between these ports; None: of an unknown protocol."""

    def decode(reader: Reader, put: Put) -> Next | None:
        captured, length = len(reader.data), reader.length
        put("length", f"{length} bytes" + (f", {captured} captured" if captured < length else ""))
        if ports is None or not captured:
            return None
        try:
            if _DNS_PORTS & set(ports):
                _dns(reader, put)
            elif reader.u8(0) in _TLS_KINDS and reader.u8(1) == 3:
                _tls(reader, put)
            elif _TEXT.match(reader.data):
                _text(reader, put)
        except TooShort:
            pass  # captures usually end within the payload
        return None

    return decode


def _dns(reader: Reader, put: Put) -> None:
    at = 0
    # Over TCP, the message is preceded by its length.
    if len(reader.data) >= 14 and reader.u16(0) == reader.length - 2:
        at = 2
    flags = reader.u16(at + 2)
    if reader.u16(at + 4) != 1:
        return
    name, end = _name(reader, at + 12)
    kind = named(_DNS_TYPES, reader.u16(end))
    put("dns", "answer" if flags & 0x8000 else "question")
    put("name", name)
    put("type", kind)
    put("id", f"0x{reader.u16(at):04x}")
    if flags & 0x8000:
        put("code", named(_RCODES, flags & 0x0F))
        put("answers", reader.u16(at + 6))


def _name(reader: Reader, at: int) -> tuple[str, int]:
    labels: list[bytes] = []
    for _ in range(_MOST_LABELS):
        size = reader.u8(at)
        if size == 0:
            return clean(b".".join(labels) or b".", 255), at + 1
        if size > 63:
            break
        labels.append(reader.raw(at + 1, size))
        at += 1 + size
    raise TooShort


def _tls(reader: Reader, put: Put) -> None:
    put("tls", named(_TLS_KINDS, reader.u8(0)))
    put("record", f"{reader.u16(3)} bytes")
    if reader.u8(0) != 22:
        return
    put("handshake", named(_HANDSHAKES, reader.u8(5)))
    if reader.u8(5) != 1:
        return
    at = 5 + 4 + 2 + 32  # the session id
    at += 1 + reader.u8(at)
    at += 2 + reader.u16(at)  # cipher suites
    at += 1 + reader.u8(at)  # compression methods
    at += 2
    for _ in range(_MOST_LABELS):
        kind, size = reader.u16(at), reader.u16(at + 2)
        if kind == 0:
            put("server", clean(reader.raw(at + 9, reader.u16(at + 7)), 255))
            return
        at += 4 + size


def _text(reader: Reader, put: Put) -> None:
    lines = reader.data.split(b"\r\n")
    put("line", clean(lines[0], 120))
    for line in lines[1:8]:
        if line[:5].lower() == b"host:":
            put("host", clean(line[5:].strip(), 120))
