# SPDX-License-Identifier: GPL-2.0-only
"""CPUs that go off and on, as the kernel reports them: also after a suspend.

A perf event of a CPU is dead once that CPU has gone off, for good.  The events are those
that udev gets: ``online@/devices/system/cpu/cpu1`` (NETLINK_KOBJECT_UEVENT, lib/kobject_uevent.c).
Reading which CPUs are on again and again would miss one that goes off and on meanwhile.
Must not import bcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import socket
import struct
from pathlib import Path
from typing import Final

_UEVENT: Final = 15  # NETLINK_KOBJECT_UEVENT
_FROM_KERNEL: Final = 1  # its multicast group; 2: from udev
_MOST: Final = 8192  # bytes of a message
_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of socket(7)
_EVENT: Final = re.compile(rb"(online|offline)@/devices/system/cpu/cpu(\d{1,5})\0")
_ONLINE: Final = Path("/sys/devices/system/cpu/online")

# Classic BPF: only messages that begin with "onli" or "offl" wake us.
_FILTER: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),  # ld [0]
        (0x15, 1, 0, int.from_bytes(b"onli", "big")),  # jeq
        (0x15, 0, 1, int.from_bytes(b"offl", "big")),
        (0x06, 0, 0, 0xFFFFFFFF),  # ret: all of it
        (0x06, 0, 0, 0),  # ret: nothing
    )
)


def parse(message: bytes) -> tuple[int, bool] | None:
    """The CPU that a uevent is about, and whether it is on; None for another device's."""
    if match := _EVENT.match(message):
        return int(match[2]), match[1] == b"online"
    return None


def parse_list(text: str) -> set[int]:
    """The CPUs of a list such as ``0-2,5``.  Raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def online() -> set[int]:
    """The CPUs that are on."""
    return parse_list(_ONLINE.read_text())


class CpuEvents:
    """A socket that hears of CPUs from now on.  Raises OSError."""

    def __init__(self) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _UEVENT)
        try:
            program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
            count = len(_FILTER) // 8
            fprog = struct.pack("HL", count, ctypes.addressof(program))
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, fprog)
            self._socket.bind((0, _FROM_KERNEL))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, readable if there is an event."""
        return self._socket.fileno()

    def take(self) -> list[tuple[int, bool]] | None:
        """The events since the last call: CPU, and whether it is on; None if some were lost."""
        found: list[tuple[int, bool]] = []
        while True:
            try:
                message, (pid, _) = self._socket.recvfrom(_MOST)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._empty()
                    return None
                raise
            # Root can send to the group too: only the kernel has no pid.
            if pid == 0 and (event := parse(message)):
                found.append(event)

    def _empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(_MOST)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
