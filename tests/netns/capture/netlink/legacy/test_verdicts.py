# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts of legacy rules whose target may also drop a packet, or looks like another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.lab.queue import queue
from tests.netns.loopback import until
from tests.netns.netlink_lab import Row, Tracer, in_short, tracing
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import ipv4, send, tcp, udp, wired_namespace

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


@pytest.mark.parametrize(
    ("rules", "destination", "where"),
    [
        ("*nat\n-A PREROUTING -p udp -j REDIRECT", "10.9.0.1", ("nat", "PREROUTING")),
        ("*nat\n-A POSTROUTING -p udp -j MASQUERADE", "10.7.0.1", ("nat", "POSTROUTING")),
        (
            "*mangle\n-A PREROUTING -p udp -j TPROXY --on-port 1",
            "10.9.0.1",
            ("mangle", "PREROUTING"),
        ),
    ],
    ids=["REDIRECT", "MASQUERADE", "TPROXY"],
)
def test_a_row_of_a_target_that_dropped_the_packet_has_the_time_of_its_own_table(
    namespace: RulesetNamespace,
    tmp_path: Path,
    rules: str,
    destination: str,
    where: tuple[str, str],
) -> None:
    # GIVEN a packet that is held in the first table until its row is there
    raw = "*raw\n-A PREROUTING -p udp -j NFQUEUE --queue-num 7\nCOMMIT"
    namespace.run("iptables-legacy-restore", input=f"{raw}\n{rules}\nCOMMIT\n")
    with contextlib.ExitStack() as stack:
        with namespace.enter():
            held = stack.enter_context(queue(7))
        tracer = stack.enter_context(tracing(tmp_path, Path(namespace.path).name, "udp"))
        send(namespace, ipv4(17, destination, udp(61)))
        first = row(tracer, 61, "raw", "PREROUTING")
        # WHEN it goes on, and a later table drops it
        released = datetime.now(UTC)
        held.accept_one()
        last = row(tracer, 61, *where)
        tracer.finish()
    # THEN the table's row has the time of then
    assert (first["verdict"], last["verdict"]) == ("QUEUE", None)
    assert first["journey"] == last["journey"]
    assert wall(first) < released < wall(last)


def wall(row: Row) -> datetime:
    """The row's time, to the microsecond."""
    return datetime.fromisoformat(row["time"][:26] + "+00:00")


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


def test_the_end_of_a_chain_is_a_return_though_the_call_ends_there(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN a rule behind a chain's end whose match drops packets with too short a header
    rules = "-A PREROUTING -p tcp -j own\n-A PREROUTING -p tcp -m tcp --dport 80"
    namespace.run("iptables-legacy-restore", input=f"*mangle\n:own -\n{rules}\nCOMMIT\n")
    with tracing(tmp_path, Path(namespace.path).name, "ip proto 6") as tracer:
        send(namespace, ipv4(6, "10.9.0.1", tcp(80, 2)[:10]))
        tracer.wait(1)
        tracer.finish()
    # THEN the row names that end, and no rule, as none was hit there
    (found,) = tracer.rows
    assert in_short(found) == "PREROUTING mangle PREROUTING:1 own:1/return None"
    assert (found["match"], found["rule"]) == ("return", None)


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
