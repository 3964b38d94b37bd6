# SPDX-License-Identifier: GPL-2.0-only
"""A filter that is replaced while packets are in it: it is freed, but not before they are out."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

from tests.vm.bare import Bare
from tests.vm.conftest import SHARED
from tests.vm.forked import flooding, until
from tests.vm.plain import Plain, raw_and_filter

pytestmark = SHARED

SWAPS = 20
LENGTH = 4000  # instructions: a packet is in the filter most of its time


def slow(offset: int) -> bytes:
    """Classic BPF that loads a word of the packet again and again, and refuses the packet."""
    load = struct.pack("=HBBI", 0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS
    return load * LENGTH + struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K


def programs_in_memory() -> int:
    """How many the kernel has allocated, attached or not."""
    return Path("/proc/vmallocinfo").read_text().count(" bpf_prog_")


def refused(bare: Bare, more_than: int) -> bool:
    """Whether so many packets were refused."""
    return bare.control.status().refused > more_than


def test_filters_replaced_in_a_flood_are_neither_used_after_their_end_nor_kept() -> None:
    filters = [slow(offset) for offset in (0, 4)]
    with Bare() as bare, Plain() as plain, flooding(plain.name):
        plain.load(raw_and_filter(""), 4)
        bare.control.arm(bare.pins, filters[0])
        assert until(partial(refused, bare, 0))
        before = programs_in_memory()
        assert before > 0
        # WHEN the filter is replaced again and again, which packets are in all the time
        for turn in range(1, SWAPS + 1):
            so_far = bare.control.status().refused
            bare.control.filter(filters[turn % 2])
            assert until(partial(refused, bare, so_far))
        # THEN (the kernel has no complaint, and) one is left
        assert until(lambda: programs_in_memory() <= before), (before, programs_in_memory())
        assert bare.control.status().matched == 0
        bare.control.disarm()
