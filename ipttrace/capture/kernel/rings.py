# SPDX-License-Identifier: GPL-2.0-only
"""Reads the perf rings: everything between tail and head at once, as arrays.

The only file that imports bcc.

Each CPU has two rings: one of finished calls, one of the rules that did not fit into a
call.  bcc opens them and puts them into the maps that the BPF programs write to.  bcc's own
reader calls back once a record; instead, the perf descriptor is mapped a second time, and
as all records of a ring have the same size, its content is an array.

A CPU that goes off ends its rings, and one that comes on gets new ones (cpus.py).  Until it
has them, the BPF programs count its records as lost.
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
from bcc.utils import get_possible_cpus

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import cpus
from ipttrace.capture.kernel.calls import CALL_DTYPE, split
from ipttrace.capture.order import fences
from ipttrace.stream import record
from ipttrace.stream.messages import Level
from ipttrace.stream.record import Records

# linux/perf_event.h
_RECORD_LOST: Final = 2
_RECORD_SAMPLE: Final = 9
_DATA_HEAD: Final = 1024
_DATA_TAIL: Final = 1032
_BPF_ANY: Final = 0

# What the rings contain, in the order of their maps.
_PAYLOADS: Final = (CALL_DTYPE, record.RULE_DTYPE)


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


class SampleReader:
    """Finds the records in the bytes of one ring."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._event = _event_dtype(dtype)

    def views(self, data: npt.NDArray[np.uint8]) -> list[Records]:
        """Views of the records in `data`, which consists of complete perf events.

        Other events (PERF_RECORD_LOST) are skipped, since the BPF programs count what is
        lost.  Raises CaptureError if an event has an impossible size.
        """
        stride = self._event.itemsize
        parts: list[Records] = []
        at = 0
        while at < len(data):
            most = (len(data) - at) // stride
            events = data[at : at + most * stride].view(self._event)
            good = (events["type"] == _RECORD_SAMPLE) & (events["size"] == stride)
            count = most if good.all() else int(np.argmin(good))
            if count:
                parts.append(events["record"][:count])
                at += count * stride
            if count == most and at == len(data):
                break
            size = int(data[at + 6 : at + 8].view("<u2")[0]) if len(data) - at >= 8 else 0
            if size < 8 or size % 8 or at + size > len(data):
                raise CaptureError("a perf ring contains an event of an impossible size")
            at += size
        return parts


class _Ring:
    """One ring of one CPU; `map_fd`: the BPF map to put it into."""

    def __init__(self, payload: np.dtype[np.void], cpu: int, pages: int, map_fd: int) -> None:
        self.cpu = cpu
        stride = _event_dtype(payload).itemsize
        # Most is read by polling; wakeups are for sudden floods.
        wakeup = max(1, pages * mmap.PAGESIZE // stride // 4)
        options = libbcc.bcc_perf_buffer_opts()
        options.pid = -1
        options.cpu = cpu
        options.wakeup_events = wakeup
        self._reader = lib.bpf_open_perf_buffer_opts(
            _RAW_CALLBACK, _LOST_CALLBACK, None, pages, ctypes.byref(options)
        )
        if not self._reader:
            raise CaptureError(f"cannot open the perf ring of CPU {cpu}: run as root")
        self.fd = int(lib.perf_reader_fd(self._reader))
        slot, fd = ctypes.c_int(cpu), ctypes.c_int(self.fd)
        if lib.bpf_update_elem(map_fd, ctypes.byref(slot), ctypes.byref(fd), _BPF_ANY) < 0:
            lib.perf_reader_free(self._reader)
            raise CaptureError(f"cannot put the perf ring of CPU {cpu} into its BPF map")
        self._size = pages * mmap.PAGESIZE
        self._map = mmap.mmap(self.fd, mmap.PAGESIZE + self._size)
        self._head = np.frombuffer(self._map, "<u8", 1, _DATA_HEAD)
        self._tail = np.frombuffer(self._map, "<u8", 1, _DATA_TAIL)
        self._data = np.frombuffer(self._map, "u1", self._size, mmap.PAGESIZE)
        self._samples = SampleReader(payload)

    def head(self) -> int:
        """How many bytes the kernel has written since the start."""
        return int(self._head[0])

    def views(self, head: int) -> list[Records]:
        """Views of the records before `head`, valid until `release`."""
        tail = int(self._tail[0])
        used = head - tail
        if used > self._size:
            raise CaptureError("the head of a perf ring is beyond its size")
        start = tail % self._size
        if start + used <= self._size:
            data = self._data[start : start + used]
        else:
            data = np.concatenate((self._data[start:], self._data[: start + used - self._size]))
        return self._samples.views(data)

    def release(self, head: int) -> None:
        """Lets the kernel overwrite everything before `head`."""
        self._tail[0] = head

    def close(self) -> None:
        # A mapping that has views cannot be closed.
        del self._head, self._tail, self._data
        self._map.close()
        lib.perf_reader_free(self._reader)


# bcc requires them, and never calls them, since its reader is never polled.
_RAW_CALLBACK: Final = libbcc._RAW_CB_TYPE(lambda *_: None)
_LOST_CALLBACK: Final = libbcc._LOST_CB_TYPE(lambda *_: None)


def _open_pin(path: Path) -> int:
    fd = int(lib.bpf_obj_get(str(path).encode()))
    if fd < 0:
        raise CaptureError(f"cannot open {path}: the pins are gone")
    return fd


class Rings:
    """The perf rings of all CPUs, and the count of records that found no room.

    `pins`: of the maps for calls and for rules; `pages`: of each ring, powers of two;
    `lost`: the pin of the map that counts; `notes`: gets what the user should know of CPUs.
    Raises CaptureError.
    """

    def __init__(
        self,
        pins: list[Path],
        lost: Path,
        pages: tuple[int, int],
        notes: list[tuple[Level, str]],
    ) -> None:
        self._acquire, self._release = fences()
        self._fds = [_open_pin(pin) for pin in pins]
        self._lost_fd = _open_pin(lost)
        self._pages = pages
        self._notes = notes
        self._possible = len(get_possible_cpus())
        self._rings: list[list[_Ring]] = [[], []]
        self._ended: list[list[_Ring]] = [[], []]  # of CPUs that went off, not yet read
        self._lost_before: dict[int, int] = {}  # by CPU, when it went off
        self._seen: list[list[int]] = []
        self._epoll = select.epoll()
        try:
            # First, so that no CPU comes or goes unnoticed.
            self._events = cpus.CpuEvents()
        except OSError as error:
            raise CaptureError(f"cannot watch the CPUs: {error.strerror}") from error
        self._epoll.register(self._events.fileno(), select.EPOLLIN)
        for cpu in sorted(cpus.online()):
            self._begin(cpu)

    def _begin(self, cpu: int) -> None:
        """Opens the rings of a CPU.  Raises CaptureError, unless it is off."""
        opened: list[_Ring] = []
        try:
            for payload, pages, fd in zip(_PAYLOADS, self._pages, self._fds, strict=True):
                opened.append(_Ring(payload, cpu, pages, fd))
        except CaptureError:
            for ring in opened:
                ring.close()
            if cpu in cpus.online():
                raise
            return
        for rings, ring in zip(self._rings, opened, strict=True):
            rings.append(ring)
            self._epoll.register(ring.fd, select.EPOLLIN)

    def _end(self, cpu: int) -> bool:
        """Has the rings of a CPU read once more and then closed; returns whether it had any."""
        had = False
        for rings, ended in zip(self._rings, self._ended, strict=True):
            for ring in [ring for ring in rings if ring.cpu == cpu]:
                # Closing it is not enough: the mapping has a descriptor of its own.
                self._epoll.unregister(ring.fd)
                rings.remove(ring)
                ended.append(ring)
                had = True
        return had

    def _follow_cpus(self) -> None:
        """Ends and begins rings of CPUs that have gone off and come on."""
        events = self._events.take()
        if events is None:
            now = cpus.online()
            events = [(ring.cpu, False) for ring in self._rings[0]]
            events += [(cpu, True) for cpu in sorted(now)]
        for cpu, on in events:
            if self._end(cpu):
                self._lost_before[cpu] = self._lost_of(cpu)
                self._notes.append(("info", f"CPU {cpu} went offline"))
            if on:
                self._begin_again(cpu)

    def _begin_again(self, cpu: int) -> None:
        try:
            self._begin(cpu)
        except CaptureError as error:
            self._notes.append(("error", f"the records of CPU {cpu} are lost: {error}"))
            return
        lost = self._lost_of(cpu) - self._lost_before.get(cpu, 0)
        if lost > 0:
            self._notes.append(("warn", f"CPU {cpu} is online; {lost} records were lost until now"))
        else:
            self._notes.append(("info", f"CPU {cpu} is online"))

    @property
    def cpus(self) -> int:
        """CPUs that have rings."""
        return len(self._rings[0])

    def watch(self, fd: int) -> None:
        """Makes `wait` also return when `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Undoes `watch`."""
        self._epoll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Waits until a ring fills up, a watched fd is readable, or the time is over.

        Returns the descriptors that are readable.
        """
        return {fd for fd, _ in self._epoll.poll(seconds)}

    def take(self) -> list[Records]:
        """All records written by now: entries, rules, exits; entries by time.

        A consistent snapshot: with each exit come all earlier records of its call, unless
        they were lost.  For that, the heads of the rings of rules are read last.
        """
        self._follow_cpus()
        all_rings = [on + off for on, off in zip(self._rings, self._ended, strict=True)]
        heads = []
        for rings in all_rings:
            heads.append([ring.head() for ring in rings])
            self._acquire()
        if heads == self._seen and not any(self._ended):
            return [np.empty(0, dtype) for dtype in record.DTYPES]
        taken = self._copy(all_rings, heads)
        # All is copied: now the kernel may overwrite it.
        self._release()
        for rings, its in zip(all_rings, heads, strict=True):
            for ring, head in zip(rings, its, strict=True):
                ring.release(head)
        self._seen = [its[: len(on)] for its, on in zip(heads, self._rings, strict=True)]
        self._close_ended()
        return taken

    def _copy(self, all_rings: list[list[_Ring]], heads: list[list[int]]) -> list[Records]:
        """The records before `heads`; no view of a ring is left, so that it can be closed."""
        calls, rules = (
            [part for ring, head in zip(rings, its, strict=True) for part in ring.views(head)]
            for rings, its in zip(all_rings, heads, strict=True)
        )
        entries, first, exits = split(calls)
        if rules:
            # As opaque bytes, for the reasons in calls.py.
            plain = f"V{record.RULE_DTYPE.itemsize}"
            parts = [part.view(plain) for part in (first, *rules)]
            first = np.concatenate(parts).view(record.RULE_DTYPE)
        return [entries, first, exits]

    def _close_ended(self) -> None:
        for ended in self._ended:
            while ended:
                ended.pop().close()

    def lost(self) -> list[int]:
        """Records for which no ring had room, by kind, since the start."""
        return [sum(counts) for counts in self._lost_by_cpu()]

    def _lost_of(self, cpu: int) -> int:
        """The same of one CPU, all kinds."""
        return sum(counts[cpu] for counts in self._lost_by_cpu() if cpu < len(counts))

    def _lost_by_cpu(self) -> list[list[int]]:
        """By kind and CPU."""
        counts = []
        values = (ctypes.c_uint64 * self._possible)()
        for kind in range(len(record.KINDS)):
            key = ctypes.c_uint32(kind)
            failed = lib.bpf_lookup_elem(self._lost_fd, ctypes.byref(key), values)
            counts.append([] if failed else list(values))
        return counts

    def close(self) -> None:
        """Unmaps and closes the rings."""
        self._epoll.close()
        self._events.close()
        self._close_ended()
        for rings in self._rings:
            for ring in rings:
                ring.close()
            rings.clear()
        for fd in (*self._fds, self._lost_fd):
            os.close(fd)
