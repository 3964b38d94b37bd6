# SPDX-License-Identifier: GPL-2.0-only
"""A flood: many datagrams for each system call, sendmmsg(2).

Must not send to other addresses than it is called with.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import struct
import time

from ipttrace.lab.network.ns import NetworkError, socket_in
from ipttrace.lab.traffic.sockets import Counts, address_family


class _IoVec(ctypes.Structure):
    """struct iovec, include/uapi/linux/uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    """struct user_msghdr, include/linux/socket.h."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    """struct mmsghdr, include/linux/socket.h."""

    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint))


def flood(
    ns: str,
    dst: str,
    port: int,
    *,
    count: int | None = None,
    duration: float | None = None,
    size: int = 18,
    batch: int = 64,
) -> Counts:
    """Sends datagrams of size bytes from one socket, as fast as one thread can.

    Ends after count packets or duration seconds, whichever comes first.  Raises
    NetworkError without either, or if sending fails.
    """
    if count is None and duration is None:
        raise NetworkError("a flood needs a count or a duration")
    libc = ctypes.CDLL(None, use_errno=True)
    payload = ctypes.create_string_buffer(size)
    iov = _IoVec(ctypes.cast(payload, ctypes.c_void_p), size)
    name = ctypes.create_string_buffer(_sockaddr(dst, port))
    header = _MsgHdr(ctypes.cast(name, ctypes.c_void_p), len(name) - 1, ctypes.pointer(iov), 1)
    vector = (_MMsgHdr * batch)(*(_MMsgHdr(header, 0) for _ in range(batch)))
    end = time.monotonic() + duration if duration is not None else float("inf")
    sent = blocked = 0
    with socket_in(ns, address_family(dst), socket.SOCK_DGRAM) as sock:
        while (count is None or sent < count) and time.monotonic() < end:
            wanted = batch if count is None else min(batch, count - sent)
            done = libc.sendmmsg(sock.fileno(), vector, wanted, 0)
            if done < 0:
                # The sender's own rules dropped the first of the batch.
                number = ctypes.get_errno()
                if number == errno.EPERM:
                    done = 1
                    blocked += 1
                elif number in (errno.EINTR, errno.ENOBUFS, errno.EAGAIN):
                    continue
                else:
                    raise NetworkError(f"flood to {dst}: {os.strerror(number)}")
            sent += done
    return Counts(sent, 0, blocked)


def _sockaddr(dst: str, port: int) -> bytes:
    """Returns a struct sockaddr_in or sockaddr_in6."""
    address = ipaddress.ip_address(dst).packed
    if len(address) == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + address + bytes(8)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
    return head + address + struct.pack("=I", 0)
