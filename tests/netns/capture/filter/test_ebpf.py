# SPDX-License-Identifier: GPL-2.0-only
"""Programs translated to eBPF do in the kernel what libpcap does with the originals."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import ebpf, pcap
from ipttrace.capture.filter import opcodes as bpf
from ipttrace.capture.libbpf import load_socket_filter
from tests.unit.capture.filter.test_nft import EXACT, INEXACT, instructions, packets

ETHERNET = bytes(14)  # a test run takes it off


class TestRun(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )
    __test__ = False


class Loaded:
    """A translated program in the kernel."""

    def __init__(self, program: bytes) -> None:
        self.descriptor = load_socket_filter(ebpf.translate(program))

    def matches(self, packet: bytes) -> bool:
        data = ctypes.create_string_buffer(ETHERNET + packet)
        run = TestRun(
            size=ctypes.sizeof(TestRun),
            data_in=ctypes.addressof(data),
            data_size_in=len(ETHERNET) + len(packet),
            repeat=1,
        )
        lib = ctypes.CDLL("libbpf.so.1")
        assert lib.bpf_prog_test_run_opts(self.descriptor, ctypes.byref(run)) == 0
        return bool(run.result)


@pytest.fixture
def loaded() -> Iterator[list[Loaded]]:
    """Programs that a test loads; closed behind it."""
    try:
        os.close(load_socket_filter(ebpf.translate(instructions((0x06, 0, 0, 1)))))
    except CaptureError as refused:
        pytest.skip(str(refused))
    made: list[Loaded] = []
    yield made
    for one in made:
        os.close(one.descriptor)


@pytest.mark.parametrize("expr", [*EXACT, *INEXACT], ids=lambda expr: expr[:40])
def test_a_translated_filter_matches_what_libpcap_matches(expr: str, loaded: list[Loaded]) -> None:
    program = pcap.compile(expr)
    loaded.append(Loaded(program))
    for one in packets()[::3]:
        assert loaded[0].matches(one) == pcap.matches(program, one), one.hex()


def test_instructions_that_libpcap_rarely_makes_are_translated_too(loaded: list[Loaded]) -> None:
    # GIVEN A and X from the packet, and each operation with each operand
    load = ((bpf.LDX | 0xA0 | 0x10, 0, 0, 1), (bpf.LD | bpf.ABS | 0x10, 0, 0, 0))
    end = ((bpf.JMP | bpf.JSET, 0, 1, 0x55), (bpf.RET, 0, 0, 1), (bpf.RET, 0, 0, 0))
    # Through memory, so that this is translated too.
    moved = ((bpf.ST, 0, 0, 3), (bpf.LDX | bpf.MEM, 0, 0, 3), (bpf.MISC | 0x80, 0, 0, 0))
    programs = [
        instructions(*load, (bpf.ALU | operation | source, 0, 0, operand), *moved, *end)
        for operation in range(0, 0xB0, 0x10)
        for source, operand in ((0, 3), (0, 31), (bpf.X, 0))
        if (operation, source) != (bpf.NEG, bpf.X)
    ]
    for program in programs:
        loaded.append(Loaded(program))
        # WHEN packets with all kinds of first bytes come, X being 0, 4 or 60
        for first in range(0, 256, 7):
            for second in (0, 1, 15):
                one = struct.pack("BB", first, second) + bytes(30)
                # THEN libpcap finds the same
                assert loaded[-1].matches(one) == pcap.matches(program, one), (
                    program.hex(),
                    one.hex(),
                )
