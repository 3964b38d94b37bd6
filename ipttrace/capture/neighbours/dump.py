# SPDX-License-Identifier: GPL-2.0-only
"""rtnetlink dumps from any network namespace, one message at a time (linux/netlink.h).

A socket lives for one look only: if it stayed open, it would keep a deleted namespace,
and the devices in it, alive.  Only the calling thread moves, for microseconds; nothing
is forked.  Must not decode what the messages contain.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ipttrace.capture.netns import inside

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_PORTION: Final = 1 << 16  # the kernel sends at most 32 KiB of a dump at once
# The kernel answers within the call; this limit only guards against a hang, s.
_PATIENCE: Final = 5.0


class Vanished(Exception):
    """The namespace does not exist any more."""


@contextmanager
def socket_in(path: str, inode: int) -> Iterator[socket.socket]:
    """Opens an rtnetlink socket in the namespace `inode` at `path`, from the outside.

    Raises Vanished if the path does not lead to it any more; OSError.
    """
    try:
        with inside(path, inode):
            sock = _route_socket()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Vanished from error
    with sock:
        sock.settimeout(_PATIENCE)
        sock.bind((0, 0))
        yield sock


def _route_socket() -> socket.socket:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """Yields each message of a dump, header included.  Raises OSError.

    `kind`: RTM_GET*; `body`: what follows the request's header.  Iterate to the end:
    the rest of a dump would spoil the next one on this socket.
    """
    seq = kind  # enough, because each answer is read to its end
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, seq, 0) + body)
    while True:
        data, sender = sock.recvfrom(_PORTION)
        if sender[0] != 0:
            continue  # sent by a process, not by the kernel
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


def _check(payload: bytes) -> None:
    """Raises OSError if the payload of NLMSG_DONE or NLMSG_ERROR holds an error number."""
    code = struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if code < 0:
        raise OSError(-code, os.strerror(-code))
