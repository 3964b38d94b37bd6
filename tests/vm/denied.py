# SPDX-License-Identifier: GPL-2.0-only
"""Commands for which a seccomp filter refuses bpf(2), as container runtimes do."""

from __future__ import annotations

import ctypes
import errno
import struct
import subprocess
import sys
from typing import Final

# x86-64: asm/unistd_64.h; linux/prctl.h; linux/seccomp.h
_BPF: Final = 321
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _deny() -> None:
    instructions = (
        (_LOAD_WORD, 0, 0, 0),  # the number of the system call
        (_JUMP_IF_EQUAL, 0, 1, _BPF),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *one) for one in instructions)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = _Program(len(instructions), code)
    assert prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)) == 0


def ipttrace_denied(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, without bpf(2)."""
    return subprocess.run(
        [sys.executable, "-m", "ipttrace", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=_deny,
    )
