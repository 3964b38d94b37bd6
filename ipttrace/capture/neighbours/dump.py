# SPDX-License-Identifier: GPL-2.0-only
"""rtnetlink dumps from any network namespace, message by message.

A socket is made for one look and closed after it: one that stayed open would
keep a deleted namespace, and the devices in it, alive.  Entering moves the
calling thread only, and takes microseconds; nothing is forked.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_HEADER: Final = struct.Struct("=IHHII")
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_PORTION: Final = 1 << 16  # a dump comes in at most 32 KiB at once
# The kernel answers in the caller's own time; this is against a hang only.
_PATIENCE: Final = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class Vanished(Exception):
    """The namespace is not there any more."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Doors:
    """Ways into namespaces for one thread.  The first namespace is where it came from."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._away = False

    @property
    def home(self) -> int:
        """The inode of the thread's own namespace."""
        return os.fstat(self._home).st_ino

    def close(self) -> None:
        os.close(self._home)

    @contextmanager
    def socket_in(self, path: str, inode: int) -> Iterator[socket.socket]:
        """A socket in the namespace `inode`, which `path` stands for.

        Raises Vanished where path stands for it no more; OSError.
        """
        with self._open(path, inode) as sock:
            sock.settimeout(_PATIENCE)
            sock.bind((0, 0))
            yield sock

    def _open(self, path: str, inode: int) -> socket.socket:
        if inode == self.home:
            self._return()
            return _route_socket()
        try:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Vanished from error
        try:
            if os.fstat(there).st_ino != inode:
                raise Vanished
            self._away = True
            try:
                _setns(there)
                return _route_socket()
            finally:
                self._return()
        finally:
            os.close(there)

    def _return(self) -> None:
        if self._away:
            _setns(self._home)
            self._away = False


def _route_socket() -> socket.socket:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """All messages that a dump request gives, header included.  Raises OSError.

    `kind`: RTM_GET*; `body`: what follows the request's header.  To be read to
    its end, or the socket is of no use for another.
    """
    seq = kind  # answers of two requests never mix: each is read to its end
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, seq, 0) + body)
    while True:
        data, sender = sock.recvfrom(_PORTION)
        if sender[0] != 0:
            continue  # not from the kernel
        at = 0
        while at + _HEADER.size <= len(data):
            size, answer, _, number, _ = _HEADER.unpack_from(data, at)
            if not _HEADER.size <= size <= len(data) - at:
                raise OSError("the kernel's answer is cut off")
            if number == seq:
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    _check(data[at + _HEADER.size : at + size])
                    return
                yield data[at : at + size]
            at += (size + 3) & ~3


def _check(rest: bytes) -> None:
    """Raises OSError if the end of a dump, or an error message, says so."""
    code = struct.unpack_from("=i", rest)[0] if len(rest) >= 4 else 0
    if code < 0:
        raise OSError(-code, os.strerror(-code))
