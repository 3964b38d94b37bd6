# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs of tests, in the instructions of linux/bpf.h, pinned for the module to run."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

KPROBE: Final = 2  # BPF_PROG_TYPE_KPROBE


def instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction: struct bpf_insn; `to` and `of` are registers."""
    return struct.pack("=BBhi", code, of << 4 | to, offset, value)


ZERO: Final = instruction(0xB7)  # r0 = 0
EXIT: Final = instruction(0x95)


class LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of bpf/bpf.h, up to prog_flags."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    )


def pin_kprobe(
    path: Path, name: bytes, attach_type: int = 0, flags: int = 0, code: bytes = ZERO + EXIT
) -> None:
    """Pins a program of type kprobe."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    options = LoadOptions(ctypes.sizeof(LoadOptions), 1, attach_type, 0, flags)
    count = ctypes.c_size_t(len(code) // 8)
    fd = lib.bpf_prog_load(KPROBE, name, b"GPL", code, count, ctypes.byref(options))
    assert fd >= 0, os.strerror(-fd)
    assert lib.bpf_obj_pin(fd, os.fsencode(path)) == 0
    os.close(fd)
