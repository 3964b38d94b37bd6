# SPDX-License-Identifier: GPL-2.0-only
"""Calls of both engines become one journey, in the order in which the packet met the chains."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.combined import FIRST, JourneyJoiner
from ipttrace.capture.netlink.events import EVENT
from ipttrace.netfilter import ACCEPT, DROP
from tests.data.records import MONO, entry, leave, rule, udp, v4

PACKET = v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, b"payload"))
JOURNEY = FIRST + 7


@pytest.mark.parametrize(
    ("legacy", "nft", "expected"),
    [
        (DROP, ACCEPT, ["nft", "legacy"]),
        (ACCEPT, DROP, ["legacy", "nft"]),
    ],
)
def test_nothing_follows_a_drop_if_both_engines_have_a_chain_of_one_priority(
    legacy: int, nft: int, expected: list[str]
) -> None:
    # GIVEN a packet at INPUT, in the legacy table filter and an nft chain of priority 0
    of = {"hook": 1, "family": 2}
    kernel = [entry(1, 500, PACKET, **of), rule(1, 0, b"INPUT", 1), leave(1, 1, legacy, at=600)]
    call = FIRST + 1
    netlink = [
        entry(call, 900, PACKET, skb=JOURNEY, source=1, tables=1, **of),
        rule(call, 0, b"in", 1),
        leave(call, 1, nft, at=901, skb=JOURNEY),
    ]
    flips = np.zeros(1, EVENT)
    flips["journey"], flips["time"], flips["iif"] = JOURNEY, MONO, 2
    flips["caplen"] = len(PACKET)
    flips["packet"][0, : len(PACKET)] = np.frombuffer(PACKET, np.uint8)
    # WHEN their calls are joined
    joined = JourneyJoiner().join(kernel, netlink, np.zeros(1, np.int32), flips)
    # THEN they are one journey, and the call that dropped the packet is the last
    assert joined.tolist() == [True]
    assert netlink[0]["skb"] == kernel[0]["skb"]
    times = {"legacy": int(kernel[0]["time"][0]), "nft": int(netlink[0]["time"][0])}
    assert sorted(times, key=times.__getitem__) == expected
