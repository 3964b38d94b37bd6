# SPDX-License-Identifier: GPL-2.0-only
"""Every way through a program of classic BPF that ends in taking the packet.

A way is what must be so of a packet that takes it, in terms that nf_tables has
too.  Must do no I/O.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

# Where a load counts from.
NETWORK: Final = "network"
TRANSPORT: Final = "transport"
LENGTH: Final = "length"  # no load: the packet's length, from its network header on

_MAX_OFFSET: Final = 255  # NFTA_PAYLOAD_OFFSET is one byte, in all but the newest kernels
_MAX_STEPS: Final = 100_000  # instructions that are followed, of all ways together
_WORD: Final = 0xFFFFFFFF
_SIZES: Final = {0x00: 4, 0x08: 2, 0x10: 1}  # BPF_W, BPF_H, BPF_B
_OPPOSITE: Final = {"eq": "neq", "neq": "eq"}


class Load(NamedTuple):
    """`size` bytes, big-endian and unsigned, `offset` bytes behind `base`."""

    base: str
    offset: int
    size: int


def true(value: int, op: str, to: int) -> bool:
    if op == "eq":
        return value == to
    if op == "neq":
        return value != to
    return value >= to if op == "gte" else value <= to


# What a register holds while a way is followed: a number, a load with a mask and then
# shifted right (left where negative), where the transport header begins, or None: cannot
# be said.


@dataclass(frozen=True, slots=True)
class _Term:
    load: Load
    mask: int
    shift: int = 0


class _Transport:
    """4*([0]&0xf)."""


_TRANSPORT_START: Final = _Transport()
_Value = int | _Term | _Transport | None
Place = tuple[Load, int]  # a load and a mask


class Literal(NamedTuple):
    """`load & mask`, compared."""

    load: Load
    mask: int
    op: str
    to: int

    def negated(self) -> Literal:
        if self.op in _OPPOSITE:
            return self._replace(op=_OPPOSITE[self.op])
        if self.op == "gte":
            return self._replace(op="lte", to=self.to - 1)
        return self._replace(op="gte", to=self.to + 1)


class _Range(NamedTuple):
    """What `load & mask` can be on a way: low…high without some."""

    low: int
    high: int
    but: frozenset[int]


@dataclass(slots=True)
class Way:
    """A way through the program until `at`, and what is so of packets that take it."""

    at: int = 0
    a: _Value = 0
    x: _Value = 0
    memory: dict[int, _Value] = field(default_factory=dict)
    ranges: dict[Place, _Range] = field(default_factory=dict)
    # Of each base the load that ends last: where it is inside the packet, so are the others.
    furthest: dict[str, Load] = field(default_factory=dict)
    exact: bool = True
    depth: int = 0

    def copy(self, at: int) -> Way:
        return replace(
            self,
            at=at,
            memory=dict(self.memory),
            ranges=dict(self.ranges),
            furthest=dict(self.furthest),
            depth=self.depth + 1,
        )

    def loads(self, load: Load) -> None:
        if load.base != LENGTH:
            before = self.furthest.get(load.base)
            if before is None or before.offset + before.size < load.offset + load.size:
                self.furthest[load.base] = load

    def known(self, load: Load, mask: int) -> int | None:
        """The value of `load & mask` where there is only one left."""
        for (other, wider), (low, high, _) in self.ranges.items():
            if other == load and low == high and wider & mask == mask:
                return low & mask
        return None

    def narrow(self, literal: Literal) -> bool:
        """From here on `literal` holds; False where it cannot."""
        load, mask, op, to = literal
        if (value := self.known(load, mask)) is not None:
            return true(value, op, to)
        low, high, but = self.ranges.get((load, mask), _Range(0, mask, frozenset()))
        if op == "eq":
            if to & ~mask:
                return False
            low, high = max(low, to), min(high, to)
        elif op == "neq":
            but |= {to}
        elif op == "gte":
            low = max(low, to)
        else:
            high = min(high, to)
        while low <= high and (low in but or high in but):
            low, high = low + (low in but), high - (high in but)
        if low > high:
            return False
        kept = frozenset(value for value in but if low < value < high and not value & ~mask)
        self.ranges[load, mask] = _Range(low, high, kept)
        return low < high or self._agrees(load, mask, low)

    def _agrees(self, load: Load, mask: int, value: int) -> bool:
        """Can `load & mask` be just `value`, by what is known of fewer of its bits?"""
        return all(
            r.low <= value & less <= r.high and value & less not in r.but
            for (other, less), r in self.ranges.items()
            if other == load and less != mask and not less & ~mask
        )

    def literals(self) -> list[Literal]:
        """All that holds, without what follows from the rest."""
        found = []
        for (load, mask), (low, high, but) in self.ranges.items():
            if any(
                other == load and r.low == r.high and wider != mask and wider & mask == mask
                for (other, wider), r in self.ranges.items()
            ):
                continue
            if low == high:
                found.append(Literal(load, mask, "eq", low))
                continue
            if low == 1:
                found.append(Literal(load, mask, "neq", 0))
            elif low:
                found.append(Literal(load, mask, "gte", low))
            if high < mask:
                full = high == mask - 1
                found.append(Literal(load, mask, *(("neq", mask) if full else ("lte", high))))
            found += [Literal(load, mask, "neq", value) for value in sorted(but)]
        return found


class Walk:
    """Follows a program along all its ways at once, the shortest first."""

    def __init__(self, code: list[tuple[int, int, int, int]]) -> None:
        self.code = code
        self.steps = 0
        # From where can the packet still be taken?  Jumps only go forward.
        self.open = [False] * len(code)
        for at in range(len(code) - 1, -1, -1):
            op, yes, no, k = code[at]
            if op & 7 == 6:
                self.open[at] = op != 0x06 or k != 0
            elif op == 0x05:
                self.open[at] = self.open[at + 1 + k]
            elif op & 7 == 5:
                self.open[at] = self.open[at + 1 + yes] or self.open[at + 1 + no]
            else:
                self.open[at] = self.open[at + 1]

    def run(self, limit: int) -> tuple[list[Way], bool]:
        """At most `limit` ways, and whether each was followed to its end.

        What was not is taken as it is then: with fewer conditions.
        """
        done: list[Way] = []
        number = 0
        waiting = [(0, 0, Way())]
        while waiting:
            if len(done) + len(waiting) >= limit or self.steps > _MAX_STEPS:
                return [*done, *(way for _, _, way in waiting)], False
            _, _, way = heapq.heappop(waiting)
            after = self.follow(way)
            if after is None:
                done.append(way)
            else:
                for one in after:
                    number += 1
                    heapq.heappush(waiting, (one.depth, number, one))
        return done, True

    def follow(self, way: Way) -> list[Way] | None:
        """Until it parts: the ways on from there.  None: the packet is taken."""
        while self.open[way.at]:
            self.steps += 1
            op, yes, no, k = self.code[way.at]
            kind = op & 7
            if kind == 6:
                if op == 0x16 and not self.compare(way, 0x15, way.a, 0, holds=False):
                    return []
                return None
            if op == 0x05:
                way.at += 1 + k
            elif kind == 5:
                to: _Value = way.x if op & 8 else k
                ways = []
                for holds, jump in ((True, yes), (False, no)):
                    # Where both go to the same place, there is nothing to ask.
                    if yes == no and not holds:
                        continue
                    one = way.copy(way.at + 1 + jump)
                    if yes == no or self.compare(one, op, way.a, to, holds=holds):
                        ways.append(one)
                return ways
            else:
                if not self.plain(way, op, k):
                    return []
                way.at += 1
        return []

    def compare(self, way: Way, op: int, a: _Value, to: _Value, *, holds: bool) -> bool:
        """The outcome of a jump goes into what is known; False where it cannot come out so."""
        kind = op & 0xF0
        if isinstance(a, int) and isinstance(to, int):
            outcome = {0x10: a == to, 0x20: a > to, 0x30: a >= to, 0x40: bool(a & to)}[kind]
            return outcome is holds
        if not isinstance(a, _Term) or not isinstance(to, int):
            way.exact = False
            return True
        literal = _literal(a, kind, to)
        if isinstance(literal, bool):
            return literal is holds
        return way.narrow(literal if holds else literal.negated())

    def plain(self, way: Way, op: int, k: int) -> bool:
        """What is no jump; False where the packet is refused."""
        kind, mode = op & 7, op & 0xE0
        if kind == 0:
            if mode in (0x20, 0x40):
                way.a = self.load(way, k, _SIZES[op & 0x18], 0 if mode == 0x20 else way.x)
            else:
                way.a = self.other(way, mode, k)
        elif kind == 1:
            if mode == 0xA0:
                byte = Load(NETWORK, k, 1)
                if k > _MAX_OFFSET:
                    way.exact = False
                else:
                    way.loads(byte)
                way.x = _TRANSPORT_START if k == 0 else None
            else:
                way.x = self.other(way, mode, k)
        elif kind in (2, 3):
            way.memory[k] = way.a if kind == 2 else way.x
        elif kind == 7:
            if op == 0x87:
                way.a = way.x
            else:
                way.x = way.a
        else:
            by = way.x if op & 8 else k
            if op & 0xF0 in (0x30, 0x90):  # a division by nothing refuses the packet
                if by == 0:
                    return False
                way.exact = way.exact and isinstance(by, int)
            way.a = _calculated(op & 0xF0, way.a, by)
        return True

    def other(self, way: Way, mode: int, k: int) -> _Value:
        if mode == 0x60:
            return way.memory.get(k, 0)
        return k if mode == 0 else _Term(Load(LENGTH, 0, 4), _WORD)

    def load(self, way: Way, k: int, size: int, x: _Value) -> _Value:
        base, offset = NETWORK, k
        if isinstance(x, _Transport):
            base = TRANSPORT
            # Of IPv4 only, and of no later fragment, do BPF and nf_tables mean the same.
            version = way.known(Load(NETWORK, 0, 1), 0xF0)
            if version != 0x40 or way.known(Load(NETWORK, 6, 2), 0x1FFF) != 0:
                way.exact = False
                return None
        elif isinstance(x, int):
            offset += x
        if not isinstance(x, int | _Transport) or offset > _MAX_OFFSET:
            way.exact = False
            return None
        load = Load(base, offset, size)
        way.loads(load)
        return _Term(load, (1 << 8 * size) - 1)


def _literal(term: _Term, kind: int, to: int) -> Literal | bool:
    """What a jump asks, of the load before it was shifted; a bool where it is always so."""
    load, mask, shift = term.load, term.mask, term.shift
    right, left = max(shift, 0), max(-shift, 0)
    low = to >> left if left else to << right
    if kind == 0x40:  # jset
        mask &= low
        return Literal(load, mask, "neq", 0) if mask else False
    rest = to & ((1 << left) - 1)  # bits that a value shifted to the left never has
    if kind == 0x10:
        if rest or low & ~mask:
            return False
        return Literal(load, mask, "eq", low) if mask else True
    least = low + 1 if kind == 0x20 or rest else low
    if kind == 0x20 and right:
        least = (to + 1) << right
    if least <= 0:
        return True
    return Literal(load, mask, "gte", least) if least <= mask else False


def _calculated(op: int, a: _Value, by: _Value) -> _Value:
    """A after an arithmetic instruction."""
    if not isinstance(by, int):
        return None
    if op in (0x20, 0x30) and by and not by & (by - 1):
        op, by = (0x60 if op == 0x20 else 0x70), by.bit_length() - 1
    if isinstance(a, int):
        return _number(op, a, by)
    if op in (0x00, 0x10, 0x40, 0xA0) and by == 0:
        return a
    if not isinstance(a, _Term):
        return None
    load, mask, shift = a.load, a.mask, a.shift
    if op == 0x50:
        mask &= by << shift if shift >= 0 else by >> -shift
    elif op == 0x70:
        by = min(by, 64)
        shift += by
    elif op == 0x60:
        by = min(by, 64)
        shift -= by
    else:
        return None
    if shift >= 0:
        # What has been shifted out is gone, to either side.
        mask &= ~((1 << shift) - 1) & (_WORD << shift)
    else:
        mask &= _WORD >> -shift
    return _Term(load, mask, shift) if mask else 0


def _number(op: int, a: int, by: int) -> int | None:
    if op in (0x60, 0x70):
        by = min(by, 64)
        return (a << by if op == 0x60 else a >> by) & _WORD
    if op in (0x30, 0x90):
        return a // by if op == 0x30 else a % by
    if op == 0x80:
        return -a & _WORD
    simple = {0x00: a + by, 0x10: a - by, 0x20: a * by, 0x40: a | by, 0x50: a & by, 0xA0: a ^ by}
    return simple[op] & _WORD if op in simple else None
