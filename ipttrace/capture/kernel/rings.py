# SPDX-License-Identifier: GPL-2.0-only
"""Reads the perf buffers: whole stretches at once, as arrays.

bcc opens two buffers for each CPU, of finished calls and of the rules that did not
fit into one, and wires them to the maps that the BPF programs write to.  Its own
reader calls back once a record; instead, the same perf descriptor is mapped a
second time, and since a buffer holds records of one size, what lies between tail
and head is an array.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from bcc import libbcc
from bcc.libbcc import lib
from bcc.utils import get_online_cpus, get_possible_cpus

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.calls import CALL_DTYPE, split
from ipttrace.stream import record
from ipttrace.stream.record import Records

# linux/perf_event.h
_RECORD_LOST: Final = 2
_RECORD_SAMPLE: Final = 9
_DATA_HEAD: Final = 1024
_DATA_TAIL: Final = 1032
_BPF_ANY: Final = 0

# What the buffers hold, in the order of their pins.
_HELD: Final = (CALL_DTYPE, record.RULE_DTYPE)


def _event_dtype(payload: np.dtype[np.void]) -> np.dtype[np.void]:
    """A PERF_RECORD_SAMPLE with PERF_SAMPLE_RAW: header, u32 size, data, padding."""
    return np.dtype(
        {
            "names": ["type", "misc", "size", "raw", "record"],
            "formats": ["<u4", "<u2", "<u2", "<u4", payload],
            "offsets": [0, 4, 6, 8, 12],
            "itemsize": (12 + payload.itemsize + 7) & ~7,
        }
    )


class Stretch:
    """Takes records out of the bytes of one buffer, in whatever portions they come."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._event = _event_dtype(dtype)

    def views(self, data: npt.NDArray[np.uint8]) -> list[Records]:
        """The records in `data`, whole events from the first byte on, where they lie.

        Other events (PERF_RECORD_LOST) are passed over: what was lost is
        counted where it is lost.  Raises CaptureError on an event that lies.
        """
        stride = self._event.itemsize
        parts: list[Records] = []
        at = 0
        while at < len(data):
            whole = (len(data) - at) // stride
            events = data[at : at + whole * stride].view(self._event)
            good = (events["type"] == _RECORD_SAMPLE) & (events["size"] == stride)
            count = whole if good.all() else int(np.argmin(good))
            if count:
                parts.append(events["record"][:count])
                at += count * stride
            if count == whole and at == len(data):
                break
            size = int(data[at + 6 : at + 8].view("<u2")[0]) if len(data) - at >= 8 else 0
            if size < 8 or size % 8 or at + size > len(data):
                raise CaptureError("a perf buffer holds an event of an impossible size")
            at += size
        return parts


class _Ring:
    """One buffer of one CPU."""

    def __init__(self, held: np.dtype[np.void], cpu: int, pages: int, map_fd: int) -> None:
        stride = _event_dtype(held).itemsize
        # Polling reads most; a wakeup is for a sudden flood only.
        wakeup = max(1, pages * mmap.PAGESIZE // stride // 4)
        options = libbcc.bcc_perf_buffer_opts()
        options.pid = -1
        options.cpu = cpu
        options.wakeup_events = wakeup
        self._reader = lib.bpf_open_perf_buffer_opts(
            _RAW_CALLBACK, _LOST_CALLBACK, None, pages, ctypes.byref(options)
        )
        if not self._reader:
            raise CaptureError(f"the perf buffer of CPU {cpu} cannot be opened: run as root")
        self.fd = int(lib.perf_reader_fd(self._reader))
        slot, fd = ctypes.c_int(cpu), ctypes.c_int(self.fd)
        if lib.bpf_update_elem(map_fd, ctypes.byref(slot), ctypes.byref(fd), _BPF_ANY) < 0:
            raise CaptureError(f"the perf buffer of CPU {cpu} cannot be wired to its BPF map")
        self._size = pages * mmap.PAGESIZE
        self._map = mmap.mmap(self.fd, mmap.PAGESIZE + self._size)
        self._head = np.frombuffer(self._map, "<u8", 1, _DATA_HEAD)
        self._tail = np.frombuffer(self._map, "<u8", 1, _DATA_TAIL)
        self._data = np.frombuffer(self._map, "u1", self._size, mmap.PAGESIZE)
        self._stretch = Stretch(held)

    def head(self) -> int:
        return int(self._head[0])

    def views(self, head: int) -> list[Records]:
        """The records up to `head`, most of them where they lie, until `release`."""
        tail = int(self._tail[0])
        used = head - tail
        if used > self._size:
            raise CaptureError("a perf buffer's head lies")
        start = tail % self._size
        if start + used <= self._size:
            data = self._data[start : start + used]
        else:
            data = np.concatenate((self._data[start:], self._data[: start + used - self._size]))
        return self._stretch.views(data)

    def release(self, head: int) -> None:
        """Gives the room up to `head` back to the kernel."""
        self._tail[0] = head

    def close(self) -> None:
        # The views go first: a mapping with a view on it cannot be closed.
        del self._head, self._tail, self._data
        self._map.close()
        lib.perf_reader_free(self._reader)


# bcc wants them, and never calls them, since its reader is never polled.
_RAW_CALLBACK: Final = libbcc._RAW_CB_TYPE(lambda *_: None)
_LOST_CALLBACK: Final = libbcc._LOST_CB_TYPE(lambda *_: None)


def _open_pin(path: Path) -> int:
    fd = int(lib.bpf_obj_get(str(path).encode()))
    if fd < 0:
        raise CaptureError(f"{path} cannot be opened: the pins are gone")
    return fd


class Buffers:
    """The perf buffers of all CPUs, and the count of what found no room.

    `pins`: of the maps of calls and of rules; `pages` of each: powers of two.
    """

    def __init__(self, pins: list[Path], lost: Path, pages: tuple[int, int]) -> None:
        self._rings: list[list[_Ring]] = [[], []]
        self._fds = [_open_pin(pin) for pin in pins]
        self._lost_fd = _open_pin(lost)
        self._possible = len(get_possible_cpus())
        self._seen: list[list[int]] = []
        self._epoll = select.epoll()
        for rings, held, size, fd in zip(self._rings, _HELD, pages, self._fds, strict=True):
            for cpu in get_online_cpus():
                ring = _Ring(held, cpu, size, fd)
                rings.append(ring)
                self._epoll.register(ring.fd, select.EPOLLIN)

    @property
    def cpus(self) -> int:
        """CPUs that have buffers."""
        return len(self._rings[0])

    def watch(self, fd: int) -> None:
        """Makes `wait` return when `fd` can be read, too."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Undoes `watch`."""
        self._epoll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Waits until a buffer fills up, a watched fd is readable, or time is up.

        Returns the fds that are ready.
        """
        return {fd for fd, _ in self._epoll.poll(seconds)}

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits, entries in order of time.

        A snapshot in which no exit is without the earlier records of its call,
        unless they were lost: rules that came ahead of it are looked for last.
        """
        heads = [[ring.head() for ring in rings] for rings in self._rings]
        if heads == self._seen:
            return [np.empty(0, dtype) for dtype in record.DTYPES]
        self._seen = heads
        calls, rules = (
            [part for ring, head in zip(rings, its, strict=True) for part in ring.views(head)]
            for rings, its in zip(self._rings, heads, strict=True)
        )
        entries, first, exits = split(calls)
        if rules:
            # As plain bytes: see whole.py.
            plain = f"V{record.RULE_DTYPE.itemsize}"
            parts = [part.view(plain) for part in (first, *rules)]
            first = np.concatenate(parts).view(record.RULE_DTYPE)
        # The copies are made: now the kernel may write there again.
        for rings, its in zip(self._rings, heads, strict=True):
            for ring, head in zip(rings, its, strict=True):
                ring.release(head)
        return [entries, first, exits]

    def lost(self) -> list[int]:
        """Records that no buffer had room for, by kind, since the start."""
        counts = []
        values = (ctypes.c_uint64 * self._possible)()
        for kind in range(len(record.KINDS)):
            key = ctypes.c_uint32(kind)
            failed = lib.bpf_lookup_elem(self._lost_fd, ctypes.byref(key), values)
            counts.append(0 if failed else int(sum(values)))
        return counts

    def close(self) -> None:
        """Gives the buffers back."""
        self._epoll.close()
        for rings in self._rings:
            for ring in rings:
                ring.close()
            rings.clear()
        for fd in (*self._fds, self._lost_fd):
            os.close(fd)
