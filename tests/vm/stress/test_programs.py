# SPDX-License-Identifier: GPL-2.0-only
"""What the BPF programs are given: a context without remains of the stack, and RCU.

For the debug kernel, which fills the stack with a pattern, and whose maps complain of a
program that no RCU read section protects.
"""

from __future__ import annotations

import ctypes
import os

from ipttrace.capture.kernel.programs import PINS
from ipttrace.lab import traffic
from ipttrace.stream.record import RULE_DTYPE
from tests.vm.bare import Bare
from tests.vm.pinned import EXIT, ZERO, instruction, pin_kprobe
from tests.vm.plain import LOOPBACK, Plain, raw_and_filter

HASH = 1  # linux/bpf.h: BPF_MAP_TYPE_HASH
REGISTERS = 168  # bytes: struct pt_regs of x86-64


class Seen(ctypes.Structure):
    """What `looking` has seen: its context's words joined by OR, and how often it ran."""

    _fields_ = (("words", ctypes.c_uint64), ("runs", ctypes.c_uint64))


def _map(register: int, fd: int) -> bytes:
    """Sets the register to the map."""
    return instruction(0x18, register, 1, 0, fd) + bytes(8)


def looking(first: int, seen: int, finished: int) -> bytes:
    """A program that notes its context's words from offset `first` on in the map `seen`."""
    join = b"".join(
        instruction(0x79, 0, 6, at) + instruction(0x4F, 7, 0)  # r7 |= r6[at]
        for at in range(first, REGISTERS, 8)
    )
    note = b"".join(
        (
            instruction(0x79, 1, 0, 0) + instruction(0x4F, 1, 7) + instruction(0x7B, 0, 1, 0),
            instruction(0x79, 1, 0, 8) + instruction(0x07, 1, value=1) + instruction(0x7B, 0, 1, 8),
        )
    )
    return b"".join(
        (
            instruction(0xBF, 6, 1),  # r6: the context
            _map(1, finished),  # the module looks for it among a program's maps
            instruction(0xB7, 7),
            join,
            instruction(0x62, 10, 0, -4),  # the key: 0
            _map(1, seen),
            instruction(0xBF, 2, 10) + instruction(0x07, 2, value=-4),
            instruction(0x85, value=1),  # r0 = bpf_map_lookup_elem(r1, r2)
            instruction(0x15, 0, 0, len(note) // 8, 0),  # if it is not there
            note,
            ZERO + EXIT,
        )
    )


class Notes:
    """The map that a program notes in, and the program, pinned as `name` in our folder."""

    def __init__(self, lib: ctypes.CDLL, name: str, first: int, finished: int) -> None:
        self._lib = lib
        self._key = ctypes.c_uint32(0)
        self._seen = Seen()
        size = ctypes.sizeof(Seen)
        self._fd = lib.bpf_map_create(HASH, b"seen", 4, size, 1, None)
        assert self._fd >= 0, os.strerror(-self._fd)
        entry = (ctypes.byref(self._key), ctypes.byref(self._seen))
        assert lib.bpf_map_update_elem(self._fd, *entry, ctypes.c_uint64(0)) == 0
        self.pin = PINS / f"looking_{name}"
        code = looking(first, self._fd, finished)
        pin_kprobe(self.pin, f"ipttrace_{name}".encode(), code=code)

    def read(self) -> Seen:
        """What the program has noted until now."""
        entry = (ctypes.byref(self._key), ctypes.byref(self._seen))
        assert self._lib.bpf_map_lookup_elem(self._fd, *entry) == 0
        return self._seen

    def close(self) -> None:
        os.close(self._fd)


def test_a_program_reads_nothing_but_its_record_and_runs_under_rcu() -> None:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    with Bare() as bare, Plain() as plain:
        plain.load(raw_and_filter("-A OUTPUT -p udp -m udp --dport 9\n" * 10), 4)
        # GIVEN programs that look at what their records leave of their contexts
        finished = lib.bpf_obj_get(os.fsencode(PINS / "finished"))
        assert finished >= 0
        call = Notes(lib, "call", 0, finished)
        rule = Notes(lib, "rule", RULE_DTYPE.itemsize, finished)
        bare.control.arm([call.pin, rule.pin])
        # WHEN they run for calls, and for rules that have no room in their call
        assert traffic.udp(plain.name, LOOPBACK[4], 9, 23).sent == 23
        bare.control.disarm()
        # THEN there is nothing, and (conftest) no complaint in the kernel's log
        for notes in (call, rule):
            seen = notes.read()
            assert seen.runs >= 23
            assert seen.words == 0, hex(seen.words)
            notes.close()
        os.close(finished)
