# SPDX-License-Identifier: GPL-2.0-only
"""Translates classic BPF to eBPF, as a socket filter.

For programs that the kernel does not take as they are: nf_tables' match bpf takes 64 classic
instructions, and the kernel computes shifts by a register differently from libpcap.  Of a
program with the type of a socket filter the loads mean the same as in classic BPF, and reach
the whole packet.  Must do no I/O.
"""

from __future__ import annotations

import struct
from typing import Final

from ipttrace.capture.filter import opcodes as bpf
from ipttrace.capture.filter import pcap

_INSTRUCTION: Final = struct.Struct("=BBhi")  # struct bpf_insn: code, dst | src << 4, off, imm

# Registers.  A load from the packet puts its value into the first one, and overwrites the next
# five; it takes the packet from the seventh.
_A: Final = 0
_SAVED: Final = 8
_PACKET: Final = 6
_X: Final = 7
_STACK: Final = 10

# Classes and operations that classic BPF does not have: linux/bpf.h.
_ALU64: Final = 0x07
_JMP32: Final = 0x06
_MOV: Final = 0xB0
_JNE: Final = 0x50
_JLT: Final = 0xA0
_EXIT: Final = 0x95
_LDX_WORD: Final = 0x61  # LDX | MEM | W
_STX_WORD: Final = 0x63
_ST_WORD: Final = 0x62
_LENGTH: Final = 0  # offset of struct __sk_buff.len
_LONGEST_JUMP: Final = 32767

Code = list[tuple[int, int, int, int, int]]
"""Instructions: code, destination, source, offset, immediate."""


def translate(program: bytes) -> bytes:
    """The same program as an array of struct bpf_insn, for BPF_PROG_TYPE_SOCKET_FILTER.

    It returns what `program`, one of pcap.compile(), returns.  Raises FilterError, also if a
    jump is too long.
    """
    classic = pcap.instructions(program)
    bodies = [_translated(op, k) for op, _, _, k in classic]
    head = _head(classic)
    starts, at = [], len(head)
    for (op, *_), body in zip(classic, bodies, strict=True):
        starts.append(at)
        at += len(body) + (1 if op == bpf.GOTO else 2 if _jumps(op) else 0)
    made = list(head)
    for number, ((op, yes, no, k), body) in enumerate(zip(classic, bodies, strict=True)):
        made += body
        if op == bpf.GOTO:
            made.append((bpf.JMP, 0, 0, starts[number + 1 + k] - len(made) - 1, 0))
        elif _jumps(op):
            true, false = starts[number + 1 + yes], starts[number + 1 + no]
            source, operand = (_X, 0) if op & bpf.X else (0, _signed(k))
            code = _JMP32 | op & (bpf.OPERATION | bpf.X)
            made.append((code, _A, source, true - len(made) - 1, operand))
            made.append((bpf.JMP, 0, 0, false - len(made) - 1, 0))
    if any(abs(offset) > _LONGEST_JUMP for _, _, _, offset, _ in made):
        raise pcap.FilterError("the expression is too long to be translated for the kernel")
    return b"".join(
        _INSTRUCTION.pack(code, to | source << 4, offset, operand)
        for code, to, source, offset, operand in made
    )


def _jumps(op: int) -> bool:
    return op & bpf.CLASS == bpf.JMP


def _signed(k: int) -> int:
    return k - (1 << 32) if k >> 31 else k


def _head(classic: pcap.Instructions) -> Code:
    """Registers and memory are 0 at first; the packet comes in the second register."""
    head: Code = [
        (_ALU64 | _MOV | bpf.X, _PACKET, 1, 0, 0),
        (bpf.ALU | _MOV, _A, 0, 0, 0),
        (bpf.ALU | _MOV, _X, 0, 0, 0),
    ]
    used = {
        k for op, _, _, k in classic
        if op & bpf.CLASS in (bpf.ST, bpf.STX) or op in (bpf.LD | bpf.MEM, bpf.LDX | bpf.MEM)
    }  # fmt: skip
    return head + [(_ST_WORD, _STACK, 0, _place(k), 0) for k in sorted(used)]


def _place(word: int) -> int:
    """Where a word of memory is, from the end of the stack."""
    return -4 * (word + 1)


def _translated(op: int, k: int) -> Code:
    """One instruction, of a jump nothing."""
    kind = op & bpf.CLASS
    if kind in (bpf.LD, bpf.LDX):
        return _load(op, k)
    if kind in (bpf.ST, bpf.STX):
        return [(_STX_WORD, _STACK, _A if kind == bpf.ST else _X, _place(k), 0)]
    if kind == bpf.RET:
        return ([] if op == bpf.RET_A else [_moved(_A, k)]) + [(_EXIT, 0, 0, 0, 0)]
    if op in (bpf.TAX, bpf.TXA):
        to, source = (_X, _A) if op == bpf.TAX else (_A, _X)
        return [(bpf.ALU | _MOV | bpf.X, to, source, 0, 0)]
    return [] if kind == bpf.JMP else _arithmetic(op, k)


def _moved(to: int, k: int) -> tuple[int, int, int, int, int]:
    return (bpf.ALU | _MOV, to, 0, 0, _signed(k))


def _load(op: int, k: int) -> Code:
    to = _A if op & bpf.CLASS == bpf.LD else _X
    mode = op & bpf.MODE
    if mode in (bpf.ABS, bpf.IND):
        # A load outside the packet ends the program, which then returns 0.
        return [(op, 0, _X if mode == bpf.IND else 0, 0, _signed(k))]
    if mode == bpf.MSH:
        return [
            (bpf.ALU | _MOV | bpf.X, _SAVED, _A, 0, 0),
            (bpf.LD | bpf.ABS | 0x10, 0, 0, 0, _signed(k)),
            (bpf.ALU | bpf.AND, _A, 0, 0, 15),
            (bpf.ALU | bpf.LSH, _A, 0, 0, 2),
            (bpf.ALU | _MOV | bpf.X, _X, _A, 0, 0),
            (bpf.ALU | _MOV | bpf.X, _A, _SAVED, 0, 0),
        ]
    if mode == bpf.MEM:
        return [(_LDX_WORD, to, _STACK, _place(k), 0)]
    if mode == bpf.LEN:
        return [(_LDX_WORD, to, _PACKET, _LENGTH, 0)]
    return [_moved(to, k)]


def _arithmetic(op: int, k: int) -> Code:
    operation = op & bpf.OPERATION
    by_x = op & bpf.X
    operand = 0 if by_x or operation == bpf.NEG else _signed(k)
    plain: Code = [(op, _A, _X if by_x else 0, 0, operand)]
    zero = _moved(_A, 0)
    if operation in (bpf.LSH, bpf.RSH):
        if not by_x:
            return plain if k < 32 else [zero]
        # If X is at least 32, the result is 0.
        return [
            (_JMP32 | _JLT, _X, 0, 2, 32),
            zero,
            (bpf.JMP, 0, 0, 1, 0),
            *plain,
        ]
    if operation in (bpf.DIV, bpf.MOD):
        # A division by zero rejects the packet.
        rejects: Code = [zero, (_EXIT, 0, 0, 0, 0)]
        if not by_x:
            return plain if k else rejects
        return [(_JMP32 | _JNE, _X, 0, 2, 0), *rejects, *plain]
    return plain
