# SPDX-License-Identifier: GPL-2.0-only
"""Requests to nf_tables, as bytes, and the socket that sends them to the kernel.

Layouts: linux/netfilter/nfnetlink.h and nf_tables.h; numbers are big-endian.  Must not
know filters, tables or anything else that a request is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ipttrace.capture.errors import CaptureError

NEWTABLE: Final = 0
GETTABLE: Final = 1
DELTABLE: Final = 2
NEWCHAIN: Final = 3
NEWRULE: Final = 6
DELRULE: Final = 8
NEWOBJ: Final = 18
GETOBJ: Final = 19
COMPAT_GET: Final = 0  # of NFT_COMPAT

REQUEST: Final = 0x001
ACK: Final = 0x004
DUMP: Final = 0x300
EXCL: Final = 0x200
CREATE: Final = 0x400
APPEND: Final = 0x800

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
NFT_COMPAT: Final = 11  # NFNL_SUBSYS_NFT_COMPAT
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_ERROR: Final = 2
_DONE: Final = 3
_DUMP_INTR: Final = 0x10
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NESTED: Final = 0x8000
_TYPE: Final = 0x3FFF

_SO_SNDBUFFORCE: Final = 32
_SOL_NETLINK: Final = 270
_NETLINK_NO_ENOBUFS: Final = 5
_NETLINK_CAP_ACK: Final = 10
_SEND_ROOM: Final = 4 << 20  # a batch is sent to the kernel in one piece
_TRIES: Final = 20  # the kernel gives up when a signal arrives

_OPS: Final = {"eq": 0, "neq": 1, "lte": 3, "gte": 5}  # enum nft_cmp_ops
_META_LEN: Final = 0
_META_PROTOCOL: Final = 1
_META_NFTRACE: Final = 12
_REGISTER: Final = 1
_ACCEPT: Final = 1
COUNTER: Final = 1  # NFT_OBJECT_COUNTER

# What a payload's offset counts from: enum nft_payload_bases.
NETWORK_HEADER: Final = 1
TRANSPORT_HEADER: Final = 2


class Refused(Exception):
    """The kernel refused a request: `errno`, and the request's type, None for a complete batch."""

    def __init__(self, number: int, kind: int | None) -> None:
        super().__init__(os.strerror(number))
        self.errno = number
        self.kind = kind


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute: header and value, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute whose value is a big-endian u32."""
    return attribute(kind, struct.pack(">I", value))


def text(kind: int, value: bytes) -> bytes:
    """An attribute whose value is a string, ended by a zero byte."""
    return attribute(kind, value + b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute whose value is other attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def attributes(data: bytes) -> dict[int, bytes]:
    """Values by attribute type; stops at an attribute whose length does not fit."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Types and values; stops at an attribute whose length does not fit."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        yield kind & _TYPE, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _expression(name: bytes, *data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *data))


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


def _compare(op: str, data: bytes) -> bytes:
    return _expression(b"cmp", number(1, _REGISTER), number(2, _OPS[op]), _value(3, data))


def load_length() -> bytes:
    """Expressions that load the packet's length, 4 bytes, from the network header on."""
    length = _expression(b"meta", number(1, _REGISTER), number(2, _META_LEN))
    # Out of host order (NFT_BYTEORDER_HTON): lte and gte compare bytes.
    return length + _expression(
        b"byteorder", number(1, _REGISTER), number(2, _REGISTER), number(3, 1),
        number(4, 4), number(5, 4),
    )  # fmt: skip


def load_payload(base: int, offset: int, size: int) -> bytes:
    """The expression that loads bytes of the packet; `base`: NETWORK_HEADER, TRANSPORT_HEADER."""
    return _expression(
        b"payload", number(1, _REGISTER), number(2, base), number(3, offset), number(4, size)
    )


def compare(size: int, mask: int, compares: tuple[tuple[str, int], ...]) -> bytes:
    """Expressions that compare the `size` bytes loaded last, masked: (eq, neq, lte or gte, value).

    Without any, nothing is compared: the load alone must succeed.
    """
    masked = b""
    if compares and mask != (1 << 8 * size) - 1:
        masked = _expression(
            b"bitwise", number(1, _REGISTER), number(2, _REGISTER), number(3, size),
            _value(4, mask.to_bytes(size, "big")), _value(5, bytes(size)),
        )  # fmt: skip
    return masked + b"".join(_compare(op, to.to_bytes(size, "big")) for op, to in compares)


def no_ethertype_of(*ethertypes: int) -> bytes:
    """Expressions that match packets of none of these ethertypes."""
    made = _expression(b"meta", number(1, _REGISTER), number(2, _META_PROTOCOL))
    return made + b"".join(_compare("neq", struct.pack(">H", one)) for one in ethertypes)


def match(name: bytes, revision: int, info: bytes) -> bytes:
    """The expression that runs a match of x_tables; `info`: its own struct."""
    return _expression(b"match", text(1, name), number(2, revision), attribute(3, info))


def count(counter: bytes) -> bytes:
    """The expression that counts in the named counter."""
    return _expression(b"objref", number(1, COUNTER), text(2, counter))


def trace() -> bytes:
    """The expressions that set nf_trace: from here on the kernel reports the packet's rules."""
    flag = _expression(b"immediate", number(1, _REGISTER), _value(2, b"\1"))
    return flag + _expression(b"meta", number(2, _META_NFTRACE), number(3, _REGISTER))


def accept() -> bytes:
    """The expression that accepts the packet, which ends the chain."""
    return _expression(b"immediate", number(1, 0), nested(2, nested(2, number(1, _ACCEPT))))


@dataclass(frozen=True, slots=True)
class Request:
    """One message to nf_tables: type (NFT_MSG_*), family (NFPROTO_*), attributes, NLM_F_*.

    `subsystem`: NFNL_SUBSYS_*, if it is for another one.
    """

    kind: int
    family: int
    attributes: bytes
    flags: int = 0
    subsystem: int = _SUBSYSTEM

    def message(self, sequence: int, flags: int) -> bytes:
        """The bytes to send."""
        body = struct.pack(">BBH", self.family, 0, 0) + self.attributes
        kind = self.subsystem << 8 | self.kind
        length = _HEADER.size + len(body)
        return _HEADER.pack(length, kind, REQUEST | self.flags | flags, sequence, 0) + body


def _batch_edge(kind: int, sequence: int) -> bytes:
    return _HEADER.pack(20, kind, REQUEST, sequence, 0) + struct.pack(">BBH", 0, 0, _SUBSYSTEM)


class NftSocket:
    """A socket to nf_tables of the calling thread's namespace.  For one thread at a time.

    The kernel executes a request and answers it before sending returns.
    """

    def __init__(self) -> None:
        """Raises CaptureError."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as error:
            raise capture_error(error.errno or 0) from error
        try:
            self._socket.bind((0, 0))
            self._socket.setblocking(False)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_ROOM)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_ROOM)
        except OSError as error:
            self._socket.close()
            raise capture_error(error.errno or 0) from error
        self._sequence = 0

    def fileno(self) -> int:
        """The descriptor: the tables that it owns exist as long as it is open anywhere."""
        return self._socket.fileno()

    @property
    def portid(self) -> int:
        """The socket's netlink address: the owner of its tables."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Closes the socket; the kernel has removed the tables that it owns when this returns."""
        self._socket.close()

    def commit(self, requests: list[Request]) -> None:
        """Executes all requests at once, or none.  Raises Refused."""
        for _ in range(_TRIES):
            try:
                return self._commit(requests)
            except Refused as refused:
                if refused.errno not in (errno.EINTR, errno.EAGAIN):
                    raise
        raise Refused(errno.EINTR, None)

    def _commit(self, requests: list[Request]) -> None:
        first = self._next_sequence(len(requests) + 2)
        last = first + len(requests)
        parts = [_batch_edge(_BATCH_BEGIN, first)]
        for sequence, request in enumerate(requests, first + 1):
            # The kernel always reports errors, so that one acknowledgement is enough.
            parts.append(request.message(sequence, ACK if sequence == last else 0))
        self._send(b"".join((*parts, _batch_edge(_BATCH_END, last + 1))))
        done = False
        problem: Refused | None = None
        for kind, _, sequence, body in self._answers():
            if kind != _ERROR or not first <= sequence <= last + 1 or len(body) < 4:
                continue
            failed = -struct.unpack_from("=i", body)[0]
            if failed and problem is None:
                inside = first < sequence <= last
                problem = Refused(failed, requests[sequence - first - 1].kind if inside else None)
            done = done or (not failed and sequence == last)
        if problem is not None:
            raise problem
        if not done:
            raise Refused(errno.EIO, None)

    def ask(
        self, request: Request, *, interrupted: bool = False
    ) -> list[tuple[int, dict[int, bytes]]]:
        """The answers: family (NFPROTO_*) and attributes of each.  Raises Refused.

        `interrupted`: also those of a dump during which something changed, so that some
        may be missing or twice.
        """
        for _ in range(_TRIES):
            sequence = self._next_sequence(1)
            self._send(request.message(sequence, 0))
            found = []
            # A dump ends with NLMSG_DONE: without it, answers are missing.
            complete, ended = True, request.flags & DUMP != DUMP
            for kind, flags, number, body in self._answers():
                if number != sequence:
                    continue
                complete = complete and (interrupted or not flags & _DUMP_INTR)
                ended = ended or kind == _DONE
                if kind == _ERROR and len(body) >= 4:
                    if failed := -struct.unpack_from("=i", body)[0]:
                        raise Refused(failed, request.kind)
                elif kind >> 8 == request.subsystem and len(body) >= 4:
                    found.append((body[0], attributes(body[4:])))
            if complete and ended:
                return found
        raise Refused(errno.EINTR, request.kind)

    def _next_sequence(self, count: int) -> int:
        first = self._sequence + 1
        self._sequence = (self._sequence + count) & 0x3FFFFFFF
        return first

    def _send(self, data: bytes) -> None:
        # Drops what is left of an earlier answer.
        for _ in self._answers():
            pass
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise Refused(error.errno or errno.EIO, None) from error

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence and body of each message that has arrived."""
        while True:
            try:
                data, sender = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return
            except OSError as error:
                raise Refused(error.errno or errno.EIO, None) from error
            if sender[0]:
                continue  # not from the kernel
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
                if length < _HEADER.size or at + length > len(data):
                    break
                yield kind, flags, sequence, data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3


def capture_error(number: int, what: str = "nf_tables") -> CaptureError:
    """The message for the errno `number`; `what` is what failed."""
    if number in (errno.EPERM, errno.EACCES):
        return CaptureError(
            "tracing with nf_tables needs CAP_NET_ADMIN in the network namespace: run with sudo"
        )
    if number in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return CaptureError(
            "this kernel has no nf_tables (CONFIG_NF_TABLES): try modprobe nf_tables"
        )
    with contextlib.suppress(ValueError, OverflowError):
        return CaptureError(f"{what}: {os.strerror(number)}")
    return CaptureError(f"{what}: error {number}")
