# SPDX-License-Identifier: GPL-2.0-only
"""Loads the BPF programs and pins them where the module finds them.

The object is compiled ahead of time; libbpf relocates it for the running kernel (CO-RE).
The folder of the pins is also the lock: the process that holds it runs the only kernel
engine of this host, and the kernel releases it when the process ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any, Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf, object_file

BPFFS: Final = Path("/sys/fs/bpf")
PINS: Final = BPFFS / "ipttrace"
PROGRAMS: Final = ("ipttrace_call", "ipttrace_rule")
RING_MAPS: Final = ("calls", "rules")
LOST_MAP: Final = "lost"
OBJECT: Final = "ipttrace.bpf.o"

_BPF_FS_MAGIC: Final = 0xCAFE4A11


class Pins:
    """The folder of the pins, locked by this process.  Raises CaptureError.

    `stale`: a run that was killed had left its pins, which are removed.
    """

    def __init__(self) -> None:
        if not _is_bpffs(BPFFS):
            raise CaptureError(f"{BPFFS} is not mounted: mount -t bpf bpf {BPFFS}")
        self.stale = False
        self._fd = self._lock()
        for pin in PINS.iterdir():
            pin.unlink()

    def _lock(self) -> int:
        while True:
            try:
                PINS.mkdir(mode=0o700)
                found = False
            except FileExistsError:
                found = True
            try:
                fd = os.open(PINS, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The previous holder may have removed the folder before it ended.
                if PINS.exists() and os.fstat(fd).st_ino == PINS.stat().st_ino:
                    self.stale = found
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise CaptureError(
                    "another ipttrace is already tracing on this host: stop it first"
                ) from None
            except FileNotFoundError:
                pass
            os.close(fd)

    def load(self) -> None:
        """Loads the object and pins its programs and maps.  Raises CaptureError."""
        libbpf = Libbpf()
        bpf_object = libbpf.open(object_file(OBJECT))
        try:
            libbpf.check(
                libbpf.lib.bpf_object__load(bpf_object), "the kernel rejected the BPF programs"
            )
            pins = os.fsencode(PINS)
            libbpf.check(
                libbpf.lib.bpf_object__pin_programs(bpf_object, pins), "cannot pin the BPF programs"
            )
            libbpf.check(
                libbpf.lib.bpf_object__pin_maps(bpf_object, pins), "cannot pin the BPF maps"
            )
        finally:
            libbpf.lib.bpf_object__close(bpf_object)

    def remove(self) -> None:
        """Removes the pins and releases the lock."""
        if self._fd < 0:
            return
        shutil.rmtree(PINS, ignore_errors=True)
        os.close(self._fd)
        self._fd = -1


def _is_bpffs(path: Path) -> bool:
    # statfs(2): f_type is the first word on every architecture.
    buffer = ctypes.create_string_buffer(256)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        if ctypes.get_errno() in (errno.EACCES, errno.EPERM):
            raise CaptureError(f"{path} is not accessible: run as root (sudo)")
        return False
    return ctypes.c_ulong.from_buffer(buffer).value == _BPF_FS_MAGIC
