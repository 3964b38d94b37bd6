# SPDX-License-Identifier: GPL-2.0-only
"""Mailboxes: netlink sockets that a thread reads as fast as the kernel writes.

The thread receives datagrams by the hundred (recvmmsg) and only stores them, so that
decoding, writing and a slow reader of the stream never let a socket's buffer fill.  The
kernel counts exactly, for each socket, the messages it had no room for.  Datagrams of
other senders than the kernel are dropped.  Must not parse messages.
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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_NO_ENOBUFS: Final = 5
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
_MEMINFO_WORDS: Final = 9

# struct sockaddr_nl: its size, and the index of the word nl_pid, which is 0 for the kernel.
_SENDER: Final = 12
_SENDER_PORT: Final = 1
_AT_ONCE: Final = 512  # datagrams that one recvmmsg receives
# During a flood, pause between calls, s, if the socket's buffer is large enough.
_GATHER: Final = 0.002
_FLOOD: Final = 64  # datagrams at one call
_LARGE_BUFFER: Final = 4 << 20
# Bytes that all mailboxes may store; beyond it the kernel's buffers fill, and count.
MOST_STORED: Final = 96 << 20
_SPACING: Final = np.uint64(64)  # ns, see joined(); reading one datagram takes longer
_WAKE: Final = 4096  # datagrams stored, before `wake` becomes readable
_QUIET: Final = 50_000_000  # ns without a datagram, after which one may wake at once

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
    """Datagrams of one socket, in order, read at once.

    `time`: when they had been read, CLOCK_MONOTONIC ns; `data`: uint8, shape (n, width),
    width a multiple of four; `lengths`: int32, shape (n,), at most width.
    """

    time: int
    data: Array
    lengths: Array


def joined(batches: tuple[Batch, ...]) -> tuple[Batch, Array]:
    """Joins one batch or more; also when each datagram was read, ns, uint64, shape (n,).

    Those of datagrams that were read at once are _SPACING apart: a socket's datagrams are in
    the order in which the kernel sent them.  None is later than the batch's: rules that were
    looked at behind it are not those that its packets met.
    """
    counts = [len(batch.lengths) for batch in batches]
    times = np.concatenate(
        [
            np.uint64(batch.time) - np.arange(count, dtype=np.uint64)[::-1] * _SPACING
            for batch, count in zip(batches, counts, strict=True)
        ]
    )
    if len(batches) == 1:
        return batches[0], times
    data = np.zeros((sum(counts), max(batch.data.shape[1] for batch in batches)), np.uint8)
    at = 0
    for batch, count in zip(batches, counts, strict=True):
        data[at : at + count, : batch.data.shape[1]] = batch.data
        at += count
    return Batch(batches[0].time, data, np.concatenate([batch.lengths for batch in batches])), times


class Mailbox:
    """A netfilter netlink socket of the calling thread's namespace, and the datagrams read."""

    def __init__(self, room: int, width: int = 1024) -> None:
        """Opens the socket.  Raises OSError.

        `room`: bytes of the kernel's buffer, limited without CAP_NET_ADMIN on the host;
        `width`: longer datagrams are cut, a multiple of four.
        """
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        try:
            self.socket.bind((0, 0))
            self.socket.setblocking(False)
            # Else the kernel, after one loss, drops all messages until the buffer is empty.
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
        # Does the first datagram after a pause make MailboxReader.wake readable?
        self.wakes = False
        self._closed = False
        self._batches: deque[Batch] = deque()
        self._newest = 0  # when a batch was stored, ns
        self._drops = 0

    def grow(self, room: int) -> None:
        """Enlarges the kernel's buffer by `room` bytes, as far as that is permitted."""
        room += self.room // 2  # the kernel doubles this value
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.room = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def portid(self) -> int:
        """The socket's netlink address."""
        return int(self.socket.getsockname()[0])

    def join(self, group: int) -> None:
        """Subscribes to a multicast group, NFNLGRP_*.  Raises OSError."""
        self.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def drops(self) -> int:
        """Messages that the socket's buffer had no room for, since it was opened."""
        if not self._closed:
            with contextlib.suppress(OSError):
                info = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
                if len(info) == 4 * _MEMINFO_WORDS:
                    self._drops = struct.unpack(f"={_MEMINFO_WORDS}I", info)[_MEMINFO_DROPS]
        return self._drops

    def take(self, most: int) -> list[Batch]:
        """The oldest batches not yet taken: all, or `most` bytes and as little more as possible."""
        taken: list[Batch] = []
        size = 0
        with contextlib.suppress(IndexError):
            while size < most:
                taken.append(self._batches.popleft())
                size += taken[-1].data.nbytes
        return taken

    @property
    def oldest(self) -> int | None:
        """When the oldest datagram not yet taken was read, as joined() has it; None if none.

        For the thread that takes, or while it waits.
        """
        if not self._batches:
            return None
        first = self._batches[0]
        return first.time - (len(first.lengths) - 1) * int(_SPACING)

    def put(self, batch: Batch) -> bool:
        """Stores a batch; returns whether it is to wake.  For the thread that reads the mailbox."""
        self._batches.append(batch)
        pause, self._newest = batch.time - self._newest, batch.time
        return self.wakes and pause > _QUIET

    def close(self) -> None:
        """Closes the socket, which holds the namespace; batches can still be taken."""
        self.drops()
        self._closed = True
        self.socket.close()


class MailboxReader:
    """The thread that reads mailboxes; `wake` is readable when much has been stored."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._end, select.EPOLLIN)
        self._mailboxes: dict[int, Mailbox] = {}  # by descriptor
        self._lock = threading.Lock()  # held while a mailbox's descriptor is in use
        self._stored = 0  # bytes
        self._count = 0  # datagrams since `wake` was written
        self._width = 0  # of the buffer for recvmmsg
        self._thread = threading.Thread(target=self._run, name="ipttrace-netlink", daemon=True)
        self._thread.start()

    def add(self, mailbox: Mailbox) -> None:
        """Reads this mailbox too; adding it again changes nothing."""
        with self._lock:
            if mailbox.socket.fileno() in self._mailboxes:
                return
            self._mailboxes[mailbox.socket.fileno()] = mailbox
        self._epoll.register(mailbox.socket.fileno(), select.EPOLLIN)

    def remove(self, mailbox: Mailbox) -> None:
        """Reads the mailbox a last time; it can be closed when this returns."""
        with self._lock:
            if self._mailboxes.pop(mailbox.socket.fileno(), None) is None:
                return
            self._epoll.unregister(mailbox.socket.fileno())
            while self._read(mailbox) == _AT_ONCE:
                pass

    @contextlib.contextmanager
    def paused(self, mailbox: Mailbox) -> Iterator[None]:
        """Leaves a mailbox, if it is read, to the caller, for a request and its answer."""
        with self._lock:
            read = mailbox.socket.fileno() in self._mailboxes
        self.remove(mailbox)
        try:
            yield
        finally:
            if read:
                self.add(mailbox)

    def flush(self, most: int | None = None) -> bool:
        """Reads all that the kernel has written until now, in the calling thread.

        `most`: bytes stored beyond which the rest stays in the kernel.  Returns whether
        nothing stayed there.
        """
        with self._lock:
            for mailbox in self._mailboxes.values():
                while True:
                    if most is not None and self._stored > most:
                        return False
                    if self._read(mailbox) != _AT_ONCE:
                        break
        return True

    def taken(self, size: int) -> None:
        """Notes that `size` stored bytes have been taken."""
        with self._lock:
            self._stored -= size
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
            most, large = 0, True
            for fd, _ in ready:
                if fd == self._end:
                    return
                with self._lock:
                    mailbox = self._mailboxes.get(fd)
                    if mailbox is None:
                        continue
                    full = self._stored > MOST_STORED
                    count = 0 if full else self._read(mailbox)
                most = max(most, count)
                large = large and mailbox.room >= _LARGE_BUFFER
            if self._stored > MOST_STORED:
                time.sleep(0.01)
            elif _FLOOD <= most < _AT_ONCE and large:
                # More will follow, and a call for few datagrams costs as much as for many.
                time.sleep(_GATHER)

    def _prepare(self, width: int) -> None:
        """Allocates a buffer for _AT_ONCE datagrams, and the structures that point to it."""
        self._width = width
        self._buffer = np.zeros((_AT_ONCE, width), np.uint8)
        base = self._buffer.ctypes.data
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

    def _read(self, mailbox: Mailbox) -> int:
        """Reads once; returns the number of datagrams, -1 after an error."""
        if mailbox.width > self._width:
            # The buffer never shrinks: two mailboxes by turns would reallocate it each time.
            self._prepare(mailbox.width)
        fd = mailbox.socket.fileno()
        count = _libc.recvmmsg(fd, self._heads, _AT_ONCE, socket.MSG_DONTWAIT, None)
        if count <= 0:
            # After ENOBUFS and the like, the drops are counted and the next call succeeds.
            return 0 if count == 0 or ctypes.get_errno() == errno.EAGAIN else -1
        lengths = self._lengths[:count].astype(np.int32)
        width = (int(lengths.max()) + 3) & ~3
        data = self._buffer[:count, :width].copy()
        forged = self._senders[:count, _SENDER_PORT] != 0
        if forged.any():
            # Root of the namespace, who need not be root of the host, may send to us.
            data, lengths = data[~forged], lengths[~forged]
        wake = mailbox.put(Batch(time.monotonic_ns(), data, np.minimum(lengths, width)))
        self._stored += data.nbytes
        self._count += count
        if wake or self._count >= _WAKE:
            self._count = 0
            os.eventfd_write(self.wake, 1)
        return int(count)
