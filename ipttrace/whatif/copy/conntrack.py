# SPDX-License-Identifier: GPL-2.0-only
"""Conntrack entries of the copy, made and read as ctnetlink messages.

Attributes: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, TCP, Connection, Ends

_NETLINK_NETFILTER: Final = 12
_NEW, _GET, _DELETE = 0x100, 0x101, 0x102
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 1, 4, 0x100, 0x200, 0x400
_ORIG, _REPLY, _STATUS, _PROTOINFO = 1, 2, 3, 4
_NAT_SRC, _TIMEOUT, _MARK, _NAT_DST, _MASTER, _ZONE = 6, 7, 8, 13, 14, 18
_NESTED: Final = 0x8000
_SEEN_REPLY, _ASSURED, _CONFIRMED = 2, 4, 8
_SRC_NAT_DONE, _DST_NAT_DONE = 0x80, 0x100
_ESTABLISHED: Final = 3  # enum tcp_conntrack
_LIBERAL: Final = 8  # IP_CT_TCP_FLAG_BE_LIBERAL
_LIFE: Final = 3600  # s
_ECHO_REPLY: Final = {8: 0, 0: 8, 128: 129, 129: 128, 13: 14, 14: 13}
ECHO_ID: Final = 0x1234


class Table:
    """The conntrack table of the process's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._number = 0

    def reply_of(self, connection: Connection) -> Ends | None:
        """Returns the reply direction of the entry that has the connection's original direction.

        None if there is no such entry.  Of ICMP it has no ports.
        """
        family = _family(connection.original)
        body = _tuple(_ORIG, connection.original, connection.proto) + _zone(connection)
        answer = self._ask(_GET, family, body, 0)
        if answer is None:
            return None
        reply = _attributes(answer).get(_REPLY, b"")
        return _ends(reply, family)

    def confirm(self, connection: Connection, *, replied: bool) -> None:
        """Marks an existing entry as one that has seen packets of both directions."""
        self._change(connection, 0, b"", replied=replied)

    def forget(self) -> None:
        """Removes all entries."""
        for family in (socket.AF_INET, socket.AF_INET6):
            self._ask(_DELETE, family, b"", _ACK)

    def delete(self, connection: Connection) -> None:
        """Removes the entry."""
        body = _tuple(_ORIG, connection.original, connection.proto) + _zone(connection)
        self._ask(_DELETE, _family(connection.original), body, _ACK)

    def create(self, connection: Connection, *, replied: bool) -> None:
        """Makes an entry, with NAT if its directions are not each other's reverse.

        Raises WhatIfError.
        """
        plain = _reverse(connection)
        body = _tuple(_REPLY, plain, connection.proto)
        reply = connection.reply or plain
        if connection.proto in (ICMP, ICMPV6):
            reply = (reply[0], plain[1], reply[2], plain[3])
        ported = connection.proto in PORTS
        if reply[:2] != plain[:2]:
            body += _nat(_NAT_DST, reply[0], reply[1] if ported else None)
        if reply[2:] != plain[2:]:
            body += _nat(_NAT_SRC, reply[2], reply[3] if ported else None)
        self._change(connection, _CREATE | _EXCL, body, replied=replied)

    def create_related(self, connection: Connection) -> None:
        """Makes the entry of a connection that another one has announced, as helpers do.

        Raises WhatIfError.
        """
        source, _, target, _ = connection.original
        master = Connection((source, 1024, target, 21), None, TCP, 0, connection.zone)
        if self.reply_of(master) is None:
            self.create(master, replied=True)
        body = _tuple(_REPLY, _reverse(connection), connection.proto)
        body += _tuple(_MASTER, master.original, TCP)
        self._change(connection, _CREATE | _EXCL, body, replied=False)

    def _change(self, connection: Connection, flags: int, body: bytes, *, replied: bool) -> None:
        family = _family(connection.original)
        status = _CONFIRMED | (_SEEN_REPLY | _ASSURED if replied else 0)
        if flags:
            status |= _SRC_NAT_DONE | _DST_NAT_DONE
        body = _tuple(_ORIG, connection.original, connection.proto) + body
        if flags or replied:
            body += _attribute(_STATUS, struct.pack("!I", status))
        body += _attribute(_TIMEOUT, struct.pack("!I", _LIFE)) + _zone(connection)
        if connection.mark:
            body += _attribute(_MARK, struct.pack("!I", connection.mark))
        if connection.proto == TCP and replied:
            liberal = struct.pack("BB", _LIBERAL, _LIBERAL)
            info = _attribute(1, bytes([_ESTABLISHED]))
            info += _attribute(4, liberal) + _attribute(5, liberal)
            body += _attribute(_PROTOINFO | _NESTED, _attribute(1 | _NESTED, info))
        self._ask(_NEW, family, body, _ACK | flags)

    def _ask(self, kind: int, family: int, body: bytes, flags: int) -> bytes | None:
        """Returns the answer's attributes; None if there is no such entry.  Raises WhatIfError."""
        self._number += 1
        head = struct.pack("=IHHII", 20 + len(body), kind, _REQUEST | flags, self._number, 0)
        self._socket.send(head + struct.pack("!BBH", family, 0, 0) + body)
        data = self._socket.recv(1 << 16)
        if struct.unpack_from("=H", data, 4)[0] != 2:  # NLMSG_ERROR
            return data[20:]
        number = -struct.unpack_from("=i", data, 16)[0]
        if number == 2:  # ENOENT
            return None
        if number:
            raise WhatIfError(f"the connection cannot be made: {os.strerror(number)}")
        return b""


def _family(ends: Ends) -> int:
    return socket.AF_INET6 if ":" in ends[0] else socket.AF_INET


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _reverse(connection: Connection) -> Ends:
    """The reply direction without NAT."""
    source, sport, target, dport = connection.original
    if connection.proto in (ICMP, ICMPV6):
        return target, sport, source, dport
    return target, dport, source, sport


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _zone(connection: Connection) -> bytes:
    return _attribute(_ZONE, struct.pack("!H", connection.zone)) if connection.zone else b""


def _tuple(kind: int, ends: Ends, proto: int) -> bytes:
    """A direction as an attribute; of ICMP, the ports are the identifier and the type."""
    source, sport, target, dport = ends
    first = 1 if ":" not in source else 3
    addresses = _attribute(first, _packed(source)) + _attribute(first + 1, _packed(target))
    what = _attribute(1, bytes([proto]))
    if proto in (ICMP, ICMPV6):
        at = 4 if proto == ICMP else 7
        type_ = (8 if proto == ICMP else 128) if dport is None else dport
        if kind == _REPLY:
            type_ = _ECHO_REPLY.get(type_, type_)
        what += _attribute(at, struct.pack("!H", ECHO_ID if sport is None else sport))
        what += _attribute(at + 1, bytes([type_])) + _attribute(at + 2, b"\0")
    elif proto in PORTS:
        what += _attribute(2, struct.pack("!H", sport or 0))
        what += _attribute(3, struct.pack("!H", dport or 0))
    body = _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, what)
    return _attribute(kind | _NESTED, body)


def _nat(kind: int, address: str, port: int | None) -> bytes:
    first = 4 if ":" in address else 1
    packed = _packed(address)
    body = _attribute(first, packed) + _attribute(first + 1, packed)
    if port is not None:
        number = struct.pack("!H", port)
        body += _attribute(3 | _NESTED, _attribute(1, number) + _attribute(2, number))
    return _attribute(kind | _NESTED, body)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + -size % 4
    return found


def _ends(value: bytes, family: int) -> Ends:
    parts = _attributes(value)
    addresses, what = _attributes(parts.get(1, b"")), _attributes(parts.get(2, b""))
    first = 1 if family == socket.AF_INET else 3
    ports = [struct.unpack("!H", what[key])[0] if key in what else None for key in (2, 3)]
    source, target = (
        socket.inet_ntop(family, addresses[key]) if key in addresses else ""
        for key in (first, first + 1)
    )
    return source, ports[0], target, ports[1]
