# SPDX-License-Identifier: GPL-2.0-only
"""Known traffic over the lab network, and every traversal that it must cause.

Built from tests/lab/stages.py.  Only Scenario.run sends.  Must not import capture,
tui or view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import addresses as at
from ipttrace.lab.traffic.server import CLOSED, SINK, SYNPROXY, SYSLOG
from tests.lab import stages
from tests.lab.stages import Traversal, hits, path, tally

__all__ = ["COUNT", "Scenario", "Traversal", "hits", "path", "scenarios", "synproxy", "tally"]

COUNT: Final = 23  # prime: no other product equals it by chance

Sent = traffic.Counts | traffic.Connection


@dataclass(frozen=True, slots=True)
class Scenario:
    """Traffic and all the traversals that it causes.

    run sends it, returning `sent`; the servers must be up.  All scenarios can run
    on one network, each once: a second run would find its connections in
    conntrack, and skip the nat table.
    """

    name: str
    family: int
    run: Callable[[Network], Sent]
    sent: Sent
    expected: tuple[Traversal, ...]


def _ping(family: int, name: str = "ping", *, options: bool = False) -> Scenario:
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        name,
        family,
        lambda net: traffic.ping(net.client, server, n, destination_options=options),
        traffic.Counts(n, n),
        (
            *stages.client_sends(n),
            *stages.arrive(n, 1, mark="MARKING:1 MARKING:3/return"),
            *stages.forward(f"{stages.VETTED_PING} FORWARD:3 SERVICES:11/return FORWARD:4", 1),
            *stages.forward(f"{stages.VETTED_PING} FORWARD:2", n - 1),
            *stages.leave(n, 1),
            *stages.server_receives("INPUT:2", n),
            *stages.reply("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
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
            *stages.client_sends(n),
            *stages.arrive(n, 1, mark="MARKING:1 MARKING:3/return", nat=nat),
            stages.traversal("router", "INPUT", "mangle", "INPUT:1/policy", n),
            stages.traversal("router", "INPUT", "filter", "INPUT:3", 1),
            stages.traversal("router", "INPUT", "filter", "INPUT:2", n - 1),
            stages.traversal("router", "INPUT", "nat", "INPUT:1/policy", 1),
            *stages.router_sends(n),
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
            *stages.client_sends(n),
            stages.traversal("router", "PREROUTING", "raw", "PREROUTING:1", n, "DROP"),
        ),
    )


def _dropped_by_router(
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
            *stages.client_sends(COUNT),
            *stages.arrive(COUNT, COUNT),
            *stages.forward(steps, COUNT, "DROP", syn=syn),
            *(answer or []),
        ),
    )


def _all_rejected_by_router(family: int) -> list[Scenario]:
    inside = "FORWARD filter"
    n = COUNT
    return [
        _dropped_by_router(
            "dropped by port in a chain below a chain",
            family,
            lambda net, dst: traffic.udp(net.client, dst, 4444, n),
            "FORWARD:1 SITE-RULES:1 BLOCKLIST:1",
            syn=False,
        ),
        _dropped_by_router(
            "dropped by policy",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 6667, n),
            f"{stages.VETTED} FORWARD:3 SERVICES:11/return FORWARD:5/policy",
            syn=True,
        ),
        _dropped_by_router(
            "logged and dropped",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 445, n),
            f"{stages.VETTED} FORWARD:3 SERVICES:5 LOGDROP:1 LOGDROP:2",
            syn=True,
        ),
        _dropped_by_router(
            "rejected with a reset",
            family,
            lambda net, dst: traffic.syn(net.client, dst, 25, n),
            f"{stages.VETTED} FORWARD:3 SERVICES:3",
            syn=True,
            # The reset belongs to the rejected connection, which is still new.
            answer=stages.router_sends(n, nat=True, inside=inside),
        ),
        _dropped_by_router(
            "rejected with an ICMP error",
            family,
            lambda net, dst: traffic.udp(net.client, dst, 161, n),
            f"{stages.VETTED} FORWARD:3 SERVICES:4",
            syn=False,
            # The error refers to a connection that conntrack does not have yet.
            answer=stages.router_sends(n, inside=inside),
        ),
    ]


def _rejected_by_sender(family: int) -> list[Scenario]:
    """The client's own OUTPUT rules reject, in the sender's context."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT

    def expected(rule: int) -> tuple[Traversal, ...]:
        return (
            stages.traversal(
                "client", "OUTPUT", "filter", f"OUTPUT:1 POLICY-OUT:{rule}", n, "DROP"
            ),
            # The rejection, sent to itself over lo.
            stages.traversal(
                "client", "OUTPUT", "filter", "OUTPUT:2/policy", n, inside="OUTPUT filter"
            ),
            *stages.client_receives(n),
        )

    return [
        Scenario(
            "rejected by the sender with a reset",
            family,
            lambda net: traffic.syn(net.client, server, 23, n),
            traffic.Counts(n, 0, n),
            expected(1),
        ),
        Scenario(
            "rejected by the sender with an ICMP error",
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
            *stages.client_sends(3),
            *stages.arrive(
                3, 1, mark="MARKING:2 MARKING:3/return", nat="PREROUTING:1 PORTFORWARD:1"
            ),
            *stages.forward(f"{stages.VETTED} FORWARD:3 SERVICES:1 WEB:1", 1, syn=True),
            *stages.forward(f"{stages.VETTED} FORWARD:2", 2),
            *stages.leave(3, 1),
            *stages.server_receives("INPUT:1", 3),
            *stages.reply("FORWARD:1 SITE-RULES:3 FORWARD:2", 1, syn=True),
        ),
    )


def _unanswered(
    name: str, family: int, send: Callable[[Network, str], traffic.Counts], rule: int, new: int
) -> Scenario:
    """Accepted by a rule of SERVICES and never answered."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        name,
        family,
        lambda net: send(net, server),
        traffic.Counts(n),
        (
            *stages.client_sends(n),
            *stages.arrive(n, new),
            *stages.forward(f"{stages.VETTED} FORWARD:3 SERVICES:{rule}", n),
            *stages.leave(n, new),
            *stages.server_receives("INPUT:3/policy", n),
        ),
    )


def _all_unanswered(family: int) -> list[Scenario]:
    n = COUNT
    return [
        _unanswered("GRE", family, lambda net, dst: traffic.gre(net.client, dst, n), 8, 1),
        _unanswered("ESP", family, lambda net, dst: traffic.esp(net.client, dst, n), 9, 1),
        _unanswered("SCTP", family, lambda net, dst: traffic.sctp(net.client, dst, 9, n), 10, n),
        _unanswered("UDP", family, lambda net, dst: traffic.udp(net.client, dst, SINK, n), 7, 1),
    ]


def _fragments(family: int) -> Scenario:
    """4,000 bytes: three fragments on the wire, reassembled in the router by conntrack."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    if family == 4:
        # -f matches the second and third; INPUT sees the reassembled packet.
        arrive = [
            stages.traversal("server", "PREROUTING", "raw", "PREROUTING:2/policy", n),
            stages.traversal(
                "server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 2 * n
            ),
            stages.traversal("server", "INPUT", "filter", "INPUT:3/policy", n),
        ]
    else:
        # -m frag matches all three; IPv6 reassembles after INPUT.
        arrive = [
            stages.traversal(
                "server", "PREROUTING", "raw", "PREROUTING:1 PREROUTING:2/policy", 3 * n
            ),
            stages.traversal("server", "INPUT", "filter", "INPUT:3/policy", 3 * n),
        ]
    return Scenario(
        "fragments",
        family,
        lambda net: traffic.udp(net.client, server, SINK, n, payload=bytes(4000)),
        traffic.Counts(n),
        (
            *stages.client_sends(n),
            *stages.arrive(n, 1),
            *stages.forward(f"{stages.VETTED} FORWARD:3 SERVICES:7", n),
            *stages.leave(n, 1),
            *arrive,
        ),
    )


def _closed_port(family: int) -> Scenario:
    """The server's ICMP errors return through the router as RELATED."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "ICMP errors for a closed port",
        family,
        lambda net: traffic.udp(net.client, server, CLOSED, n),
        traffic.Counts(n),
        (
            *stages.client_sends(n),
            *stages.arrive(n, 1),
            *stages.forward(f"{stages.VETTED} FORWARD:3 SERVICES:7", n),
            *stages.leave(n, 1),
            *stages.server_receives("INPUT:3/policy", n),
            *stages.reply("FORWARD:1 SITE-RULES:2 FORWARD:2", n),
        ),
    )


def _expired(family: int) -> Scenario:
    """The router sends the ICMP error before FORWARD."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "time exceeded",
        family,
        lambda net: traffic.udp(net.client, server, SINK, n, ttl=1),
        traffic.Counts(n),
        (*stages.client_sends(n), *stages.arrive(n, n), *stages.router_sends(n)),
    )


def _untracked(family: int) -> Scenario:
    """CT --notrack: no nat table, so the client's address is not masqueraded."""
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "untracked",
        family,
        lambda net: traffic.udp(net.client, server, SYSLOG, n),
        traffic.Counts(n),
        (
            *stages.client_sends(n),
            *stages.arrive(n, 0, raw="PREROUTING:2 PREROUTING:3/policy"),
            *stages.forward(f"{stages.VETTED} FORWARD:2", n),
            *stages.leave(n, 0),
            *stages.server_receives("INPUT:3/policy", n),
        ),
    )


def scenarios(family: int | None = None) -> list[Scenario]:
    """Returns all scenarios, or those of family 4 or 6."""
    found: list[Scenario] = []
    for each in (4, 6) if family is None else (family,):
        found += [
            _ping(each),
            _ping_router(each),
            _banned(each),
            *_all_rejected_by_router(each),
            *_rejected_by_sender(each),
            _port_forward(each),
            *_all_unanswered(each),
            _fragments(each),
            _closed_port(each),
            _expired(each),
            _untracked(each),
        ]
        if each == 6:
            found.append(_ping(6, "ping with destination options", options=True))
    return found


def synproxy(family: int) -> Scenario:
    """Returns SYNs that SYNPROXY steals and answers, on a network after add_synproxy().

    The client has no socket for the SYN+ACK, so its kernel sends a reset, which
    does not match SYNPROXY's rule and is dropped by the next one.
    """
    server = at.SERVER4 if family == 4 else at.SERVER6
    n = COUNT
    return Scenario(
        "stolen by SYNPROXY",
        family,
        lambda net: traffic.syn(net.client, server, SYNPROXY, n),
        traffic.Counts(n),
        (
            *stages.client_sends(2 * n),
            *stages.arrive(n, 0, raw="PREROUTING:1 PREROUTING:4/policy"),
            *stages.forward("FORWARD:1", n, "STOLEN", syn=True),
            *stages.router_sends(n, inside="FORWARD filter"),
            *stages.arrive(n, 0, raw="PREROUTING:4/policy"),
            *stages.forward("FORWARD:1 FORWARD:2", n, "DROP"),
        ),
    )
