# SPDX-License-Identifier: GPL-2.0-only
"""Expected traversals, one function for each stage of a packet's path through the lab network.

Derived by hand from ipttrace/lab/network/rules.py; rule numbers as in
`iptables -L --line-numbers`.

A step's match is "rule" for a rule that hit, whether it jumps, decides or has no
target.  The end of a chain is a step with the number after the last rule's:
"return" in a user chain, "policy" in a built-in one.  The kernel's own trace
reports unconditional verdicts, such as `-A LOGDROP -j DROP` and `-j RETURN`, as
"return" or "policy"; here and in rows they are "rule".  The nat table is called
for a connection's first packet only.

Must not send, nor import capture, tui or view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ipttrace.trace.row import Step

Tally = Counter[tuple[str, str, str, tuple[Step, ...], str | None]]
"""How many rows there are of each (role, hook, table, path, verdict)."""

Hits = Counter[tuple[str, str, str, str, int, str]]
"""How many rule records there are of each (role, hook, table, chain, rulenum, match)."""


@dataclass(frozen=True, slots=True)
class Traversal:
    """count identical traversals.

    inside: "HOOK table" of the outer call, if a target in it sends the packet.
    """

    role: str  # client, router, server
    hook: str
    table: str
    path: tuple[Step, ...]
    verdict: str
    count: int
    inside: str | None = None


def path(text: str) -> tuple[Step, ...]:
    """Parses "FORWARD:1 WEB:2/return" into steps; the match defaults to "rule"."""
    steps = []
    for word in text.split():
        rule, _, match = word.partition("/")
        chain, _, number = rule.rpartition(":")
        steps.append(Step(chain, int(number), match or "rule"))
    return tuple(steps)


def tally(expected: Iterable[Traversal]) -> Tally:
    """Returns how many rows there must be of each kind."""
    found: Tally = Counter()
    for each in expected:
        found[each.role, each.hook, each.table, each.path, each.verdict] += each.count
    return found


def hits(expected: Iterable[Traversal]) -> Hits:
    """Returns how many rule records there must be of each kind."""
    found: Hits = Counter()
    for each in expected:
        for step in each.path:
            key = (each.role, each.hook, each.table, step.chain, step.rulenum, step.match)
            found[key] += each.count
    return found


# The stages.  n is the number of packets; new, how many of them are the first of
# their connection; syn, whether they are SYNs.

VETTED: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:3"
VETTED_PING: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:2"


def traversal(
    role: str, hook: str, table: str, steps: str, n: int, verdict: str = "ACCEPT", inside: str = ""
) -> Traversal:
    return Traversal(role, hook, table, path(steps), verdict, n, inside or None)


def client_sends(n: int) -> list[Traversal]:
    steps = "OUTPUT:1 POLICY-OUT:3/return OUTPUT:2/policy"
    return [traversal("client", "OUTPUT", "filter", steps, n)]


def client_receives(n: int) -> list[Traversal]:
    return [traversal("client", "INPUT", "filter", "INPUT:1/policy", n)]


def arrive(
    n: int,
    new: int,
    *,
    raw: str = "PREROUTING:3/policy",
    mark: str = "MARKING:3/return",
    nat: str = "PREROUTING:2/policy",
) -> list[Traversal]:
    """From the client into the router."""
    marking = f"PREROUTING:1 {mark} PREROUTING:2/policy"
    found = [
        traversal("router", "PREROUTING", "raw", raw, n),
        traversal("router", "PREROUTING", "mangle", marking, n),
    ]
    return found + ([traversal("router", "PREROUTING", "nat", nat, new)] if new else [])


def forward(steps: str, n: int, verdict: str = "ACCEPT", *, syn: bool = False) -> list[Traversal]:
    mangle = "FORWARD:1 FORWARD:2/policy" if syn else "FORWARD:2/policy"
    return [
        traversal("router", "FORWARD", "mangle", mangle, n),
        traversal("router", "FORWARD", "filter", steps, n, verdict),
    ]


def leave(n: int, new: int) -> list[Traversal]:
    """Out of the router towards the server, masqueraded."""
    found = [traversal("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n)]
    return found + (
        [traversal("router", "POSTROUTING", "nat", "POSTROUTING:1", new)] if new else []
    )


def reply(steps: str, n: int, *, syn: bool = False) -> list[Traversal]:
    """A packet of the server through the router to the client."""
    return [
        traversal("server", "OUTPUT", "raw", "OUTPUT:1/policy", n),
        traversal("server", "OUTPUT", "filter", "OUTPUT:1/policy", n),
        traversal("router", "PREROUTING", "raw", "PREROUTING:3/policy", n),
        traversal("router", "PREROUTING", "mangle", "PREROUTING:2/policy", n),
        *forward(steps, n, syn=syn),
        *leave(n, 0),
        *client_receives(n),
    ]


def server_receives(steps: str, n: int) -> list[Traversal]:
    return [
        traversal("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
        traversal("server", "INPUT", "filter", steps, n),
    ]


def router_sends(n: int, *, nat: bool = False, inside: str = "") -> list[Traversal]:
    """A packet generated by the router, to the client."""
    found = [
        traversal("router", "OUTPUT", "raw", "OUTPUT:1/policy", n, inside=inside),
        traversal("router", "OUTPUT", "mangle", "OUTPUT:1/policy", n, inside=inside),
        traversal("router", "OUTPUT", "filter", "OUTPUT:1/policy", n, inside=inside),
        traversal("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n, inside=inside),
    ]
    if nat:
        found.append(
            traversal("router", "POSTROUTING", "nat", "POSTROUTING:2/policy", n, inside=inside)
        )
    return found + client_receives(n)
