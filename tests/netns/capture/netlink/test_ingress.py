# SPDX-License-Identifier: GPL-2.0-only
"""Chains at the ingress of devices: packets meet them before all others, in the same journey."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.wire import ipv4, ipv6, transmit, udp
from tests.netns.netlink_lab import Row, hits, in_short, tracing
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import wired_namespace

COUNT = 23
# Other devices' packets meet none of these; `far` sends what `near` receives.
RULES = """
table netdev guard {
    chain early { type filter hook ingress devices = { near, sink } priority -300; policy accept;
        udp dport 7 counter drop
        meta l4proto udp counter
    }
    chain leaves { type filter hook egress device out priority 0; policy accept;
        meta l4proto udp counter
    }
}
table inet both {
    chain late { type filter hook ingress device near priority 10; policy accept;
        udp dport 9 counter
    }
    chain pre { type filter hook prerouting priority 0; policy accept; udp dport 9 counter; }
}
"""
LATER = """
table netdev later {
    chain sent { type filter hook ingress device sink priority 0; policy accept; counter; }
}
delete table netdev guard
"""


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        one.nft(RULES)
        # Behind `out` is somebody whose packets `sink` gets to see, and does not take.
        neighbour = "lladdr 02:00:00:00:00:77 dev out"
        one.run("ip", "neigh", "add", "10.7.0.9", *neighbour.split())
        yield one


def packets() -> list[bytes]:
    """Each kind: accepted here, forwarded, of IPv6, and dropped at the ingress."""
    kinds = (
        ipv4(17, "10.9.0.9", udp(9)),
        ipv4(17, "10.7.0.9", udp(9)),
        ipv6(17, "fd09::9", udp(9)),
        ipv4(17, "10.9.0.9", udp(7)),
    )
    return [kind for _ in range(COUNT) for kind in kinds]


def journeys(rows: list[Row]) -> dict[tuple[str, ...], int]:
    """How many packets had which rows, in order."""
    each: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        each[row["journey"]].append(in_short(row))
    found: dict[tuple[str, ...], int] = defaultdict(int)
    for one in each.values():
        found[tuple(one)] += 1
    return dict(found)


EARLY = "INGRESS guard early:2 early:3/policy ACCEPT"
LATE = "INGRESS both late:1 late:2/policy ACCEPT"
PRE = "PREROUTING both pre:1 pre:2/policy ACCEPT"
LEAVES = "EGRESS guard leaves:1 leaves:2/policy ACCEPT"


def counters(namespace: RulesetNamespace) -> list[int]:
    """What nftables has counted, of each counter in the order of RULES."""
    tables = ("netdev guard", "inet both")
    listed = [namespace.run("nft", "list", "table", *table.split()) for table in tables]
    return [int(one) for one in re.findall(r"packets (\d+)", "".join(listed))]


# The second is more than nftables can say itself: xt_bpf runs it.  Neighbour discovery, which
# may come any time, is in neither.
@pytest.mark.parametrize(
    "expr", ["udp", "(udp[2:2] < 10 or src host fd05::5) and not host 10.5.0.1"]
)
def test_a_packet_is_followed_from_the_devices_ingress_on(
    namespace: RulesetNamespace, tmp_path: Path, expr: str
) -> None:
    before = counters(namespace)
    with tracing(tmp_path, Path(namespace.path).name, expr) as tracer:
        with namespace.enter():
            transmit(packets())
        tracer.wait(COUNT * (3 + 4 + 1 + 3 + 1))
        after = counters(namespace)
        rows = tracer.finish()
    assert journeys(rows) == {
        (EARLY, LATE, PRE): 2 * COUNT,
        (EARLY, LATE, PRE, LEAVES): COUNT,
        (EARLY,): COUNT,
        ("INGRESS guard early:1 DROP",): COUNT,
    }
    # THEN nftables has counted as many
    seen = hits(rows)
    rules = [("guard", "early", 1), ("guard", "early", 2), ("guard", "leaves", 1)]
    rules += [("both", "late", 1), ("both", "pre", 1)]
    counted = [now - then for now, then in zip(after, before, strict=True)]
    assert counted == [seen[rule] for rule in rules]


def test_devices_whose_chains_come_and_go_while_tracing(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # (Neighbour discovery, which may come any time, is left out.)
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        # WHEN one table takes the other's place, at another device
        namespace.nft(LATER)
        with namespace.enter():
            deadline = time.monotonic() + 60
            while not any(row["table"] == "later" for row in tracer.rows):
                assert time.monotonic() < deadline, tracer.rows
                transmit([ipv4(17, "10.7.0.9", udp(9))])
                tracer.wait(len(tracer.rows) + 1)
            transmit([ipv4(17, "10.7.0.9", udp(9))])
        tracer.wait_until(lambda rows: sum(row["table"] == "later" for row in rows) >= 2)
        rows = tracer.finish()
    # THEN its rows follow those of the same packet's tables before
    assert [row["table"] for row in rows[-3:]] == ["both", "both", "later"]
    assert rows[-1]["hook"] == "INGRESS"
    assert rows[-1]["in"] == "sink"
