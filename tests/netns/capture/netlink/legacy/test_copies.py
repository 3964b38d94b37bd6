# SPDX-License-Identifier: GPL-2.0-only
"""A packet that TEE copies has one row of each table, and each copy is another packet."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.targets import THERE
from tests.netns.netlink_lab import Tracer, in_short, tracing
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import ipv4, ipv6, send, udp, wired_namespace

COUNT = 7
RULES = """*mangle
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:copied -
-A PREROUTING -p udp --dport 9 -j copied
-A copied
-A copied -j TEE --gateway {there}
-A copied -j TEE --gateway {there}
COMMIT
"""
PACKETS = {4: ipv4(17, "10.9.1.1", udp(9)), 6: ipv6(17, "fd09::1:1", udp(9))}


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        yield one


def journeys(tracer: Tracer, count: int) -> list[list[str]]:
    """Waits for `count` rows of datagrams to port 9: the rows of each packet."""
    tracer.wait_until(lambda rows: sum(row["dport"] == 9 for row in rows) >= count)
    found: dict[str, list[str]] = defaultdict(list)
    for row in tracer.finish():
        if row["dport"] == 9:
            found[row["journey"]].append(in_short(row))
    return list(found.values())


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("expr", ["", "udp dst port 9"], ids=["all", "filtered"])
def test_a_copy_is_another_packet(
    namespace: RulesetNamespace, tmp_path: Path, family: int, expr: str
) -> None:
    command = f"ip{'6' if family == 6 else ''}tables-legacy-restore"
    namespace.run(command, input=RULES.format(there=THERE[family]))
    with tracing(tmp_path, Path(namespace.path).name, *([expr] if expr else [])) as tracer:
        for _ in range(COUNT):
            send(namespace, PACKETS[family])
        found = journeys(tracer, 6 * COUNT)
    # THEN original and copies are three journeys, each complete
    path = "PREROUTING:1 copied:1 copied:2 copied:3 copied:4/return PREROUTING:2/policy"
    original = [f"PREROUTING mangle {path} ACCEPT", "INPUT mangle INPUT:1/policy ACCEPT"]
    copy = [
        "OUTPUT mangle OUTPUT:1/policy ACCEPT",
        "POSTROUTING mangle POSTROUTING:1/policy ACCEPT",
    ]
    assert sorted(found) == sorted([original] * COUNT + [copy] * 2 * COUNT)


@pytest.mark.parametrize("hook", ["OUTPUT", "POSTROUTING"])
def test_a_copy_that_passes_the_table_that_makes_it_is_another_packet(
    namespace: RulesetNamespace, tmp_path: Path, hook: str
) -> None:
    # GIVEN a rule with TEE that the copy meets as well, though it is not copied again
    rule = f"-A {hook} -p udp --dport 9 -j TEE --gateway {THERE[4]}\n-A {hook}"
    namespace.run("iptables-legacy-restore", input=f"*mangle\n{rule}\nCOMMIT\n")
    with tracing(tmp_path, Path(namespace.path).name, "udp dst port 9") as tracer:
        with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("10.9.1.1", 0))
            for n in range(COUNT):
                sender.sendto(bytes(n), ("10.7.0.1", 9))
        found = journeys(tracer, 4 * COUNT)
    # THEN each of the two has one row of each table
    paths = {"OUTPUT": "OUTPUT:1/policy", "POSTROUTING": "POSTROUTING:1/policy"}
    paths[hook] = f"{hook}:1 {hook}:2 {hook}:3/policy"
    each = [f"{one} mangle {path} ACCEPT" for one, path in paths.items()]
    assert found == [each] * 2 * COUNT
