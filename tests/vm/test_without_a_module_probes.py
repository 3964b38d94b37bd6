# SPDX-License-Identifier: GPL-2.0-only
"""Where the kernel refuses fentry, the BPF engine sees the same with kprobes.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ipttrace.capture.bpf.objects import BpfObject
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from tests.program import ipttrace
from tests.vm.test_without_a_module_nested import rejected
from tests.vm.test_without_a_module_refused import engine_bpf

MOST = 64  # the kernel's BPF_MAX_TRAMP_LINKS is 38


@contextlib.contextmanager
def occupied(name: str, program: str) -> Iterator[None]:
    """As many programs at the end of a function as the kernel allows: it refuses any more."""
    libbpf = Libbpf()
    with contextlib.ExitStack() as stack:
        shared: dict[str, int] = {}
        for _ in range(MOST):
            one = BpfObject(libbpf, name, (program,), sizes={"ring": 1 << 16}, shared=shared)
            stack.callback(one.close)
            for each in ("packets", "ring", "counters", "runs", "newest"):
                shared.setdefault(each, one.map_fd(each))
            try:
                one.attach()
            except CaptureError:
                yield
                return
        raise AssertionError("the kernel takes any number of programs")


def test_with_kprobes_it_sees_what_it_sees_with_fentry(tmp_path: Path) -> None:
    # GIVEN a kernel that allows no more programs on nft_do_chain(), and on ipt_do_table()
    with (
        occupied("nft.bpf.o", "ipttrace_nft_exit"),
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
