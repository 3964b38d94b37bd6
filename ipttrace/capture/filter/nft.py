# SPDX-License-Identifier: GPL-2.0-only
"""A filter of classic BPF, said in the words of nf_tables, or as much of it as can be.

The ways through the program that end in taking the packet become rules: a rule is
what must hold on that way, loads that must stay inside the packet included, for a
load outside of it refuses the packet in BPF and breaks off the rule in nf_tables.
Where the program cannot be said so, the rules take more than it does, never less,
and `matches` is what the delivered headers are checked with.  Must do no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.filter.headers import matches
from ipttrace.capture.filter.paths import LENGTH, NETWORK, TRANSPORT, Literal, Load, Walk, Way, true

__all__ = ["LENGTH", "NETWORK", "TRANSPORT", "Check", "Compiled", "Load", "compile", "matches"]


MAX_RULES: Final = 64
# Of all rules together: they must fit into what a socket may send at once.
MAX_EXPRESSIONS: Final = 1500
# A rule's expressions have at most 4095 bytes in the kernel (nft_rule.dlen).
MAX_RULE_EXPRESSIONS: Final = 60
_RULE_TAIL: Final = 5  # what is done to a packet that a rule takes


@dataclass(frozen=True, slots=True)
class Check:
    """The load must be inside the packet, and `load & mask` be as each of `compares` says.

    `compares`: of eq, neq, gte, lte, and the value.
    """

    load: Load
    mask: int
    compares: tuple[tuple[str, int], ...]

    @property
    def whole(self) -> bool:
        """Is there nothing to mask away?"""
        return self.mask == (1 << 8 * self.load.size) - 1

    @property
    def expressions(self) -> int:
        """How many of nf_tables' expressions say it."""
        turned = self.load.base == LENGTH
        return 1 + turned + (bool(self.compares) and not self.whole) + len(self.compares)

    def holds(self, packet: bytes) -> bool:
        """Is it so of this whole packet?  As nf_tables would do it."""
        base, offset, size = self.load
        if base == LENGTH:
            value = len(packet)
        else:
            if base == TRANSPORT:
                # nft_set_pktinfo_ipv4 and nft_payload_eval: no later fragment has one.
                if len(packet) < 20 or int.from_bytes(packet[6:8], "big") & 0x1FFF:
                    return False
                offset += (packet[0] & 15) * 4
            if offset + size > len(packet):
                return False
            value = int.from_bytes(packet[offset : offset + size], "big")
        return all(true(value & self.mask, op, to) for op, to in self.compares)


@dataclass(frozen=True, slots=True)
class Compiled:
    """`rules`: a packet is taken that all checks of any one of them hold for.

    `exact`: that is just what `program` takes; else it is more, and what is delivered
    must be checked with `matches`.  `words`: where the filter runs, for the status line.
    """

    program: bytes
    rules: tuple[tuple[Check, ...], ...]
    exact: bool

    @property
    def words(self) -> str:
        """Where the filter runs."""
        if not self.program:
            return "every packet"
        if self.exact:
            count = len(self.rules)
            return f"in the kernel ({count} nft rule{'' if count == 1 else 's'})"
        if any(not any(check.compares for check in rule) for rule in self.rules):
            return "on the delivered headers"
        return "partly in the kernel, the rest on the delivered headers"

    def takes(self, packet: bytes) -> bool:
        """Would the rules take this whole packet, from its network header on?"""
        return any(all(check.holds(packet) for check in rule) for rule in self.rules)


def compile(program: bytes) -> Compiled:
    """`program`: what pcapfilter.compile gives.  Raises FilterError for what is no program."""
    if not program:
        return Compiled(b"", ((),), exact=True)
    pcapfilter.matches(program, b"")  # raises where the program is not valid
    code = list(pcapfilter.INSTRUCTION.iter_unpack(program))
    limit = MAX_RULES
    while True:
        found, complete = Walk(code).run(limit)
        rules, whole = _rules(found)
        exact = complete and whole and all(way.exact for way in found)
        size = sum(_RULE_TAIL + check.expressions for rule in rules for check in rule)
        if size <= MAX_EXPRESSIONS or limit == 1:
            return Compiled(program, rules, exact)
        limit //= 2


@dataclass(slots=True)
class _Rule:
    literals: list[Literal]
    furthest: dict[str, Load]

    def reaches(self, other: _Rule) -> bool:
        """Are the loads of `other` inside the packet wherever these are?"""
        return all(
            base in self.furthest and sum(self.furthest[base][1:]) >= load.offset + load.size
            for base, load in other.furthest.items()
        )

    def implies(self, literal: Literal, without: Literal | None = None) -> bool:
        """Does it follow from the literals, or from all of them but one?"""
        return any(
            one == literal
            or (one.op == "eq" and one.load == literal.load and not literal.mask & ~one.mask
                and true(one.to & literal.mask, literal.op, literal.to))
            for one in self.literals
            if one != without
        )  # fmt: skip

    def needless(self, others: list[_Rule]) -> Literal | None:
        """A literal without which all the rules together take just the same."""
        for literal in self.literals:
            against = literal.negated()
            for other in others:
                if (
                    other is not self
                    and against in other.literals
                    and self.reaches(other)
                    and all(one == against or self.implies(one, literal) for one in other.literals)
                ):
                    return literal
        return None


def _rules(ways: list[Way]) -> tuple[tuple[tuple[Check, ...], ...], bool]:
    """The ways as rules, as few and short as they easily get, and whether they say it all."""
    rules = [_Rule(way.literals(), way.furthest) for way in ways]
    changed = True
    while changed:
        changed = False
        for rule in rules:
            while (literal := rule.needless(rules)) is not None:
                rule.literals.remove(literal)
                changed = True
        kept: list[_Rule] = []
        for rule in sorted(rules, key=lambda rule: len(rule.literals)):
            if not any(
                rule.reaches(one) and all(rule.implies(literal) for literal in one.literals)
                for one in kept
            ):
                kept.append(rule)
        changed = changed or len(kept) < len(rules)
        rules = [rule for rule in rules if any(rule is one for one in kept)]
    made = [_checks(rule) for rule in rules]
    return tuple(checks for checks, _ in made), all(whole for _, whole in made)


def _checks(rule: _Rule) -> tuple[tuple[Check, ...], bool]:
    grouped: dict[tuple[Load, int], list[tuple[str, int]]] = {}
    for load, mask, op, to in rule.literals:
        grouped.setdefault((load, mask), []).append((op, to))
    checks = [Check(load, mask, tuple(compares)) for (load, mask), compares in grouped.items()]
    for base, load in rule.furthest.items():
        ends = [sum(check.load[1:]) for check in checks if check.load.base == base]
        if max(ends, default=0) < load.offset + load.size:
            checks.append(Check(load, (1 << 8 * load.size) - 1, ()))
    room = MAX_RULE_EXPRESSIONS - _RULE_TAIL
    fitting: list[Check] = []
    for check in checks:
        room -= check.expressions
        if room >= 0:
            fitting.append(check)
    return tuple(fitting), len(fitting) == len(checks)
