# SPDX-License-Identifier: GPL-2.0-only
"""With both engines, a copy that TEE sends and its original are packets of their own.

Behind test_two_engines.py by name, for the same reason.
"""

from __future__ import annotations

from collections import defaultdict

from ipttrace.lab.network.ns import call_in, run_in
from ipttrace.trace.row import Row
from tests.lab.cases import packet
from tests.lab.targets import THERE, UDP
from tests.lab.wire import transmit, udp
from tests.vm.conftest import SHARED, captured
from tests.vm.texts import in_short
from tests.vm.wired import wired

pytestmark = SHARED

COUNT = 7
TO = {4: "10.9.1.1", 6: "fd09::1:1"}
LEGACY = """*mangle
-A PREROUTING -p udp --dport 9 -j TEE --gateway {there}
COMMIT
"""
NFT = """table inet beside {
    chain in { type filter hook input priority 0; }
    chain out { type filter hook output priority 0; }
}
"""


def test_original_and_copy_are_two_journeys_with_rows_of_both_engines(pair: str) -> None:
    # GIVEN a legacy rule with TEE, and chains of nftables that original and copy meet
    with wired() as plain:
        for family, there in THERE.items():
            plain.load(LEGACY.format(there=there), family)
        run_in(plain.name, ["nft", "-f", "-"], text=NFT)
        # WHEN datagrams come
        sent = [
            packet(family, UDP, udp(9))(to, n) for family, to in TO.items() for n in range(COUNT)
        ]
        with captured("udp dst port 9", netns=plain.name, engine="auto") as capture:
            call_in(plain.name, lambda: transmit(sent))
            capture.wait_rows(6 * len(sent), {plain.inode})
    journeys: dict[int, list[Row]] = defaultdict(list)
    for row in capture.rows:
        journeys[row.journey].append(row)
    # THEN each is complete, in the order in which it met tables and chains
    original = [
        "PREROUTING mangle PREROUTING:1 PREROUTING:2/policy ACCEPT",
        "INPUT mangle INPUT:1/policy ACCEPT",
        "INPUT beside in:1/policy ACCEPT",
    ]
    copy = [
        "OUTPUT mangle OUTPUT:1/policy ACCEPT",
        "OUTPUT beside out:1/policy ACCEPT",
        "POSTROUTING mangle POSTROUTING:1/policy ACCEPT",
    ]
    found = sorted([in_short(row) for row in rows] for rows in journeys.values())
    assert found == sorted([original, copy] * len(sent))
    assert capture.trace.engine == pair
