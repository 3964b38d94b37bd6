# SPDX-License-Identifier: GPL-2.0-only
"""Rules and the packets that meet them, many in one ruleset, with the rows of each packet.

The packet of a case has an address of its own, which leads to the case's chain, so that
one run shows all cases.  Must not send, nor import capture, tui or view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.lab.wire import ipv4, ipv6, udp

_ARRIVES: Final = [f"PREROUTING {table}" for table in ("raw", "mangle", "nat")]
_ENTERS: Final = [f"INPUT {table}" for table in ("mangle", "filter", "security", "nat")]
_PASSES: Final = [f"FORWARD {table}" for table in ("mangle", "filter", "security")]
_LEAVES: Final = [f"POSTROUTING {table}" for table in ("mangle", "nat")]
ROUTES: Final = {"in": _ARRIVES + _ENTERS, "forward": _ARRIVES + _PASSES + _LEAVES}
"""Hooks and tables in the order in which a packet meets them."""

HOOKS: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

Packet = Callable[[str, int], bytes]
"""Of a destination and a number: an IP packet from 10.5.0.5 or fd05::5."""


@dataclass(frozen=True)
class Case:
    """A chain, and a packet that meets it.

    at: hook and table from which the chain is called; rules: of the chain, or, behind
    "A: ", of a further one; steps: the numbers of the rules that the packet hits, "A:1"
    in a further chain, "2/return" for a chain's end, and "policy" for that of the hook.
    """

    at: str
    rules: tuple[str, ...]
    steps: str
    verdict: str = "ACCEPT"
    route: str = "in"  # or "forward"
    packet: Packet | None = None  # None: a datagram to port 9
    without: tuple[str, ...] = ()  # "HOOK table" that it does not meet
    came: dict[str, Any] = field(default_factory=dict)  # fields of the row at `at`
    left: dict[str, Any] = field(default_factory=dict)  # and of all later ones
    may_drop: bool = False  # over netlink, the verdict of a packet that was dropped is unknown


def packet(family: int, protocol: int, payload: bytes) -> Packet:
    """A maker of packets with that payload."""

    def make(address: str, number: int) -> bytes:
        if family == 6:
            return ipv6(protocol, address, payload)
        return ipv4(protocol, address, payload, number=number)

    return make


class Ruleset:
    """Cases in one ruleset of a family."""

    def __init__(self, family: int, of: dict[str, Case], tables: Iterable[str] = HOOKS) -> None:
        self.family = family
        self.cases = of
        self.tables = tuple(tables)
        self._number = {name: n for n, name in enumerate(of, 1)}
        self._heads: dict[str, list[str]] = {}  # "HOOK table" → cases
        for name, one in of.items():
            self._heads.setdefault(one.at, []).append(name)

    def address(self, name: str) -> str:
        """The destination of the case's packet."""
        net, n = {"in": 9, "forward": 7}[self.cases[name].route], self._number[name]
        return f"10.{net}.1.{n}" if self.family == 4 else f"fd0{net}::1:{n:x}"

    def packet(self, name: str) -> bytes:
        make = self.cases[name].packet or packet(self.family, 17, udp(9))
        return make(self.address(name), self._number[name])

    def _chain(self, name: str, further: str = "") -> str:
        return f"C{self._number[name]}{further}"

    def text(self) -> str:
        """It in the format of iptables-restore."""
        lines: list[str] = []
        for table in self.tables:
            chains = [f":{hook} ACCEPT" for hook in HOOKS[table]]
            rules: list[str] = []
            for hook in HOOKS[table]:
                for name in self._heads.get(f"{hook} {table}", ()):
                    own = [self._chain(name, one) for one in ("", *self._further(name))]
                    chains += [f":{one} -" for one in own]
                    rules.append(f"-A {hook} -d {self.address(name)} -j {own[0]}")
                    rules += [self._rule(name, rule) for rule in self.cases[name].rules]
            lines += [f"*{table}", *chains, *rules, "COMMIT"]
        return "\n".join([*lines, ""])

    def _further(self, name: str) -> list[str]:
        return sorted({rule[0] for rule in self.cases[name].rules if rule[1:2] == ":"})

    def _rule(self, name: str, rule: str) -> str:
        chain, words = (rule[0], rule[3:]) if rule[1:2] == ":" else ("", rule)
        *others, last = words.split(" ") if words else [""]
        if others[-1:] in (["-j"], ["-g"]) and last in self._further(name):
            words = " ".join([*others, self._chain(name, last)])
        return f"-A {self._chain(name, chain)} {words}"

    def _path(self, name: str) -> str:
        """Of the row at the case's chain."""
        case = self.cases[name]
        hook = case.at.split()[0]
        heads = self._heads[case.at]
        steps = [f"{hook}:{heads.index(name) + 1}"]
        for word in case.steps.split():
            chain, _, number = word.rpartition(":")
            policy = f"{hook}:{len(heads) + 1}/policy"
            steps.append(policy if word == "policy" else f"{self._chain(name, chain)}:{number}")
        return " ".join(steps)

    def rows(self, name: str) -> list[str]:
        """The rows of the packet in order: "OUTPUT filter OUTPUT:1 A:2/return ACCEPT"."""
        case = self.cases[name]
        found: list[str] = []
        for where in ROUTES[case.route]:
            if where == case.at:
                found.append(f"{where} {self._path(name)} {case.verdict}")
                if case.verdict == "DROP":
                    break
            elif where.split()[1] in self.tables and where not in case.without:
                last = len(self._heads.get(where, ())) + 1
                found.append(f"{where} {where.split()[0]}:{last}/policy ACCEPT")
        return found

    def place(self, name: str) -> int:
        """The index of the case's chain in `rows`."""
        where = [" ".join(row.split()[:2]) for row in self.rows(name)]
        return where.index(self.cases[name].at)
