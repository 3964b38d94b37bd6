# SPDX-License-Identifier: GPL-2.0-only
"""Classic BPF on many packets at once, of which only the headers were delivered.

Must do no I/O.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.filter import pcap as pcapfilter

Array = npt.NDArray[Any]

_WORD: Final = 0xFFFFFFFF
_SIZES: Final = {0x00: 4, 0x08: 2, 0x10: 1}  # BPF_W, BPF_H, BPF_B


def matches(program: bytes, packets: Array, caplens: Array, lens: Array) -> tuple[Array, Array]:
    """Which packets `program` takes, and of which that cannot be told; bool, shape (n,) each.

    `packets`: uint8, shape (n, width), from the network header on; `caplens`: how many
    bytes of each are there; `lens`: how many it had.  What needs a byte that was not
    delivered cannot be told, and is not among those taken.  For programs of
    pcapfilter.compile; as libpcap's bpf_filter.c has it.  Raises FilterError.
    """
    count, width = packets.shape
    taken, unknown = np.zeros(count, bool), np.zeros(count, bool)
    if not program:
        return ~taken, unknown
    pcapfilter.matches(program, b"")  # raises where the program is not valid
    code = list(pcapfilter.INSTRUCTION.iter_unpack(program))
    lengths = lens.astype(np.int64)
    there = np.minimum(np.minimum(caplens.astype(np.int64), width), lengths)
    a, x = np.zeros(count, np.int64), np.zeros(count, np.int64)
    memory = np.zeros((16, count), np.int64)
    # Who is where: jumps only go forward, so one pass in order runs them all.
    here: dict[int, list[Array]] = {0: [np.arange(count)]}

    def bytes_at(who: Array, start: Array, size: int) -> tuple[Array, Array]:
        """Those that have the bytes, and what these are."""
        end = start + size
        unknown[who] = (end > there[who]) & (end <= lengths[who])
        good = end <= there[who]
        who, start = who[good], start[good]
        value = np.zeros(len(who), np.int64)
        for i in range(size):
            value = value << 8 | packets[who, start + i]
        return who, value

    for at, (op, yes, no, k) in enumerate(code):
        parts = here.pop(at, None)
        if parts is None:
            continue
        who = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not len(who):
            continue
        kind, mode = op & 7, op & 0xE0
        other: Any = x[who] if op & 8 else k
        if kind == 6:
            taken[who] = a[who] != 0 if op == 0x16 else k != 0
            continue
        if kind == 5:
            if op == 0x05:
                here.setdefault(at + 1 + k, []).append(who)
                continue
            left = a[who]
            test = op & 0xF0
            holds = (
                left == other if test == 0x10
                else left > other if test == 0x20
                else left >= other if test == 0x30
                else (left & other) != 0
            )  # fmt: skip
            here.setdefault(at + 1 + yes, []).append(who[holds])
            here.setdefault(at + 1 + no, []).append(who[~holds])
            continue
        if kind in (0, 1):
            register = a if kind == 0 else x
            if mode in (0x20, 0x40):
                start = np.full(len(who), k) if mode == 0x20 else x[who] + k
                who, register_value = bytes_at(who, start, _SIZES[op & 0x18])
                register[who] = register_value
            elif mode == 0xA0:
                who, byte = bytes_at(who, np.full(len(who), k), 1)
                x[who] = (byte & 15) << 2
            elif mode == 0x60:
                register[who] = memory[k, who]
            else:
                register[who] = k if mode == 0 else lengths[who]
        elif kind in (2, 3):
            memory[k, who] = a[who] if kind == 2 else x[who]
        elif op == 0x07:
            x[who] = a[who]
        elif op == 0x87:
            a[who] = x[who]
        else:
            if op & 0xF0 in (0x30, 0x90):
                who = who[np.broadcast_to(other != 0, who.shape)]
                other = x[who] if op & 8 else k
            a[who] = _arithmetic(op & 0xF0, a[who], other)
        here.setdefault(at + 1, []).append(who)
    return taken, unknown


def _arithmetic(op: int, a: Array, by: Any) -> Array:
    """As 32-bit numbers without a sign; shifts by 32 and more leave nothing."""
    if op in (0x60, 0x70):
        by = np.minimum(by, 32)
        result = a << by if op == 0x60 else a >> by
    elif op in (0x30, 0x90):
        result = a // by if op == 0x30 else a % by
    elif op == 0x20:
        # Through halves: the product of two such numbers is too wide.
        result = a * (by & 0xFFFF) + (((a * (by >> 16)) & 0xFFFF) << 16)
    elif op == 0x80:
        result = -a
    else:
        result = (
            a + by if op == 0x00
            else a - by if op == 0x10
            else a | by if op == 0x40
            else a & by if op == 0x50
            else a ^ by
        )  # fmt: skip
    masked: Array = result & _WORD
    return masked
