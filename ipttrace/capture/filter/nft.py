# SPDX-License-Identifier: GPL-2.0-only
"""A classic BPF filter as nf_tables rules, as far as these can express it.

Each path of the program that ends in a match (`paths`) becomes a rule, which consists of
what must hold on that path.  Each load of the path is a condition as well: a load past
the packet's end makes BPF reject the packet and makes nf_tables abandon the rule.  If
nf_tables cannot express the program, the rules match more packets than the program,
never fewer, and the delivered headers are checked afterwards (`headers`).  Must do no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ipttrace.capture.filter import pcap
from ipttrace.capture.filter.headers import matches
from ipttrace.capture.filter.paths import (
    LENGTH,
    NETWORK,
    TRANSPORT,
    Condition,
    Load,
    Path,
    Search,
    holds,
)

__all__ = ["LENGTH", "NETWORK", "TRANSPORT", "Check", "Compiled", "Load", "compile", "matches"]


MAX_RULES: Final = 64
# Of all rules together: they must fit into one message to the kernel.
MAX_EXPRESSIONS: Final = 1500
# The kernel limits a rule's expressions to 4095 bytes (nft_rule.dlen).
MAX_RULE_EXPRESSIONS: Final = 60
_RULE_TAIL: Final = 5  # expressions of a rule that act on the packets it matches


@dataclass(frozen=True, slots=True)
class Check:
    """`load` must be inside the packet, and `load & mask` must satisfy each of `compares`.

    `compares`: an operator (eq, neq, gte, lte) and the operand.
    """

    load: Load
    mask: int
    compares: tuple[tuple[str, int], ...]

    @property
    def unmasked(self) -> bool:
        """Whether the mask has all bits of the load."""
        return self.mask == (1 << 8 * self.load.size) - 1

    @property
    def expressions(self) -> int:
        """How many nf_tables expressions it takes."""
        # The packet's length is in host order, and must be converted.
        converted = self.load.base == LENGTH
        return 1 + converted + (bool(self.compares) and not self.unmasked) + len(self.compares)

    def matches(self, packet: bytes) -> bool:
        """Whether a complete packet satisfies it, evaluated as nf_tables does."""
        base, offset, size = self.load
        if base == LENGTH:
            value = len(packet)
        else:
            if base == TRANSPORT:
                # A later fragment has none: nft_set_pktinfo_ipv4(), nft_payload_eval().
                if len(packet) < 20 or int.from_bytes(packet[6:8], "big") & 0x1FFF:
                    return False
                offset += (packet[0] & 15) * 4
            if offset + size > len(packet):
                return False
            value = int.from_bytes(packet[offset : offset + size], "big")
        return all(holds(value & self.mask, op, operand) for op, operand in self.compares)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A packet matches if all checks of any of the `rules` hold.

    `exact`: that is what `program` matches.  Otherwise the rules match more, and what
    was delivered must be checked with `matches`.
    """

    program: bytes
    rules: tuple[tuple[Check, ...], ...]
    exact: bool

    @property
    def location(self) -> str:
        """Where the filter is evaluated, in words, for the status line."""
        if not self.program:
            return "every packet"
        if self.exact:
            count = len(self.rules)
            return f"in the kernel ({count} nft rule{'' if count == 1 else 's'})"
        if any(not any(check.compares for check in rule) for rule in self.rules):
            return "in the agent, on the reported headers"
        return "partly in the kernel, the rest in the agent, on the reported headers"

    def matches(self, packet: bytes) -> bool:
        """Whether the rules match a complete packet, from its network header on."""
        return any(all(check.matches(packet) for check in rule) for rule in self.rules)


@lru_cache(maxsize=4)
def compile(program: bytes) -> Compiled:
    """The rules for a program of pcap.compile().

    Raises FilterError if `program` is not valid classic BPF.
    """
    if not program:
        return Compiled(b"", ((),), exact=True)
    code = pcap.instructions(program)
    limit = MAX_RULES
    while True:
        found, complete = Search(code).run(limit)
        rules, fit = _rules(found)
        exact = complete and fit and all(path.exact for path in found)
        size = sum(_RULE_TAIL + check.expressions for rule in rules for check in rule)
        if size <= MAX_EXPRESSIONS or limit == 1:
            return Compiled(program, rules, exact)
        limit //= 2


@dataclass(slots=True)
class _Rule:
    conditions: list[Condition]
    furthest: dict[str, Load]

    def reaches(self, other: _Rule) -> bool:
        """Whether the loads of `other` are inside each packet that has those of this."""
        return all(
            base in self.furthest and self.furthest[base].end >= load.end
            for base, load in other.furthest.items()
        )

    def implies(self, condition: Condition, without: Condition | None = None) -> bool:
        """Whether `condition` follows from the others, or from those except `without`."""
        return any(
            one == condition
            or (one.op == "eq" and one.load == condition.load and not condition.mask & ~one.mask
                and holds(one.operand & condition.mask, condition.op, condition.operand))
            for one in self.conditions
            if one != without
        )  # fmt: skip

    def redundant(self, rules: list[_Rule]) -> Condition | None:
        """A condition without which `rules`, of which this is one, match the same packets.

        That is so if another rule covers the packets that fail this condition alone.
        """
        for condition in self.conditions:
            opposite = condition.negated()
            for other in rules:
                if (
                    other is not self
                    and opposite in other.conditions
                    and self.reaches(other)
                    and all(
                        one == opposite or self.implies(one, condition) for one in other.conditions
                    )
                ):
                    return condition
        return None


def _rules(paths: list[Path]) -> tuple[tuple[tuple[Check, ...], ...], bool]:
    """Rules for `paths`, simplified as far as is cheap, and whether each path fits into one."""
    rules = [_Rule(path.conditions(), path.furthest) for path in paths]
    changed = True
    while changed:
        changed = False
        for rule in rules:
            while (condition := rule.redundant(rules)) is not None:
                rule.conditions.remove(condition)
                changed = True
        kept: list[_Rule] = []
        for rule in sorted(rules, key=lambda rule: len(rule.conditions)):
            if not any(
                rule.reaches(one) and all(rule.implies(condition) for condition in one.conditions)
                for one in kept
            ):
                kept.append(rule)
        changed = changed or len(kept) < len(rules)
        rules = [rule for rule in rules if any(rule is one for one in kept)]
    made = [_checks(rule) for rule in rules]
    return tuple(checks for checks, _ in made), all(fit for _, fit in made)


def _checks(rule: _Rule) -> tuple[tuple[Check, ...], bool]:
    """The rule's checks, and whether it has room for all of them."""
    grouped: dict[tuple[Load, int], list[tuple[str, int]]] = {}
    for load, mask, op, operand in rule.conditions:
        grouped.setdefault((load, mask), []).append((op, operand))
    checks = [Check(load, mask, tuple(compares)) for (load, mask), compares in grouped.items()]
    for base, load in rule.furthest.items():
        ends = [check.load.end for check in checks if check.load.base == base]
        if max(ends, default=0) < load.end:
            checks.append(Check(load, (1 << 8 * load.size) - 1, ()))
    room = MAX_RULE_EXPRESSIONS - _RULE_TAIL
    fitting: list[Check] = []
    for check in checks:
        room -= check.expressions
        if room >= 0:
            fitting.append(check)
    return tuple(fitting), len(fitting) == len(checks)
