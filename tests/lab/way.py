# SPDX-License-Identifier: GPL-2.0-only
"""Traversals, and the parts of a packet's way through the lab network.

Worked out by hand from lab/network/rules.py: rule numbers as
`iptables -L --line-numbers` counts.

A rule that hit is "rule", also one that jumps to a user chain, decides or has no
target.  The end of a chain is a rule of its own, one past the last that is
listed: "return" in a user chain, "policy" in a built-in one.  `-j RETURN` is
"return" where it has no condition (a comment counts as one), else "rule".  The
kernel's own trace also says "return" and "policy" of other unconditional
verdicts, such as `-A LOGDROP -j DROP`: here as in rows these are rules.  The nat
table is called for the first packet of a connection only.

Pure: must not send, nor import capture or a user interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipttrace.trace.row import Step


@dataclass(frozen=True, slots=True)
class Traversal:
    """count traversals that look like this.

    inside: "HOOK table" of the call from inside which they are made, where a
    target sends a packet of its own.
    """

    role: str  # client, router, server
    hook: str
    table: str
    path: tuple[Step, ...]
    verdict: str
    count: int
    inside: str | None = None


def path(text: str) -> tuple[Step, ...]:
    """ "FORWARD:1 WEB:2/return" → steps; what is not said to be return or policy is a rule."""
    steps = []
    for word in text.split():
        place, _, match = word.partition("/")
        chain, _, number = place.rpartition(":")
        steps.append(Step(chain, int(number), match or "rule"))
    return tuple(steps)


def tally(expected: Iterable[Traversal]) -> Counter[tuple[str, str, str, tuple[Step, ...], str]]:
    """(role, hook, table, path, verdict) → how many, to compare with rows."""
    found: Counter[tuple[str, str, str, tuple[Step, ...], str]] = Counter()
    for one in expected:
        found[one.role, one.hook, one.table, one.path, one.verdict] += one.count
    return found


def hits(expected: Iterable[Traversal]) -> Counter[tuple[str, str, str, str, int, str]]:
    """(role, hook, table, chain, rulenum, match) → how many, to compare with rule records."""
    found: Counter[tuple[str, str, str, str, int, str]] = Counter()
    for one in expected:
        for step in one.path:
            found[one.role, one.hook, one.table, step.chain, step.rulenum, step.match] += one.count
    return found


# The parts of a way through the network.  New and old say whether conntrack
# has seen the connection; n counts packets.

VETTED: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:3/return"
VETTED_PING: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:2"


def one(
    role: str, hook: str, table: str, steps: str, n: int, verdict: str = "ACCEPT", inside: str = ""
) -> Traversal:
    return Traversal(role, hook, table, path(steps), verdict, n, inside or None)


def client_sends(n: int) -> list[Traversal]:
    steps = "OUTPUT:1 POLICY-OUT:3/return OUTPUT:2/policy"
    return [one("client", "OUTPUT", "filter", steps, n)]


def client_gets(n: int) -> list[Traversal]:
    return [one("client", "INPUT", "filter", "INPUT:1/policy", n)]


def arrive(
    n: int,
    new: int,
    *,
    raw: str = "PREROUTING:3/policy",
    mark: str = "MARKING:3/return",
    nat: str = "PREROUTING:2/policy",
) -> list[Traversal]:
    """From the client into the router, new of them the first of a connection."""
    marking = f"PREROUTING:1 {mark} PREROUTING:2/policy"
    found = [
        one("router", "PREROUTING", "raw", raw, n),
        one("router", "PREROUTING", "mangle", marking, n),
    ]
    return found + ([one("router", "PREROUTING", "nat", nat, new)] if new else [])


def forward(steps: str, n: int, verdict: str = "ACCEPT", *, syn: bool = False) -> list[Traversal]:
    mangle = "FORWARD:1 FORWARD:2/policy" if syn else "FORWARD:2/policy"
    return [
        one("router", "FORWARD", "mangle", mangle, n),
        one("router", "FORWARD", "filter", steps, n, verdict),
    ]


def leave(n: int, new: int) -> list[Traversal]:
    """Out of the router towards the server, masqueraded."""
    found = [one("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n)]
    return found + ([one("router", "POSTROUTING", "nat", "POSTROUTING:1", new)] if new else [])


def back(steps: str, n: int, *, syn: bool = False) -> list[Traversal]:
    """An answer of the server, through the router to the client."""
    return [
        one("server", "OUTPUT", "raw", "OUTPUT:1/policy", n),
        one("server", "OUTPUT", "filter", "OUTPUT:1/policy", n),
        one("router", "PREROUTING", "raw", "PREROUTING:3/policy", n),
        one("router", "PREROUTING", "mangle", "PREROUTING:2/policy", n),
        *forward(steps, n, syn=syn),
        *leave(n, 0),
        *client_gets(n),
    ]


def server_gets(steps: str, n: int) -> list[Traversal]:
    return [
        one("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
        one("server", "INPUT", "filter", steps, n),
    ]


def router_says(n: int, *, nat: bool = False, inside: str = "") -> list[Traversal]:
    """A packet that the router itself makes, to the client."""
    found = [
        one("router", "OUTPUT", "raw", "OUTPUT:1/policy", n, inside=inside),
        one("router", "OUTPUT", "mangle", "OUTPUT:1/policy", n, inside=inside),
        one("router", "OUTPUT", "filter", "OUTPUT:1/policy", n, inside=inside),
        one("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n, inside=inside),
    ]
    if nat:
        found.append(one("router", "POSTROUTING", "nat", "POSTROUTING:2/policy", n, inside=inside))
    return found + client_gets(n)
