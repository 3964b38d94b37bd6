# SPDX-License-Identifier: GPL-2.0-only
"""A packet that a legacy rule changes stays one packet, and its run through a table one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.netlink_lab import Tracer, in_short, tracing
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import ipv4, ipv6, send, tcp, udp, wired_namespace

SYN, ECE, CWR = 0x02, 0x40, 0x80
MSS = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000"
CHANGES = {
    "TCPMSS adds an option": (4, MSS, ipv4(6, "10.7.0.1", tcp(80, SYN))),
    "TCPMSS of IPv6": (6, MSS, ipv6(6, "fd07::1", tcp(80, SYN))),
    "ECN": (4, "-p tcp -j ECN --ecn-tcp-remove", ipv4(6, "10.7.0.1", tcp(80, SYN | ECE | CWR))),
    "TTL": (4, "-j TTL --ttl-inc 3", ipv4(17, "10.7.0.1", udp(9))),
    "HL": (6, "-j HL --hl-set 9", ipv6(17, "fd07::1", udp(9))),
    "TOS": (4, "-j TOS --set-tos 0x13", ipv4(17, "10.7.0.1", udp(9))),
    "TOS of IPv6": (6, "-j TOS --set-tos 0x13", ipv6(17, "fd07::1", udp(9))),
    "DSCP": (4, "-j DSCP --set-dscp 9", ipv4(17, "10.7.0.1", udp(9))),
    "CHECKSUM": (4, "-p udp -j CHECKSUM --checksum-fill", ipv4(17, "10.7.0.1", udp(9))),
    "DNPT": (
        6,
        "-d fd06::/64 -j DNPT --src-pfx fd06::/64 --dst-pfx fd07:1::/64",
        ipv6(17, "fd06::1", udp(9)),
    ),
}


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        yield one


def at_hook(tracer: Tracer, hook: str, count: int) -> None:
    tracer.wait_until(lambda rows: sum(row["hook"] == hook for row in rows) >= count)


@pytest.mark.parametrize("of", CHANGES)
def test_a_run_through_a_table_is_one_row_though_a_rule_changes_the_packet(
    namespace: RulesetNamespace, tmp_path: Path, of: str
) -> None:
    family, rule, packet = CHANGES[of]
    rules = f"""*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING
-A PREROUTING {rule}
-A PREROUTING
-A PREROUTING -j MARK --set-xmark 0x1/0x1
COMMIT
"""
    six = "6" if family == 6 else ""
    namespace.run(f"ip{six}tables-legacy-restore", input=rules)
    expr = "dst port 9 or dst port 80"
    with tracing(tmp_path, Path(namespace.path).name, expr) as tracer:
        for _ in range(3):
            send(namespace, packet)
        at_hook(tracer, "POSTROUTING", 3)
        tracer.finish()
    assert [in_short(row) for row in tracer.rows] == [
        f"PREROUTING mangle {' '.join(f'PREROUTING:{n}' for n in (1, 2, 3, 4))} "
        "PREROUTING:5/policy ACCEPT",
        "FORWARD mangle FORWARD:1/policy ACCEPT",
        "POSTROUTING mangle POSTROUTING:1/policy ACCEPT",
    ] * 3
