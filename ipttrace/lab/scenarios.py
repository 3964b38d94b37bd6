# SPDX-License-Identifier: GPL-2.0-only
"""Known traffic over the lab network, and every traversal that it must make.

The expectations are worked out by hand from network_rules.py: rule numbers as
`iptables -L --line-numbers` counts, matches as the kernel's trace names them.

What a match says (get_chainname_rulenum() in net/ipv4/netfilter/ip_tables.c):
a rule that hit is "rule", also one that jumps to a user chain or has no target.
The end of a chain is a rule of its own, one past the last that is listed:
"return" in a user chain, "policy" in a built-in one.  But so is every rule there
that has no condition and a standard verdict: `-A LOGDROP -j DROP` says "return"
and drops; a comment counts as a condition.  The nat table is called for the
first packet of a connection only.

Pure but for Scenario.run, which sends.  Must not import capture or a user
interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ipttrace.lab import network_rules as at
from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.traffic_server import CLOSED, SINK, SYSLOG
from ipttrace.trace.row import Step

COUNT: Final = 23  # prime: no count is right by chance

Sent = traffic.Counts | traffic.Connection


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


@dataclass(frozen=True, slots=True)
class Scenario:
    """run sends the traffic (servers must be up in the server's namespace); expected: all it does.

    Each is for a network that has carried no such traffic before: an old
    connection would keep the nat table out.
    """

    name: str
    family: int
    run: Callable[[Network], Sent]
    sent: Sent
    expected: tuple[Traversal, ...]


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

_VETTED: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:3/return"
_VETTED_PING: Final = "FORWARD:1 SITE-RULES:1 BLOCKLIST:3/return SITE-RULES:2"


def _one(
    role: str, hook: str, table: str, steps: str, n: int, verdict: str = "ACCEPT", inside: str = ""
) -> Traversal:
    return Traversal(role, hook, table, path(steps), verdict, n, inside or None)


def _client_sends(n: int) -> list[Traversal]:
    steps = "OUTPUT:1 POLICY-OUT:3/return OUTPUT:2/policy"
    return [_one("client", "OUTPUT", "filter", steps, n)]


def _client_gets(n: int) -> list[Traversal]:
    return [_one("client", "INPUT", "filter", "INPUT:1/policy", n)]


def _arrive(
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
        _one("router", "PREROUTING", "raw", raw, n),
        _one("router", "PREROUTING", "mangle", marking, n),
    ]
    return found + ([_one("router", "PREROUTING", "nat", nat, new)] if new else [])


def _forward(steps: str, n: int, verdict: str = "ACCEPT", *, syn: bool = False) -> list[Traversal]:
    mangle = "FORWARD:1 FORWARD:2/policy" if syn else "FORWARD:2/policy"
    return [
        _one("router", "FORWARD", "mangle", mangle, n),
        _one("router", "FORWARD", "filter", steps, n, verdict),
    ]


def _leave(n: int, new: int) -> list[Traversal]:
    """Out of the router towards the server, masqueraded."""
    found = [_one("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n)]
    return found + ([_one("router", "POSTROUTING", "nat", "POSTROUTING:1", new)] if new else [])


def _back(steps: str, n: int, *, syn: bool = False) -> list[Traversal]:
    """An answer of the server, through the router to the client."""
    return [
        _one("server", "OUTPUT", "raw", "OUTPUT:1/policy", n),
        _one("server", "OUTPUT", "filter", "OUTPUT:1/policy", n),
        _one("router", "PREROUTING", "raw", "PREROUTING:3/policy", n),
        _one("router", "PREROUTING", "mangle", "PREROUTING:2/policy", n),
        *_forward(steps, n, syn=syn),
        *_leave(n, 0),
        *_client_gets(n),
    ]


def _server_gets(steps: str, n: int) -> list[Traversal]:
    return [
        _one("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
        _one("server", "INPUT", "filter", steps, n),
    ]


def _router_says(n: int, *, nat: bool = False, inside: str = "") -> list[Traversal]:
    """A packet that the router itself makes, to the client."""
    found = [
        _one("router", "OUTPUT", "raw", "OUTPUT:1/policy", n, inside=inside),
        _one("router", "OUTPUT", "mangle", "OUTPUT:1/policy", n, inside=inside),
        _one("router", "OUTPUT", "filter", "OUTPUT:1/policy", n, inside=inside),
        _one("router", "POSTROUTING", "mangle", "POSTROUTING:1/policy", n, inside=inside),
    ]
    if nat:
        found.append(_one("router", "POSTROUTING", "nat", "POSTROUTING:2/policy", n, inside=inside))
    return found + _client_gets(n)


# The scenarios


def _ping(family: int, name: str = "ping", *, options: bool = False) -> Scenario:
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        name,
        family,
        lambda net: traffic.ping(net.client, server, n, destination_options=options),
        traffic.Counts(n, n),
        (
            *_client_sends(n),
            *_arrive(n, 1, mark="MARKING:1 MARKING:3/return"),
            *_forward(f"{_VETTED_PING} FORWARD:3 SERVICES:11/return FORWARD:4", 1),
            *_forward(f"{_VETTED_PING} FORWARD:2", n - 1),
            *_leave(n, 1),
            *_server_gets("INPUT:2", n),
            *_back("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
        ),
    )


def _ping_router(family: int) -> Scenario:
    router = at.ROUTER4 if family == 4 else at.ROUTER6
    nat = "PREROUTING:1 PORTFORWARD:2/return PREROUTING:2/policy"
    n = COUNT
    return Scenario(
        "ping the router",
        family,
        lambda net: traffic.ping(net.client, router, n),
        traffic.Counts(n, n),
        (
            *_client_sends(n),
            *_arrive(n, 1, mark="MARKING:1 MARKING:3/return", nat=nat),
            _one("router", "INPUT", "mangle", "INPUT:1/policy", n),
            _one("router", "INPUT", "filter", "INPUT:3", 1),
            _one("router", "INPUT", "filter", "INPUT:2", n - 1),
            _one("router", "INPUT", "nat", "INPUT:1/policy", 1),
            *_router_says(n),
        ),
    )


def _banned(family: int) -> Scenario:
    server, guest = (at.SERVER4, at.GUEST4) if family == 4 else (at.SERVER6, at.GUEST6)
    n = COUNT
    return Scenario(
        "dropped by source in raw",
        family,
        lambda net: traffic.ping(net.client, server, n, source=guest, wait=False),
        traffic.Counts(n),
        (
            *_client_sends(n),
            _one("router", "PREROUTING", "raw", "PREROUTING:1", n, "DROP"),
        ),
    )


def _refused(
    name: str,
    family: int,
    send: Callable[[Network, str], traffic.Counts],
    steps: str,
    *,
    syn: bool,
    answer: list[Traversal] | None = None,
) -> Scenario:
    """Each packet ends in filter FORWARD; its connection is forgotten, so each is a first one."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    return Scenario(
        name,
        family,
        lambda net: send(net, server),
        traffic.Counts(COUNT),
        (
            *_client_sends(COUNT),
            *_arrive(COUNT, COUNT),
            *_forward(steps, COUNT, "DROP", syn=syn),
            *(answer or []),
        ),
    )


def _all_refused(family: int) -> list[Scenario]:
    inside = "FORWARD filter"
    n = COUNT
    return [
        _refused(
            "dropped by port in a chain below a chain",
            family,
            lambda net, dst: traffic.udp(net.client, dst, 4444, n),
            "FORWARD:1 SITE-RULES:1 BLOCKLIST:1",
            syn=False,
        ),
        _refused(
            "dropped by policy",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 6667, n),
            f"{_VETTED} FORWARD:3 SERVICES:11/return FORWARD:5/policy",
            syn=True,
        ),
        _refused(
            "logged and dropped",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 445, n),
            f"{_VETTED} FORWARD:3 SERVICES:5 LOGDROP:1 LOGDROP:2/return",
            syn=True,
        ),
        _refused(
            "rejected with a reset",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 25, n),
            f"{_VETTED} FORWARD:3 SERVICES:3",
            syn=True,
            # The reset belongs to the connection that is refused, still a new one.
            answer=_router_says(n, nat=True, inside=inside),
        ),
        _refused(
            "rejected with an ICMP error",
            family,
            lambda net, dst: traffic.udp(net.client, dst, 161, n),
            f"{_VETTED} FORWARD:3 SERVICES:4",
            syn=False,
            # The error is about a connection that conntrack does not know yet.
            answer=_router_says(n, inside=inside),
        ),
    ]


def _rejected_at_home(family: int) -> list[Scenario]:
    """The client's own OUTPUT rules refuse, in the context of who sends."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT

    def expected(rule: int) -> tuple[Traversal, ...]:
        return (
            _one("client", "OUTPUT", "filter", f"OUTPUT:1 POLICY-OUT:{rule}", n, "DROP"),
            # To itself, over lo.
            _one("client", "OUTPUT", "filter", "OUTPUT:2/policy", n, inside="OUTPUT filter"),
            *_client_gets(n),
        )

    return [
        Scenario(
            "rejected at home with a reset",
            family,
            lambda net: traffic.syn(net.client, server, 23, n),
            traffic.Counts(n, 0, n),
            expected(1),
        ),
        Scenario(
            "rejected at home with an ICMP error",
            family,
            lambda net: traffic.udp(net.client, server, 69, n),
            traffic.Counts(n, 0, n),
            expected(2),
        ),
    ]


def _port_forward(family: int) -> Scenario:
    """SYN, SYN+ACK, ACK, RST through DNAT and MASQUERADE."""
    router = at.ROUTER4 if family == 4 else at.ROUTER6
    return Scenario(
        "TCP through DNAT and MASQUERADE",
        family,
        lambda net: traffic.tcp(net.client, router, 8080, abort=True),
        traffic.Connection("open"),
        (
            *_client_sends(3),
            *_arrive(3, 1, mark="MARKING:2 MARKING:3/return", nat="PREROUTING:1 PORTFORWARD:1"),
            *_forward(f"{_VETTED} FORWARD:3 SERVICES:1 WEB:1", 1, syn=True),
            *_forward(f"{_VETTED} FORWARD:2", 2),
            *_leave(3, 1),
            *_server_gets("INPUT:1", 3),
            *_back("FORWARD:1 SITE-RULES:3/return FORWARD:2", 1, syn=True),
        ),
    )


def _one_way(
    name: str, family: int, send: Callable[[Network, str], traffic.Counts], rule: int, new: int
) -> Scenario:
    """Let through by a rule of SERVICES and never answered."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        name,
        family,
        lambda net: send(net, server),
        traffic.Counts(n),
        (
            *_client_sends(n),
            *_arrive(n, new),
            *_forward(f"{_VETTED} FORWARD:3 SERVICES:{rule}", n),
            *_leave(n, new),
            *_server_gets("INPUT:3/policy", n),
        ),
    )


def _all_one_way(family: int) -> list[Scenario]:
    n = COUNT
    return [
        _one_way("GRE", family, lambda net, dst: traffic.gre(net.client, dst, n), 8, 1),
        _one_way("ESP", family, lambda net, dst: traffic.esp(net.client, dst, n), 9, 1),
        _one_way("SCTP", family, lambda net, dst: traffic.sctp(net.client, dst, 9, n), 10, n),
        _one_way("UDP", family, lambda net, dst: traffic.udp(net.client, dst, SINK, n), 7, 1),
    ]


def _fragments(family: int) -> Scenario:
    """4,000 bytes: three fragments on the wire, put together in the router for conntrack."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    if family == 4:
        # -f fits the second and third; INPUT sees the whole.
        arrive = [
            _one("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
            _one("server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 2 * n),
            _one("server", "INPUT", "filter", "INPUT:3/policy", n),
        ]
    else:
        # -m frag fits all three; IPv6 puts them together only after INPUT.
        arrive = [
            _one("server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 3 * n),
            _one("server", "INPUT", "filter", "INPUT:3/policy", 3 * n),
        ]
    return Scenario(
        "fragments",
        family,
        lambda net: traffic.udp(net.client, server, SINK, n, payload=bytes(4000)),
        traffic.Counts(n),
        (
            *_client_sends(n),
            *_arrive(n, 1),
            *_forward(f"{_VETTED} FORWARD:3 SERVICES:7", n),
            *_leave(n, 1),
            *arrive,
        ),
    )


def _closed_port(family: int) -> Scenario:
    """The server's ICMP errors come back through the router as RELATED."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "ICMP errors for a closed port",
        family,
        lambda net: traffic.udp(net.client, server, CLOSED, n),
        traffic.Counts(n),
        (
            *_client_sends(n),
            *_arrive(n, 1),
            *_forward(f"{_VETTED} FORWARD:3 SERVICES:7", n),
            *_leave(n, 1),
            *_server_gets("INPUT:3/policy", n),
            *_back("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
        ),
    )


def _expired(family: int) -> Scenario:
    """The router says so before FORWARD."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "time exceeded",
        family,
        lambda net: traffic.udp(net.client, server, SINK, n, ttl=1),
        traffic.Counts(n),
        (*_client_sends(n), *_arrive(n, n), *_router_says(n)),
    )


def _untracked(family: int) -> Scenario:
    """CT --notrack: no nat table, and the client's address stays."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "untracked",
        family,
        lambda net: traffic.udp(net.client, server, SYSLOG, n),
        traffic.Counts(n),
        (
            *_client_sends(n),
            *_arrive(n, 0, raw="PREROUTING:2 PREROUTING:3/policy"),
            *_forward(f"{_VETTED} FORWARD:2", n),
            *_leave(n, 0),
            *_server_gets("INPUT:3/policy", n),
        ),
    )


def scenarios(family: int | None = None) -> list[Scenario]:
    """All of them, or those of family 4 or 6."""
    found: list[Scenario] = []
    for each in (4, 6) if family is None else (family,):
        found += [
            _ping(each),
            _ping_router(each),
            _banned(each),
            *_all_refused(each),
            *_rejected_at_home(each),
            _port_forward(each),
            *_all_one_way(each),
            _fragments(each),
            _closed_port(each),
            _expired(each),
            _untracked(each),
        ]
        if each == 6:
            found.append(_ping(6, "ping with destination options", options=True))
    return found
