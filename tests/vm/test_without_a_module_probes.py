# SPDX-License-Identifier: GPL-2.0-only
"""Where the kernel refuses fentry, the BPF engine sees the same with kprobes.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.objects import BpfObject
from tests.program import ipttrace
from tests.vm.conftest import SHARED
from tests.vm.test_without_a_module_nested import rejected
from tests.vm.test_without_a_module_refused import engine_bpf

pytestmark = SHARED

MOST = 64  # the kernel's BPF_MAX_TRAMP_LINKS is 38
TRACING, FEXIT = 26, 25  # BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT
RETURN_0 = bytes([0xB7, *bytes(7), 0x95, *bytes(7)])  # r0 = 0; exit


class LoadOptions(ctypes.Structure):
    """The beginning of struct bpf_prog_load_opts (bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("unused", ctypes.c_uint32 * 4),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
    )


def target(lib: ctypes.CDLL, program: int) -> tuple[int, int]:
    """What a program is for: the ids of the BTF and of the function in it."""
    info = (ctypes.c_uint32 * 58)()  # struct bpf_prog_info; the two are its last
    assert lib.bpf_obj_get_info_by_fd(program, info, ctypes.byref(ctypes.c_uint32(232))) == 0
    return info[55], info[56]


@contextlib.contextmanager
def occupied(name: str, program: str) -> Iterator[None]:
    """As many programs at the end of a function as the kernel allows: it refuses any more.

    `program`, of the object `name`, is one for that function.
    """
    libbpf = Libbpf()
    lib = libbpf.lib
    with contextlib.ExitStack() as stack:
        one = BpfObject(libbpf, name, (program,), sizes={"ring": 1 << 16})
        stack.callback(one.close)
        where, function = target(lib, lib.bpf_program__fd(one._programs[0]))
        btf = lib.bpf_btf_get_fd_by_id(where)
        assert btf >= 0
        stack.callback(os.close, btf)
        options = LoadOptions(
            ctypes.sizeof(LoadOptions), 0, FEXIT, attach_btf_id=function, attach_btf_obj_fd=btf
        )
        for _ in range(MOST):
            fd = lib.bpf_prog_load(
                TRACING, b"full", b"GPL", RETURN_0, len(RETURN_0) // 8, ctypes.byref(options)
            )
            assert fd >= 0, os.strerror(-fd)
            stack.callback(os.close, fd)
            link = lib.bpf_raw_tracepoint_open(None, fd)
            if link < 0:
                yield
                return
            stack.callback(os.close, link)
        raise AssertionError("the kernel takes any number of programs")


def test_with_kprobes_it_sees_what_it_sees_with_fentry(tmp_path: Path) -> None:
    # GIVEN a kernel that allows no more programs on nft_do_chain(), and on ipt_do_table()
    subprocess.run(["modprobe", "nf_tables"], check=True)
    with (
        occupied("nft.bpf.o", "ipttrace_nft_entry"),
        occupied("legacy.bpf.o", "ipttrace_ip_exit"),
    ):
        # WHEN packets are rejected in tables of both kinds, and of IPv6 (which fentry sees)
        one = rejected(tmp_path)
        # THEN all rows are as with fentry, and a note says so
        (note,) = [text for _, text in one.trace.notes if "kprobes" in text]
        assert note.startswith("tracing with kprobes, since fentry is refused: ")
        # AND the doctor does
        status, text = engine_bpf(ipttrace("doctor").stdout)
        assert (status, ", with kprobes (no fentry: " in text) == ("ok", True), text
