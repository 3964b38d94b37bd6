# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts of legacy rules whose target may also drop a packet, or looks like another."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.loopback import until
from tests.netns.netlink_lab import Row, Tracer, in_short, tracing
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import ipv4, send, udp, wired_namespace

RULES = """*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 11:12 -j TPROXY --on-port 1200 --on-ip 0.0.0.0
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 21:22 -j REDIRECT --to-ports 2100
-A POSTROUTING -p udp -m udp --dport 31:32 -j MASQUERADE
COMMIT
"""
LISTENER = 1200
IP_TRANSPARENT = 19


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        yield one


def row(tracer: Tracer, port: int, table: str, hook: str) -> Row:
    """The row of the datagram to `port`, in `table` at `hook`."""

    def of(rows: list[Row]) -> list[Row]:
        at = {"dport": port, "table": table, "hook": hook}
        return [one for one in rows if at.items() <= one.items()]

    tracer.wait_until(lambda rows: bool(of(rows)))
    return of(tracer.rows)[0]


def test_a_target_that_dropped_the_packet_has_no_verdict_and_accept_if_it_did_not(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.run("iptables-legacy-restore", input=RULES)
    of = {
        11: ("10.9.0.1", "mangle", "PREROUTING"),
        21: ("10.9.0.1", "nat", "PREROUTING"),
        31: ("10.7.0.1", "nat", "POSTROUTING"),
    }
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        # GIVEN neither a listener nor an address WHEN packets come THEN they are dropped
        for port, (destination, *_) in of.items():
            send(namespace, ipv4(17, destination, udp(port), number=port))
        rows = {port: row(tracer, port, *where) for port, (_, *where) in of.items()}
        assert {port: one["verdict"] for port, one in rows.items()} == dict.fromkeys(of)
        # GIVEN a listener and addresses THEN they are accepted
        for device in ("near", "out"):
            namespace.run("ip", "addr", "add", "10.5.0.1/32", "dev", device)
        with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            listener.bind(("", LISTENER))
            for port, (destination, *_) in of.items():
                send(namespace, ipv4(17, destination, udp(port + 1), number=port + 1))
            later = {port: row(tracer, port + 1, *where) for port, (_, *where) in of.items()}
        tracer.finish()
    assert {port: one["verdict"] for port, one in later.items()} == dict.fromkeys(of, "ACCEPT")
    dropped = {(one["hook"], one["dport"]) for one in tracer.rows if one["dport"] in of}
    assert not dropped & {("INPUT", 11), ("INPUT", 21), ("FORWARD", 11), ("FORWARD", 21)}


def test_a_rule_that_masquerades_and_was_added_meanwhile_has_its_verdict(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.run("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp")
    namespace.run("ip", "addr", "add", "10.5.0.1/32", "dev", "out")
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        masquerade = ["-A", "POSTROUTING", "-p", "udp", "-j", "MASQUERADE"]
        namespace.run("iptables-legacy", "-t", "nat", *masquerade)
        until(lambda: "chain passed" in namespace.run("nft", "list", "ruleset"), "the chain")
        send(namespace, ipv4(17, "10.7.0.1", udp(51)))
        found = row(tracer, 51, "nat", "POSTROUTING")
        tracer.finish()
    assert in_short(found) == "POSTROUTING nat POSTROUTING:1 ACCEPT"


def test_a_comment_that_looks_like_a_target_is_none(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    rule = ["-A", "PREROUTING", "-p", "udp", "--dport", "41", "-m", "comment", "--comment", "-j"]
    namespace.run("iptables-legacy", "-t", "mangle", *rule, "-j", "DROP")
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        send(namespace, ipv4(17, "10.9.0.1", udp(41)))
        tracer.wait(1)
        tracer.finish()
    assert [in_short(one) for one in tracer.rows] == ["PREROUTING mangle PREROUTING:1 DROP"]
    assert tracer.rows[0]["rule"] == "-p udp -m udp --dport 41 -m comment --comment -j -j DROP"
