# SPDX-License-Identifier: GPL-2.0-only
"""The guard's BPF programs: loaded, attached, their rules and events.

Those of LSM (bpf/guard.bpf.c), or of the host's cgroup (bpf/guard_cgroup.bpf.c), which decide less.
Links are held by this process and pinned nowhere: however it ends, all is allowed again.
Must not know what rules mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.counters import Counters
from ipttrace.capture.libbpf.objects import BpfObject
from ipttrace.capture.libbpf.ring import Ring
from ipttrace.capture.sockets.guards import CHECK_PORT
from ipttrace.guard.layout import DENIED, EVENT_DTYPE, LOST, POLICY_DTYPE

_LSM_OBJECT: Final = "guard.bpf.o"
_LSM_PROGRAMS: Final = ("connect", "send", "accept", "arrival", "receive", "packet")
_CGROUP_OBJECT: Final = "guard_cgroup.bpf.o"
_CGROUP_PROGRAMS: Final = ("connect4", "connect6", "send4", "send6", "ingress")
_MOUNTS: Final = Path("/proc/self/mounts")
_ARRAY: Final = 2  # BPF_MAP_TYPE_ARRAY
_RING: Final = 1 << 20  # bytes
_LSM: Final = Path("/sys/kernel/security/lsm")
_NAME: Final = 15  # PR_SET_NAME
_THREAD: Final = Path("/proc/thread-self/comm")

Events = npt.NDArray[np.void]


class Programs:
    """The programs; attached when this is made, with rules that deny nothing."""

    def __init__(self, *, of_cgroup: bool = False) -> None:
        """`of_cgroup`: those of the host's cgroup.  Raises CaptureError with what is missing."""
        self.of_cgroup = of_cgroup
        self._libbpf = libbpf = Libbpf()
        self._cpus = cpus = libbpf.lib.libbpf_num_possible_cpus()
        with contextlib.ExitStack() as stack:
            self._object = self._of_cgroup(stack) if of_cgroup else self._of_lsm()
            stack.callback(self._object.close)
            self._ring = Ring(self._object.map_fd("ring"), _RING)
            stack.callback(self._ring.close)
            self._counters = Counters(self._object.map_fd("counters"), cpus)
            self._object.attach()
            self._stack = stack.pop_all()

    def _of_lsm(self) -> BpfObject:
        return BpfObject(self._libbpf, _LSM_OBJECT, _names(_LSM_PROGRAMS), sizes=_sizes(self._cpus))

    def _of_cgroup(self, stack: contextlib.ExitStack) -> BpfObject:
        cgroup = os.open(_root_cgroup(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, cgroup)
        # Before Linux 6.1 they cannot choose the error.
        for chooses_error in (True, False):
            try:
                return BpfObject(
                    self._libbpf,
                    _CGROUP_OBJECT,
                    _names(_CGROUP_PROGRAMS),
                    sizes=_sizes(self._cpus),
                    constants=struct.pack("<I", chooses_error),
                    cgroup=cgroup,
                )
            except CaptureError:
                if not chooses_error:
                    raise
        raise AssertionError

    def replace(self, policy: bytes) -> None:
        """Replaces all rules at once: POLICY_DTYPE.  Raises CaptureError, with nothing changed."""
        assert len(policy) == POLICY_DTYPE.itemsize
        lib: Any = self._libbpf.lib
        lib.bpf_map_create.argtypes = [
            ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32,
            ctypes.c_void_p,
        ]  # fmt: skip
        lib.bpf_map_update_elem.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64,
        ]  # fmt: skip
        inner = lib.bpf_map_create(_ARRAY, b"guard_policy", 4, len(policy), 1, None)
        self._libbpf.check(inner, "no memory for the rules")
        try:
            zero = struct.pack("<I", 0)
            result = lib.bpf_map_update_elem(inner, zero, policy, 0)
            self._libbpf.check(result, "cannot write the rules")
            outer = self._object.map_fd("policies")
            result = lib.bpf_map_update_elem(outer, zero, struct.pack("<i", inner), 0)
            self._libbpf.check(result, "cannot replace the rules")
        finally:
            os.close(inner)

    def take(self) -> Events:
        """The events that have arrived: EVENT_DTYPE, shape (n,)."""
        words, starts, lengths = self._ring.take()
        size = EVENT_DTYPE.itemsize
        starts = starts[lengths == size]
        found = np.zeros(len(starts), EVENT_DTYPE)
        for at, start in enumerate(starts.tolist()):
            found[at] = words[start : start + size // 8].view(EVENT_DTYPE)[0]
        return found

    def counts(self) -> tuple[int, int]:
        """How many calls were denied, and of how many of them the event was lost."""
        sums = self._counters.sums(LOST + 1)
        return sums[DENIED], sums[LOST]

    def detach(self) -> None:
        """Detaches them: everything is allowed.  Their events can still be taken."""
        self._object.detach()

    def close(self) -> None:
        """Detaches and unloads them: everything is allowed."""
        self._stack.close()


def _names(programs: tuple[str, ...]) -> list[str]:
    return [f"ipttrace_guard_{name}" for name in programs]


def _sizes(cpus: int) -> dict[str, int]:
    return {"ring": _RING, "counters": cpus}


def _root_cgroup() -> str:
    """Where the hierarchy of version 2 is mounted.  Raises CaptureError."""
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 2 and words[2] == "cgroup2":
                return words[1].encode().decode("unicode_escape")
    raise CaptureError("no cgroup2 is mounted")


def unused_name() -> str:
    """A name that no thread has, as capture.sockets.guards.CHECK_COMM has it."""
    return "ipt" + secrets.token_hex(6)


def denies_thread(name: str) -> bool:
    """Whether this thread, called `name` for the moment, is denied to connect.

    Without "bpf" among the kernel's security modules programs are attached, and never asked.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    own = _THREAD.read_bytes().rstrip(b"\n")
    try:
        prctl(_NAME, name.encode(), 0, 0, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.connect(("127.0.0.1", CHECK_PORT))
            except OSError as error:
                return error.errno in (errno.EACCES, errno.EPERM)
            return False
    finally:
        prctl(_NAME, own, 0, 0, 0)


def why_not_asked() -> str:
    """Why the kernel does not ask the programs of LSM, and what to do."""
    try:
        modules = _LSM.read_text().strip()
    except OSError:
        modules = ""
    listed = f" ({modules})" if modules else ""
    return (
        f"bpf is not among this kernel's security modules{listed}: boot with"
        f" lsm={modules or '…'},bpf for all that the guard can deny"
    )
