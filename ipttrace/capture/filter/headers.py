# SPDX-License-Identifier: GPL-2.0-only
"""Runs classic BPF on many packets at once of which only the headers were delivered.

Each instruction is executed once, on all rows that reach it.  Behaves like libpcap's
bpf_filter.c.  No Python loop over packets.  Must do no I/O.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.capture.filter import opcodes as bpf
from ipttrace.capture.filter import pcap

Array = npt.NDArray[Any]


def matches(program: bytes, packets: Array, caplens: Array, lens: Array) -> tuple[Array, Array]:
    """Which packets match `program`, and which cannot be decided: two of bool, shape (n,).

    `packets`: uint8, shape (n, width), from the network header on; `caplens`: how many
    bytes of each are valid; `lens`: how many it had.  A packet that needs a byte which was
    not delivered cannot be decided, and does not count as a match.  `program` is one of
    pcap.compile().  Raises FilterError.
    """
    if not program:
        return np.ones(len(packets), bool), np.zeros(len(packets), bool)
    run = _Run(packets, caplens, lens)
    # Jumps only go forward, so one pass in order executes everything.
    for at, instruction in enumerate(pcap.instructions(program)):
        run.execute(at, *instruction)
    return run.matched, run.undecided


class _Run:
    """Registers of all packets, and which rows wait at which instruction."""

    def __init__(self, packets: Array, caplens: Array, lens: Array) -> None:
        count, width = packets.shape
        self.matched, self.undecided = np.zeros(count, bool), np.zeros(count, bool)
        self._packets = packets
        self._lens = lens.astype(np.int64)
        self._valid = np.minimum(np.minimum(caplens.astype(np.int64), width), self._lens)
        self._a, self._x = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._memory = np.zeros((bpf.MEMORY, count), np.int64)
        self._waiting: dict[int, list[Array]] = {0: [np.arange(count)]}

    def execute(self, at: int, op: int, yes: int, no: int, k: int) -> None:
        """Executes instruction `at` on the rows that reach it."""
        parts = self._waiting.pop(at, None)
        if parts is None:
            return
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not len(rows):
            return
        kind = op & bpf.CLASS
        if kind == bpf.RET:
            self.matched[rows] = self._a[rows] != 0 if op == bpf.RET_A else k != 0
        elif op == bpf.GOTO:
            self._go(at + 1 + k, rows)
        elif kind == bpf.JMP:
            true = self._compare(op, rows, k)
            self._go(at + 1 + yes, rows[true])
            self._go(at + 1 + no, rows[~true])
        else:
            self._go(at + 1, self._plain(op, rows, k))

    def _go(self, at: int, rows: Array) -> None:
        self._waiting.setdefault(at, []).append(rows)

    def _operand(self, op: int, rows: Array, k: int) -> Any:
        return self._x[rows] if op & bpf.X else k

    def _compare(self, op: int, rows: Array, k: int) -> Array:
        a, operand, operation = self._a[rows], self._operand(op, rows, k), op & bpf.OPERATION
        result: Array = (
            a == operand if operation == bpf.JEQ
            else a > operand if operation == bpf.JGT
            else a >= operand if operation == bpf.JGE
            else (a & operand) != 0
        )  # fmt: skip
        return result

    def _plain(self, op: int, rows: Array, k: int) -> Array:
        """Executes an instruction that does not jump; returns the rows that go on."""
        kind = op & bpf.CLASS
        if kind in (bpf.LD, bpf.LDX):
            return self._load(op, rows, k)
        if kind in (bpf.ST, bpf.STX):
            self._memory[k, rows] = self._a[rows] if kind == bpf.ST else self._x[rows]
        elif op == bpf.TAX:
            self._x[rows] = self._a[rows]
        elif op == bpf.TXA:
            self._a[rows] = self._x[rows]
        else:
            operand = self._operand(op, rows, k)
            if op & bpf.OPERATION in (bpf.DIV, bpf.MOD):
                # A division by zero rejects the packet.
                rows = rows[np.broadcast_to(operand != 0, rows.shape)]
                operand = self._operand(op, rows, k)
            self._a[rows] = _arithmetic(op & bpf.OPERATION, self._a[rows], operand)
        return rows

    def _load(self, op: int, rows: Array, k: int) -> Array:
        register = self._a if op & bpf.CLASS == bpf.LD else self._x
        mode = op & bpf.MODE
        if mode in (bpf.ABS, bpf.IND):
            start = np.full(len(rows), k) if mode == bpf.ABS else self._x[rows] + k
            rows, value = self._bytes(rows, start, bpf.WIDTHS[op & bpf.SIZE])
            register[rows] = value
        elif mode == bpf.MSH:
            rows, byte = self._bytes(rows, np.full(len(rows), k), 1)
            register[rows] = (byte & 15) << 2
        elif mode == bpf.MEM:
            register[rows] = self._memory[k, rows]
        else:
            register[rows] = k if mode == bpf.IMM else self._lens[rows]
        return rows

    def _bytes(self, rows: Array, start: Array, size: int) -> tuple[Array, Array]:
        """The rows that have `size` bytes at `start`, and the value of these.

        A load outside the packet rejects it; one outside the delivered part is undecided.
        """
        end = start + size
        self.undecided[rows] = (end > self._valid[rows]) & (end <= self._lens[rows])
        good = end <= self._valid[rows]
        rows, start = rows[good], start[good]
        value = np.zeros(len(rows), np.int64)
        for i in range(size):
            value = value << 8 | self._packets[rows, start + i]
        return rows, value


def _arithmetic(operation: int, a: Array, operand: Any) -> Array:
    """In unsigned numbers of 32 bits; a shift by 32 or more gives 0."""
    if operation in (bpf.LSH, bpf.RSH):
        operand = np.minimum(operand, 32)
        result = a << operand if operation == bpf.LSH else a >> operand
    elif operation in (bpf.DIV, bpf.MOD):
        result = a // operand if operation == bpf.DIV else a % operand
    elif operation == bpf.MUL:
        # In halves: the product of two such numbers does not fit into an int64.
        result = a * (operand & 0xFFFF) + (((a * (operand >> 16)) & 0xFFFF) << 16)
    elif operation == bpf.NEG:
        result = -a
    else:
        result = (
            a + operand if operation == bpf.ADD
            else a - operand if operation == bpf.SUB
            else a | operand if operation == bpf.OR
            else a & operand if operation == bpf.AND
            else a ^ operand
        )  # fmt: skip
    masked: Array = result & bpf.WORD
    return masked
