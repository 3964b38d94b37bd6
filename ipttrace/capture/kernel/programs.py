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
import itertools
import os
import shutil
from pathlib import Path
from typing import Any, Final

from ipttrace.capture.errors import CaptureError

BPFFS: Final = Path("/sys/fs/bpf")
PINS: Final = BPFFS / "ipttrace"
PROGRAMS: Final = ("ipttrace_call", "ipttrace_rule")
RING_MAPS: Final = ("calls", "rules")
LOST_MAP: Final = "lost"

_BPF_FS_MAGIC: Final = 0xCAFE4A11


def object_file() -> Path:
    """The compiled BPF object: of the checkout, or of the installed package."""
    here = Path(__file__).resolve()
    for path in (
        here.parents[3] / "build" / "ipttrace.bpf.o",
        here.parents[2] / "ipttrace.bpf.o",
        Path("/usr/lib/ipttrace/ipttrace.bpf.o"),
    ):
        if path.exists():
            return path
    raise CaptureError("the BPF object is not built: run make setup")


class _Libbpf:
    """libbpf through ctypes, and the warnings it has printed."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise CaptureError("libbpf.so.1 is missing: apt-get install libbpf1") from error
        libc = ctypes.CDLL(None)
        self.warnings: list[str] = []
        proto = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

        def printed(level: int, fmt: bytes, args: int) -> int:
            if level == 0:  # LIBBPF_WARN
                text = ctypes.create_string_buffer(65536)
                libc.vsnprintf(text, ctypes.c_size_t(65536), fmt, ctypes.c_void_p(args))
                self.warnings.append(text.value.decode(errors="replace").strip())
            return 0

        self._printed = proto(printed)  # libbpf calls it later: it must stay alive
        self.lib.libbpf_set_print(self._printed)
        self.lib.bpf_object__open_file.restype = ctypes.c_void_p
        self.lib.bpf_object__open_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        for name in ("bpf_object__load", "bpf_object__close"):
            getattr(self.lib, name).argtypes = [ctypes.c_void_p]
        for name in ("bpf_object__pin_programs", "bpf_object__pin_maps"):
            getattr(self.lib, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def check(self, result: int, failure: str) -> None:
        """Raises CaptureError with `failure` and the reason if `result` is an error."""
        if result >= 0:
            return
        reason = _reason(self.warnings) or os.strerror(-result)
        if not Path("/sys/kernel/btf/vmlinux").exists():
            reason = "this kernel has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)"
        raise CaptureError(f"{failure}: {reason}")


def _reason(warnings: list[str]) -> str:
    """The line with the reason: the verifier's last before its summary, else the first."""
    lines = "\n".join(warnings).splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("processed "):
            return f"the verifier says {before!r}"
    return lines[0] if lines else ""


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
        libbpf = _Libbpf()
        path = object_file()
        bpf_object = libbpf.lib.bpf_object__open_file(os.fsencode(path), None)
        if not bpf_object:
            raise CaptureError(f"cannot read {path}: {os.strerror(ctypes.get_errno())}")
        try:
            libbpf.check(
                libbpf.lib.bpf_object__load(bpf_object), "the kernel refused the BPF programs"
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
