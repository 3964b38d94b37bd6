# SPDX-License-Identifier: GPL-2.0-only
"""The map in which the BPF programs find EXPR always has one complete program in use."""

from __future__ import annotations

import os
import re

from ipttrace.capture.filter import pcap
from ipttrace.capture.libbpf import filter as bpf_filter
from ipttrace.capture.libbpf.filter import Filter
from tests.paths import PROJECT

SIZE = 8 * (1 + 2 * 4096)


def in_use(descriptor: int) -> bytes:
    """The program that the BPF programs would run: see expr_result() of bpf/expr.h."""
    data = os.pread(descriptor, SIZE, 0)
    which, _, _, length = pcap.INSTRUCTION.unpack_from(data)
    start = 8 * (1 + which * 4096)
    return data[start : start + 8 * length]


def test_a_new_program_is_written_beside_the_one_in_use() -> None:
    descriptor = os.memfd_create("map")
    os.truncate(descriptor, 1 << 17)
    found = Filter(descriptor)
    # GIVEN no program, THEN none is in use
    assert in_use(descriptor) == b""
    # WHEN programs are set THEN each is in use at once
    programs = [pcap.compile(expr) for expr in ("udp[8] ^ 3 = 7", "tcp", "", "ip6 or port 9")]
    for program in programs:
        before = in_use(descriptor)
        found.set(program)
        assert in_use(descriptor) == program
        # AND the other is still whole, for a program that is running
        data = os.pread(descriptor, SIZE, 0)
        assert before in data


def test_the_map_has_the_size_that_its_header_says() -> None:
    header = (PROJECT / "bpf" / "expr.h").read_text()
    found = re.search(r"#define EXPR_MOST\s+(\d+)", header)
    assert found
    assert int(found[1]) == bpf_filter._MOST >= pcap.MAX_INSTRUCTIONS
