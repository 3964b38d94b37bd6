# SPDX-License-Identifier: GPL-2.0-only
"""The paths through a classic BPF program that end in a match.

A path is the set of conditions under which the filter accepts a packet, in terms that
nf_tables can express.  If a path has a step that it cannot express, the path loses that
condition and is no longer exact.  Long, because values, steps and the walk that makes
them are one algorithm.  Must do no I/O.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ipttrace.capture.filter import opcodes as bpf

# What an offset is relative to.
NETWORK: Final = "network"
TRANSPORT: Final = "transport"
LENGTH: Final = "length"  # not a load: the packet's length from its network header on

_MAX_OFFSET: Final = 255  # NFTA_PAYLOAD_OFFSET is one byte in all but the newest kernels
_MAX_STEPS: Final = 100_000  # instructions followed, on all paths together
_OPPOSITE: Final = {"eq": "neq", "neq": "eq"}


class Load(NamedTuple):
    """`size` bytes, big-endian and unsigned, at `offset` bytes after `base`."""

    base: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.size


def holds(value: int, op: str, operand: int) -> bool:
    """Whether `value` compares so; `op`: eq, neq, gte, lte."""
    if op == "eq":
        return value == operand
    if op == "neq":
        return value != operand
    return value >= operand if op == "gte" else value <= operand


@dataclass(frozen=True, slots=True)
class _Term:
    """(load & mask) >> shift; a negative shift is to the left."""

    load: Load
    mask: int
    shift: int = 0


class _TransportStart:
    """4*([0]&0xf): where the transport header of an IPv4 packet begins."""


_TRANSPORT_START: Final = _TransportStart()
# What a register contains; None: nothing that can be expressed.
_Value = int | _Term | _TransportStart | None
Masked = tuple[Load, int]  # a load and its mask


class Condition(NamedTuple):
    """A comparison of `load & mask` with `operand`."""

    load: Load
    mask: int
    op: str
    operand: int

    def negated(self) -> Condition:
        """The opposite condition."""
        if self.op in _OPPOSITE:
            return self._replace(op=_OPPOSITE[self.op])
        if self.op == "gte":
            return self._replace(op="lte", operand=self.operand - 1)
        return self._replace(op="gte", operand=self.operand + 1)


class _Range(NamedTuple):
    """The values that `load & mask` can have on a path: low…high except `excluded`."""

    low: int
    high: int
    excluded: frozenset[int]


@dataclass(slots=True)
class Path:
    """A path as far as instruction `at`: the registers, and the conditions so far."""

    at: int = 0
    a: _Value = 0
    x: _Value = 0
    memory: dict[int, _Value] = field(default_factory=dict)
    ranges: dict[Masked, _Range] = field(default_factory=dict)
    # By base, the load that ends last: if that is inside the packet, so are the others.
    furthest: dict[str, Load] = field(default_factory=dict)
    exact: bool = True
    depth: int = 0  # conditional jumps so far

    def fork(self, at: int) -> Path:
        """A copy that continues at instruction `at`."""
        return replace(
            self,
            at=at,
            memory=dict(self.memory),
            ranges=dict(self.ranges),
            furthest=dict(self.furthest),
            depth=self.depth + 1,
        )

    def require(self, load: Load) -> None:
        """Adds the condition that `load` is inside the packet."""
        if load.base != LENGTH:
            before = self.furthest.get(load.base)
            if before is None or before.end < load.end:
                self.furthest[load.base] = load

    def value(self, load: Load, mask: int) -> int | None:
        """The only value that `load & mask` can have, or None if there are several."""
        for (other, wider), (low, high, _) in self.ranges.items():
            if other == load and low == high and wider & mask == mask:
                return low & mask
        return None

    def narrow(self, condition: Condition) -> bool:
        """Adds `condition`; False if it contradicts the others."""
        load, mask, op, operand = condition
        if (value := self.value(load, mask)) is not None:
            return holds(value, op, operand)
        low, high, excluded = self.ranges.get((load, mask), _Range(0, mask, frozenset()))
        if op == "eq":
            if operand & ~mask:
                return False
            low, high = max(low, operand), min(high, operand)
        elif op == "neq":
            excluded |= {operand}
        elif op == "gte":
            low = max(low, operand)
        else:
            high = min(high, operand)
        while low <= high and (low in excluded or high in excluded):
            low, high = low + (low in excluded), high - (high in excluded)
        if low > high:
            return False
        kept = frozenset(value for value in excluded if low < value < high and not value & ~mask)
        self.ranges[load, mask] = _Range(low, high, kept)
        return low < high or self._is_consistent(load, mask, low)

    def _is_consistent(self, load: Load, mask: int, value: int) -> bool:
        """Whether `load & mask == value` agrees with the ranges of fewer of its bits."""
        return all(
            r.low <= value & less <= r.high and value & less not in r.excluded
            for (other, less), r in self.ranges.items()
            if other == load and less != mask and not less & ~mask
        )

    def conditions(self) -> list[Condition]:
        """The conditions on values, without those that follow from others."""
        found = []
        for (load, mask), (low, high, excluded) in self.ranges.items():
            if any(
                other == load and r.low == r.high and wider != mask and wider & mask == mask
                for (other, wider), r in self.ranges.items()
            ):
                continue
            if low == high:
                found.append(Condition(load, mask, "eq", low))
                continue
            if low == 1:
                found.append(Condition(load, mask, "neq", 0))
            elif low:
                found.append(Condition(load, mask, "gte", low))
            if high == mask - 1:
                found.append(Condition(load, mask, "neq", mask))
            elif high < mask:
                found.append(Condition(load, mask, "lte", high))
            found += [Condition(load, mask, "neq", value) for value in sorted(excluded)]
        return found


class Search:
    """Follows all paths through a program at once, those with the fewest jumps first."""

    def __init__(self, code: tuple[tuple[int, int, int, int], ...]) -> None:
        self._code = code
        self._steps = 0
        # Whether a match can still be reached from an instruction.  Jumps only go forward.
        self._can_match = [False] * len(code)
        for at in range(len(code) - 1, -1, -1):
            op, yes, no, k = code[at]
            if op & bpf.CLASS == bpf.RET:
                self._can_match[at] = op != bpf.RET_K or k != 0
            elif op == bpf.GOTO:
                self._can_match[at] = self._can_match[at + 1 + k]
            elif op & bpf.CLASS == bpf.JMP:
                self._can_match[at] = self._can_match[at + 1 + yes] or self._can_match[at + 1 + no]
            else:
                self._can_match[at] = self._can_match[at + 1]

    def run(self, limit: int) -> tuple[list[Path], bool]:
        """At most `limit` paths, and whether each was followed to its end.

        One that was not is returned with the conditions so far: it accepts more.
        """
        done: list[Path] = []
        number = 0
        waiting = [(0, 0, Path())]
        while waiting:
            if len(done) + len(waiting) >= limit or self._steps > _MAX_STEPS:
                return [*done, *(path for _, _, path in waiting)], False
            _, _, path = heapq.heappop(waiting)
            branches = self._follow(path)
            if branches is None:
                done.append(path)
                continue
            for branch in branches:
                number += 1
                heapq.heappush(waiting, (branch.depth, number, branch))
        return done, True

    def _follow(self, path: Path) -> list[Path] | None:
        """Follows `path` to its next fork and returns the branches; None: a match."""
        while self._can_match[path.at]:
            self._steps += 1
            op, yes, no, k = self._code[path.at]
            kind = op & bpf.CLASS
            if kind == bpf.RET:
                if op == bpf.RET_A and not _compare(path, bpf.JEQ, 0, holds=False):
                    return []
                return None
            if op == bpf.GOTO:
                path.at += 1 + k
            elif kind == bpf.JMP:
                return self._branches(path, op, yes, no, k)
            else:
                if not _execute(path, op, k):
                    return []
                path.at += 1
        return []

    def _branches(self, path: Path, op: int, yes: int, no: int, k: int) -> list[Path]:
        if yes == no:
            return [path.fork(path.at + 1 + yes)]
        operand: _Value = path.x if op & bpf.X else k
        branches = []
        for outcome, jump in ((True, yes), (False, no)):
            branch = path.fork(path.at + 1 + jump)
            if _compare(branch, op & bpf.OPERATION, operand, holds=outcome):
                branches.append(branch)
        return branches


def _compare(path: Path, operation: int, operand: _Value, *, holds: bool) -> bool:
    """Adds the condition that a jump on A has this outcome; False if it cannot have."""
    a = path.a
    if isinstance(a, int) and isinstance(operand, int):
        outcome = {
            bpf.JEQ: a == operand,
            bpf.JGT: a > operand,
            bpf.JGE: a >= operand,
            bpf.JSET: bool(a & operand),
        }[operation]
        return outcome is holds
    if not isinstance(a, _Term) or not isinstance(operand, int):
        path.exact = False
        return True
    condition = _condition(a, operation, operand)
    if isinstance(condition, bool):
        return condition is holds
    return path.narrow(condition if holds else condition.negated())


def _execute(path: Path, op: int, k: int) -> bool:
    """Executes an instruction that does not jump; False if it rejects the packet."""
    kind = op & bpf.CLASS
    if kind == bpf.LD:
        path.a = _loaded(path, op, k)
    elif kind == bpf.LDX:
        path.x = _loaded(path, op, k)
    elif kind in (bpf.ST, bpf.STX):
        path.memory[k] = path.a if kind == bpf.ST else path.x
    elif op == bpf.TXA:
        path.a = path.x
    elif op == bpf.TAX:
        path.x = path.a
    else:
        operand: _Value = path.x if op & bpf.X else k
        if op & bpf.OPERATION in (bpf.DIV, bpf.MOD):
            # A division by zero rejects the packet.
            if operand == 0:
                return False
            path.exact = path.exact and isinstance(operand, int)
        path.a = _arithmetic(op & bpf.OPERATION, path.a, operand)
    return True


def _loaded(path: Path, op: int, k: int) -> _Value:
    """What a load puts into its register; adds the condition that it is in the packet."""
    mode = op & bpf.MODE
    if mode == bpf.MEM:
        return path.memory.get(k, 0)
    if mode == bpf.LEN:
        return _Term(Load(LENGTH, 0, 4), bpf.WORD)
    if mode == bpf.MSH:
        if k > _MAX_OFFSET:
            path.exact = False
        else:
            path.require(Load(NETWORK, k, 1))
        return _TRANSPORT_START if k == 0 else None
    if mode in (bpf.ABS, bpf.IND):
        return _packet_bytes(path, k, bpf.WIDTHS[op & bpf.SIZE], path.x if mode == bpf.IND else 0)
    return k


def _packet_bytes(path: Path, k: int, size: int, x: _Value) -> _Value:
    base, offset = NETWORK, k
    if isinstance(x, _TransportStart):
        base = TRANSPORT
        # BPF and nf_tables agree about the transport header only in IPv4, and only in a
        # packet that is not a later fragment.
        version = path.value(Load(NETWORK, 0, 1), 0xF0)
        if version != 0x40 or path.value(Load(NETWORK, 6, 2), 0x1FFF) != 0:
            path.exact = False
            return None
    elif isinstance(x, int):
        offset += x
    if not isinstance(x, int | _TransportStart) or offset > _MAX_OFFSET:
        path.exact = False
        return None
    load = Load(base, offset, size)
    path.require(load)
    return _Term(load, (1 << 8 * size) - 1)


def _condition(term: _Term, operation: int, operand: int) -> Condition | bool:
    """A jump's comparison, in terms of the unshifted load; a bool if it is constant."""
    load, mask, shift = term.load, term.mask, term.shift
    right, left = max(shift, 0), max(-shift, 0)
    low = operand >> left if left else operand << right
    if operation == bpf.JSET:
        mask &= low
        return Condition(load, mask, "neq", 0) if mask else False
    rest = operand & ((1 << left) - 1)  # bits that are 0 in a value shifted to the left
    if operation == bpf.JEQ:
        if rest or low & ~mask:
            return False
        return Condition(load, mask, "eq", low) if mask else True
    least = low + 1 if operation == bpf.JGT or rest else low
    if operation == bpf.JGT and right:
        least = (operand + 1) << right
    if least <= 0:
        return True
    return Condition(load, mask, "gte", least) if least <= mask else False


def _arithmetic(operation: int, a: _Value, operand: _Value) -> _Value:
    """A after an arithmetic instruction."""
    if not isinstance(operand, int):
        return None
    if operation in (bpf.MUL, bpf.DIV) and operand and not operand & (operand - 1):
        operation = bpf.LSH if operation == bpf.MUL else bpf.RSH
        operand = operand.bit_length() - 1
    if isinstance(a, int):
        return _number(operation, a, operand)
    if operation in (bpf.ADD, bpf.SUB, bpf.OR, bpf.XOR) and operand == 0:
        return a
    if not isinstance(a, _Term):
        return None
    load, mask, shift = a.load, a.mask, a.shift
    if operation == bpf.AND:
        mask &= operand << shift if shift >= 0 else operand >> -shift
    elif operation == bpf.RSH:
        shift += min(operand, 64)
    elif operation == bpf.LSH:
        shift -= min(operand, 64)
    else:
        return None
    # Bits that were shifted out, to either side, are gone.
    if shift >= 0:
        mask &= ~((1 << shift) - 1) & (bpf.WORD << shift)
    else:
        mask &= bpf.WORD >> -shift
    return _Term(load, mask, shift) if mask else 0


def _number(operation: int, a: int, operand: int) -> int | None:
    if operation in (bpf.LSH, bpf.RSH):
        operand = min(operand, 64)
        return (a << operand if operation == bpf.LSH else a >> operand) & bpf.WORD
    if operation in (bpf.DIV, bpf.MOD):
        return a // operand if operation == bpf.DIV else a % operand
    if operation == bpf.NEG:
        return -a & bpf.WORD
    simple = {
        bpf.ADD: a + operand,
        bpf.SUB: a - operand,
        bpf.MUL: a * operand,
        bpf.OR: a | operand,
        bpf.AND: a & operand,
        bpf.XOR: a ^ operand,
    }
    return simple[operation] & bpf.WORD if operation in simple else None
