# SPDX-License-Identifier: GPL-2.0-only
"""Netlink sockets that are read as fast as the kernel writes.

A thread of its own takes datagrams by the hundred (recvmmsg) and only puts
them aside, so that decoding, writing and a reader that stands still never let
a socket's buffer fill.  What finds no room all the same the kernel counts for
each socket, exactly.  Nobody but the kernel is listened to.  Must not understand a
message.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_NO_ENOBUFS: Final = 5
NETLINK_EXT_ACK: Final = 11
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
_MEMINFO_WORDS: Final = 9

# struct sockaddr_nl: its bytes, and which of its words is nl_pid, 0 of the kernel's.
_SENDER: Final = 12
_SENDER_PORT: Final = 1
# Datagrams a call.
_AT_ONCE: Final = 512
# A flood is left to gather for so long, s, where the socket's buffer can take it.
_GATHER: Final = 0.002
_MANY: Final = 64
_ROOMY: Final = 4 << 20
# What may be put aside, in bytes; beyond it the kernel's buffers fill, and count.
_MOST_ASIDE: Final = 256 << 20
# Somebody is woken once so many datagrams are put aside.
_WAKE: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class Batch:
    """Datagrams of one socket, in order.

    `time`: CLOCK_MONOTONIC ns when they had been read; `data`: uint8, shape
    (n, width), width a multiple of four; `lengths`: of each, int32, at most width.
    """

    time: int
    data: Array
    lengths: Array


def joined(batches: tuple[Batch, ...]) -> tuple[Batch, Array]:
    """All in one, and when each message was read."""
    counts = [len(batch.lengths) for batch in batches]
    times = np.repeat(np.array([batch.time for batch in batches], np.uint64), counts)
    if len(batches) == 1:
        return batches[0], times
    data = np.zeros((sum(counts), max(batch.data.shape[1] for batch in batches)), np.uint8)
    at = 0
    for batch, count in zip(batches, counts, strict=True):
        data[at : at + count, : batch.data.shape[1]] = batch.data
        at += count
    return Batch(batches[0].time, data, np.concatenate([batch.lengths for batch in batches])), times


class Mailbox:
    """A netfilter netlink socket of the calling thread's namespace, and what came to it."""

    def __init__(self, room: int, width: int = 1024) -> None:
        """`room`: bytes of the kernel's buffer, which needs CAP_NET_ADMIN on the host;
        `width`: longer datagrams are cut, a multiple of four.  Raises OSError."""
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        try:
            self.socket.bind((0, 0))
            self.socket.setblocking(False)
            # Without it one loss makes the kernel drop all until the buffer is empty.
            self.socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
            except PermissionError:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            self.room = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        except BaseException:
            self.socket.close()
            raise
        self.width = width
        self._closed = False
        self._aside: deque[Batch] = deque()
        self._drops = 0

    @property
    def portid(self) -> int:
        """The socket's address, which the kernel knows its owner by."""
        return int(self.socket.getsockname()[0])

    def join(self, group: int) -> None:
        """Subscribes to a multicast group, NFNLGRP_*.  Raises OSError."""
        self.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def drops(self) -> int:
        """Messages for this socket that its buffer had no room for, all in all."""
        if not self._closed:
            with contextlib.suppress(OSError):
                info = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
                if len(info) == 4 * _MEMINFO_WORDS:
                    self._drops = struct.unpack(f"={_MEMINFO_WORDS}I", info)[_MEMINFO_DROPS]
        return self._drops

    def take(self) -> list[Batch]:
        """What has come since the last call."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._aside.popleft())
        return taken

    def put(self, batch: Batch) -> None:
        """To be called by the reader's thread alone."""
        self._aside.append(batch)

    def close(self) -> None:
        """The namespace is not held any more; what came can still be taken."""
        self.drops()
        self._closed = True
        self.socket.close()


class Reader:
    """The thread that reads mailboxes."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._end, select.EPOLLIN)
        self._boxes: dict[int, Mailbox] = {}
        self._lock = threading.Lock()  # held while a mailbox's descriptor is in use
        self._bytes = 0
        self._count = 0
        self._width = 0
        self._thread = threading.Thread(target=self._run, name="ipttrace-netlink", daemon=True)
        self._thread.start()

    def add(self, box: Mailbox) -> None:
        """Reads this one too, if it does not already."""
        with self._lock:
            if box.socket.fileno() in self._boxes:
                return
            self._boxes[box.socket.fileno()] = box
        self._epoll.register(box.socket.fileno(), select.EPOLLIN)

    def remove(self, box: Mailbox) -> None:
        """Reads what is there a last time; the mailbox can be closed then."""
        with self._lock:
            if self._boxes.pop(box.socket.fileno(), None) is None:
                return
            self._epoll.unregister(box.socket.fileno())
            while self._read(box) == _AT_ONCE:
                pass

    def flush(self) -> None:
        """Reads what has been written until now, whether the thread has got to it or not."""
        with self._lock:
            for box in self._boxes.values():
                while self._read(box) == _AT_ONCE:
                    pass

    def taken(self, count: int) -> None:
        """So many bytes that were put aside have been taken."""
        with self._lock:
            self._bytes -= count
            self._count = 0

    def close(self) -> None:
        """Ends the thread."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._end)
        os.close(self.wake)

    def _run(self) -> None:
        while True:
            ready = self._epoll.poll()
            most, roomy = 0, True
            for fd, _ in ready:
                if fd == self._end:
                    return
                with self._lock:
                    box = self._boxes.get(fd)
                    if box is None:
                        continue
                    full = self._bytes > _MOST_ASIDE
                    came = 0 if full else self._read(box)
                most = max(most, came)
                roomy = roomy and box.room >= _ROOMY
            if self._bytes > _MOST_ASIDE:
                time.sleep(0.01)
            elif _MANY <= most < _AT_ONCE and roomy:
                # More is on its way: a call for a few datagrams costs as much as for many.
                time.sleep(_GATHER)

    def _prepare(self, width: int) -> None:
        """Room for `_AT_ONCE` datagrams, told to the kernel once."""
        self._width = width
        self._room = np.zeros((_AT_ONCE, width), np.uint8)
        base = self._room.ctypes.data
        self._senders = np.zeros((_AT_ONCE, _SENDER // 4), np.uint32)
        senders = self._senders.ctypes.data
        self._iovecs = (_Iovec * _AT_ONCE)()
        self._heads = (_Mmsghdr * _AT_ONCE)()
        for i in range(_AT_ONCE):
            self._iovecs[i].base = base + i * width
            self._iovecs[i].len = width
            self._heads[i].hdr.iov = ctypes.addressof(self._iovecs[i])
            self._heads[i].hdr.iovlen = 1
            self._heads[i].hdr.name = senders + i * _SENDER
            self._heads[i].hdr.namelen = _SENDER
        size = ctypes.sizeof(_Mmsghdr)
        heads: Any = self._heads
        self._lengths = np.frombuffer(heads, np.uint32)[_Mmsghdr.len.offset // 4 :: size // 4]

    def _read(self, box: Mailbox) -> int:
        """One call for what is there; returns the number of datagrams."""
        if box.width > self._width:
            # Not for each that is narrower: two that take turns would do nothing else.
            self._prepare(box.width)
        fd = box.socket.fileno()
        count = _libc.recvmmsg(fd, self._heads, _AT_ONCE, socket.MSG_DONTWAIT, None)
        if count <= 0:
            # ENOBUFS and alike: the drops are counted, and the next call gives what is there.
            return 0 if count == 0 or ctypes.get_errno() == errno.EAGAIN else -1
        lengths = self._lengths[:count].astype(np.int32)
        width = (int(lengths.max()) + 3) & ~3
        data = self._room[:count, :width].copy()
        others = self._senders[:count, _SENDER_PORT] != 0
        if others.any():
            # Who is root in the namespace alone may send to us, too.
            data, lengths = data[~others], lengths[~others]
        box.put(Batch(time.monotonic_ns(), data, np.minimum(lengths, width)))
        self._bytes += data.nbytes
        self._count += count
        if self._count >= _WAKE:
            self._count = 0
            os.eventfd_write(self.wake, 1)
        return int(count)
