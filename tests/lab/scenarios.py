# SPDX-License-Identifier: GPL-2.0-only
"""Known traffic over the lab network, and every traversal that it must make.

Built from the parts in tests/lab/way.py.

Pure but for Scenario.run, which sends.  Must not import capture or a user
interface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import rules as at
from ipttrace.lab.traffic.server import CLOSED, SINK, SYNPROXY, SYSLOG
from tests.lab import way
from tests.lab.way import Traversal, hits, path, tally

__all__ = ["COUNT", "Scenario", "Traversal", "hits", "path", "scenarios", "synproxy", "tally"]

COUNT: Final = 23  # prime: no count is right by chance

Sent = traffic.Counts | traffic.Connection


@dataclass(frozen=True, slots=True)
class Scenario:
    """run sends the traffic (servers must be up in the server's namespace); expected: all it does.

    Each may run once on a network, and all of them on the same: an old connection
    of its own would keep the nat table out.
    """

    name: str
    family: int
    run: Callable[[Network], Sent]
    sent: Sent
    expected: tuple[Traversal, ...]


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
            *way.client_sends(n),
            *way.arrive(n, 1, mark="MARKING:1 MARKING:3/return"),
            *way.forward(f"{way.VETTED_PING} FORWARD:3 SERVICES:11/return FORWARD:4", 1),
            *way.forward(f"{way.VETTED_PING} FORWARD:2", n - 1),
            *way.leave(n, 1),
            *way.server_gets("INPUT:2", n),
            *way.back("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
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
            *way.client_sends(n),
            *way.arrive(n, 1, mark="MARKING:1 MARKING:3/return", nat=nat),
            way.one("router", "INPUT", "mangle", "INPUT:1/policy", n),
            way.one("router", "INPUT", "filter", "INPUT:3", 1),
            way.one("router", "INPUT", "filter", "INPUT:2", n - 1),
            way.one("router", "INPUT", "nat", "INPUT:1/policy", 1),
            *way.router_says(n),
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
            *way.client_sends(n),
            way.one("router", "PREROUTING", "raw", "PREROUTING:1", n, "DROP"),
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
            *way.client_sends(COUNT),
            *way.arrive(COUNT, COUNT),
            *way.forward(steps, COUNT, "DROP", syn=syn),
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
            f"{way.VETTED} FORWARD:3 SERVICES:11/return FORWARD:5/policy",
            syn=True,
        ),
        _refused(
            "logged and dropped",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 445, n),
            f"{way.VETTED} FORWARD:3 SERVICES:5 LOGDROP:1 LOGDROP:2",
            syn=True,
        ),
        _refused(
            "rejected with a reset",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 25, n),
            f"{way.VETTED} FORWARD:3 SERVICES:3",
            syn=True,
            # The reset belongs to the connection that is refused, still a new one.
            answer=way.router_says(n, nat=True, inside=inside),
        ),
        _refused(
            "rejected with an ICMP error",
            family,
            lambda net, dst: traffic.udp(net.client, dst, 161, n),
            f"{way.VETTED} FORWARD:3 SERVICES:4",
            syn=False,
            # The error is about a connection that conntrack does not know yet.
            answer=way.router_says(n, inside=inside),
        ),
    ]


def _rejected_at_home(family: int) -> list[Scenario]:
    """The client's own OUTPUT rules refuse, in the context of who sends."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT

    def expected(rule: int) -> tuple[Traversal, ...]:
        return (
            way.one("client", "OUTPUT", "filter", f"OUTPUT:1 POLICY-OUT:{rule}", n, "DROP"),
            # To itself, over lo.
            way.one("client", "OUTPUT", "filter", "OUTPUT:2/policy", n, inside="OUTPUT filter"),
            *way.client_gets(n),
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
            *way.client_sends(3),
            *way.arrive(3, 1, mark="MARKING:2 MARKING:3/return", nat="PREROUTING:1 PORTFORWARD:1"),
            *way.forward(f"{way.VETTED} FORWARD:3 SERVICES:1 WEB:1", 1, syn=True),
            *way.forward(f"{way.VETTED} FORWARD:2", 2),
            *way.leave(3, 1),
            *way.server_gets("INPUT:1", 3),
            *way.back("FORWARD:1 SITE-RULES:3/return FORWARD:2", 1, syn=True),
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
            *way.client_sends(n),
            *way.arrive(n, new),
            *way.forward(f"{way.VETTED} FORWARD:3 SERVICES:{rule}", n),
            *way.leave(n, new),
            *way.server_gets("INPUT:3/policy", n),
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
            way.one("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
            way.one("server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 2 * n),
            way.one("server", "INPUT", "filter", "INPUT:3/policy", n),
        ]
    else:
        # -m frag fits all three; IPv6 puts them together only after INPUT.
        arrive = [
            way.one("server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 3 * n),
            way.one("server", "INPUT", "filter", "INPUT:3/policy", 3 * n),
        ]
    return Scenario(
        "fragments",
        family,
        lambda net: traffic.udp(net.client, server, SINK, n, payload=bytes(4000)),
        traffic.Counts(n),
        (
            *way.client_sends(n),
            *way.arrive(n, 1),
            *way.forward(f"{way.VETTED} FORWARD:3 SERVICES:7", n),
            *way.leave(n, 1),
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
            *way.client_sends(n),
            *way.arrive(n, 1),
            *way.forward(f"{way.VETTED} FORWARD:3 SERVICES:7", n),
            *way.leave(n, 1),
            *way.server_gets("INPUT:3/policy", n),
            *way.back("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
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
        (*way.client_sends(n), *way.arrive(n, n), *way.router_says(n)),
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
            *way.client_sends(n),
            *way.arrive(n, 0, raw="PREROUTING:2 PREROUTING:3/policy"),
            *way.forward(f"{way.VETTED} FORWARD:2", n),
            *way.leave(n, 0),
            *way.server_gets("INPUT:3/policy", n),
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


def synproxy(family: int) -> Scenario:
    """For a network after add_synproxy(): SYNs that the target steals and answers itself.

    Nobody is there for the SYN+ACK, so the client's kernel sends a reset, which
    SYNPROXY does not want and the rule behind it drops.
    """
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "stolen by SYNPROXY",
        family,
        lambda net: traffic.syn(net.client, server, SYNPROXY, n),
        traffic.Counts(n),
        (
            *way.client_sends(2 * n),
            *way.arrive(n, 0, raw="PREROUTING:1 PREROUTING:4/policy"),
            *way.forward("FORWARD:1", n, "STOLEN", syn=True),
            *way.router_says(n, inside="FORWARD filter"),
            *way.arrive(n, 0, raw="PREROUTING:4/policy"),
            *way.forward("FORWARD:1 FORWARD:2", n, "DROP"),
        ),
    )
