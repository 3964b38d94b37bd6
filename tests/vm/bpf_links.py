# SPDX-License-Identifier: GPL-2.0-only
"""Which BPF programs are attached, as the kernel lists them."""

from __future__ import annotations

import ctypes

from ipttrace.capture.libbpf import Libbpf


def links() -> set[int]:
    """The ids of all BPF links of this kernel."""
    lib = Libbpf().lib
    found: set[int] = set()
    number = ctypes.c_uint32(0)
    while lib.bpf_link_get_next_id(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found
