# SPDX-License-Identifier: GPL-2.0-only
"""The opcodes of classic BPF: linux/bpf_common.h and linux/filter.h.

An opcode is a class plus, for loads, a size and a mode, or, for arithmetic and jumps,
an operation and a source.  Constants only; must import nothing.
"""

from __future__ import annotations

from typing import Final

# The class: op & CLASS.
CLASS: Final = 0x07
LD: Final = 0x00
LDX: Final = 0x01
ST: Final = 0x02
STX: Final = 0x03
ALU: Final = 0x04
JMP: Final = 0x05
RET: Final = 0x06
MISC: Final = 0x07

# Of loads, the width in bytes, by op & SIZE.
SIZE: Final = 0x18
WIDTHS: Final = {0x00: 4, 0x08: 2, 0x10: 1}

# Of loads, where from: op & MODE.
MODE: Final = 0xE0
IMM: Final = 0x00
ABS: Final = 0x20
IND: Final = 0x40
MEM: Final = 0x60
LEN: Final = 0x80
MSH: Final = 0xA0  # 4 * (the byte at k & 0xf), into X

# Of arithmetic and jumps, the operation: op & OPERATION.
OPERATION: Final = 0xF0
ADD: Final = 0x00
SUB: Final = 0x10
MUL: Final = 0x20
DIV: Final = 0x30
OR: Final = 0x40
AND: Final = 0x50
LSH: Final = 0x60
RSH: Final = 0x70
NEG: Final = 0x80
MOD: Final = 0x90
XOR: Final = 0xA0
JA: Final = 0x00
JEQ: Final = 0x10
JGT: Final = 0x20
JGE: Final = 0x30
JSET: Final = 0x40

# Of arithmetic and jumps, the operand: X if op & X, else k.
X: Final = 0x08

# Complete opcodes.
GOTO: Final = JMP | JA
RET_K: Final = RET
RET_A: Final = RET | 0x10
TAX: Final = MISC
TXA: Final = MISC | 0x80

WORD: Final = 0xFFFFFFFF
"""The largest value of a register: they are unsigned and have 32 bits."""

MEMORY: Final = 16
"""Words of scratch memory."""

ALL: Final = frozenset(
    (
        *(LD | IMM, LD | LEN, LD | MEM),
        *(LD | mode | size for mode in (ABS, IND) for size in WIDTHS),
        *(LDX | IMM, LDX | MEM, LDX | LEN, LDX | MSH | 0x10),
        *(ST, STX),
        *(ALU | operation | source for operation in range(0, 0xB0, 0x10) for source in (0, X)),
        GOTO,
        *(JMP | operation | source for operation in (JEQ, JGT, JGE, JSET) for source in (0, X)),
        *(RET_K, RET_A, TAX, TXA),
    )
) - {ALU | NEG | X}
"""The instructions that the kernel accepts: bpf_check_classic() of net/core/filter.c.

libpcap's interpreter aborts the process at any other; it accepts NEG with a source when
it validates a program, and then aborts too.
"""
