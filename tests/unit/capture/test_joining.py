# SPDX-License-Identifier: GPL-2.0-only
"""Calls of both engines become one journey, in the order in which the packet met the chains."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.combined import FIRST
from ipttrace.capture.joining import JourneyJoiner
from ipttrace.capture.netlink.events import EVENT, ChainKey
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.netlink.nft.generations import Generations
from ipttrace.netfilter import ACCEPT, DROP
from ipttrace.stream.record import F_FIRST
from tests.data.records import MONO, Array, entry, joined, leave, rule, udp, v4

PACKET = v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, b"payload"))
JOURNEY = FIRST + 7


def flipped() -> Array:
    """The flip table's event of PACKET."""
    flips = np.zeros(1, EVENT)
    flips["journey"], flips["time"], flips["iif"] = JOURNEY, MONO, 2
    flips["caplen"] = len(PACKET)
    flips["packet"][0, : len(PACKET)] = np.frombuffer(PACKET, np.uint8)
    return flips


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
    flips = flipped()
    # WHEN their calls are joined
    found = JourneyJoiner().join(kernel, netlink, np.zeros(1, np.int32), flips)
    # THEN they are one journey, and the call that dropped the packet is the last
    assert found.tolist() == [True]
    assert netlink[0]["skb"] == kernel[0]["skb"]
    times = {"legacy": int(kernel[0]["time"][0]), "nft": int(netlink[0]["time"][0])}
    assert sorted(times, key=times.__getitem__) == expected


def test_a_copy_and_its_original_are_two_journeys_in_both_engines() -> None:
    # GIVEN a packet that TEE copies in PREROUTING, and two calls of its copy inside that call
    original, copy = JOURNEY, JOURNEY + 1
    flips = np.concatenate([flipped(), flipped()])
    flips["journey"], flips["time"] = [original, copy], [MONO, MONO + 15]
    flips["iif"] = [2, 0]
    inside = {"skb": 0x2000, "parent": 1, "depth": 1}
    places = [
        # The flag is the module's: it finds copies by itself.
        (1, 10, {"hook": 0, "table": b"mangle", "flags": 0}),
        (2, 20, {"hook": 3, "table": b"mangle", **inside}),
        (3, 40, {"hook": 4, "table": b"mangle", "flags": 0, **inside}),
        (4, 60, {"hook": 1, "table": b"mangle", "flags": 0}),
    ]
    kernel = [
        joined(*(entry(call, at, PACKET, **of) for call, at, of in places)),
        joined(*(rule(call, 0, b"A", 1) for call, _, _ in places)),
        joined(*(leave(call, 1, at=at + 1) for call, at, _ in places)),
    ]
    # AND a call of nftables of each
    calls = {FIRST: (original, 1), FIRST + 1: (copy, 3)}
    netlink = [
        joined(
            *(
                entry(call, 900, PACKET, skb=journey, source=1, tables=1, hook=hook, flags=0)
                for call, (journey, hook) in calls.items()
            )
        ),
        joined(*(rule(call, 0, b"c", 1) for call in calls)),
        joined(*(leave(call, 1, at=901, skb=of[0]) for call, of in calls.items())),
    ]
    found = JourneyJoiner().join(kernel, netlink, np.zeros(2, np.int32), flips)
    # THEN each call of nftables is joined to its own packet, behind the table of its hook
    assert found.all()
    assert netlink[0]["skb"].tolist() == [0x1000, 0x2000]
    times = (netlink[0]["time"] - MONO).tolist()
    assert times[0] > 60
    assert 20 < times[1] < 40
    # AND of each packet only the first call begins a journey
    first = kernel[0]["flags"] & F_FIRST != 0
    assert first.tolist() == [True, True, False, False]
    assert not (netlink[0]["flags"] & F_FIRST).any()


@pytest.mark.parametrize("skbs", [(0x1000, 0x1000), (0x1000, 0x2000)])
def test_packets_that_look_the_same_are_two_journeys(skbs: tuple[int, int]) -> None:
    # GIVEN two packets without a difference, each in the one table and in a chain behind it
    flips = np.concatenate([flipped(), flipped()])
    flips["journey"] += np.arange(2, dtype=np.uint64)
    of = {"hook": 1, "flags": 0}
    kernel = [
        joined(*(entry(1 + n, 10 + 50 * n, PACKET, skb=skb, **of) for n, skb in enumerate(skbs))),
        joined(*(rule(1 + n, 0, b"INPUT", 1) for n in range(2))),
        joined(*(leave(1 + n, 1) for n in range(2))),
    ]
    nft = {"source": 1, "tables": 1, **of}
    netlink = [
        joined(*(entry(FIRST + n, 900, PACKET, skb=JOURNEY + n, **nft) for n in range(2))),
        joined(*(rule(FIRST + n, 0, b"in", 1) for n in range(2))),
        joined(*(leave(FIRST + n, 1, skb=JOURNEY + n) for n in range(2))),
    ]
    found = JourneyJoiner().join(kernel, netlink, np.zeros(2, np.int32), flips)
    # THEN both calls of the first come before the second, which begins a journey
    assert found.all()
    assert netlink[0]["skb"].tolist() == list(skbs)
    times = netlink[0]["time"] - MONO
    assert 10 < times[0] < 60 < times[1]
    assert (kernel[0]["flags"] & F_FIRST != 0).all()


def test_a_clone_without_a_flip_is_not_taken_for_the_packet_that_it_looks_like() -> None:
    # GIVEN a packet, and behind it one at another address that looks the same
    kernel = [
        joined(
            entry(1, 10, PACKET, hook=1, flags=0), entry(2, 60, PACKET, skb=0x2000, hook=1, flags=0)
        ),
        joined(rule(1, 0, b"INPUT", 1), rule(2, 0, b"INPUT", 1)),
        joined(leave(1, 1), leave(2, 1)),
    ]
    netlink = [
        entry(FIRST, 900, PACKET, skb=JOURNEY, source=1, tables=1, hook=1),
        rule(FIRST, 0, b"in", 1),
        leave(FIRST, 1, skb=JOURNEY),
    ]
    JourneyJoiner().join(kernel, netlink, np.zeros(1, np.int32), flipped())
    # THEN only the first is joined with nftables' call, and the other is a packet of its own
    assert netlink[0]["skb"].tolist() == [0x1000]
    assert 10 < int(netlink[0]["time"][0]) - MONO < 60
    assert (kernel[0]["flags"] & F_FIRST != 0).all()


def test_a_packet_that_is_sent_does_not_continue_one_received_at_its_address() -> None:
    # GIVEN a packet that is received, and a copy of another that looks the same, at the address
    # that the first one had
    flips = np.concatenate([flipped(), flipped()])
    flips["journey"] += np.arange(2, dtype=np.uint64)
    flips["iif"] = [2, 0]
    hooks = [1, 3]
    kernel = [
        joined(
            *(entry(1 + n, 10 + 50 * n, PACKET, hook=hook, flags=0) for n, hook in enumerate(hooks))
        ),
        joined(*(rule(1 + n, 0, b"A", 1) for n, _ in enumerate(hooks))),
        joined(*(leave(1 + n, 1) for n, _ in enumerate(hooks))),
    ]
    nft = {"source": 1, "tables": 1, "flags": 0}
    netlink = [
        joined(
            *(
                entry(FIRST + n, 900, PACKET, skb=JOURNEY + n, hook=h, **nft)
                for n, h in enumerate(hooks)
            )
        ),
        joined(*(rule(FIRST + n, 0, b"a", 1) for n, _ in enumerate(hooks))),
        joined(*(leave(FIRST + n, 1, skb=JOURNEY + n) for n, _ in enumerate(hooks))),
    ]
    found = JourneyJoiner().join(kernel, netlink, np.zeros(2, np.int32), flips)
    # THEN each has its call of nftables, behind its own table, and begins a journey
    assert found.all()
    times = netlink[0]["time"] - MONO
    assert 10 < times[0] < 60 < times[1]
    assert (kernel[0]["flags"] & F_FIRST != 0).all()


def test_a_call_waits_for_that_of_the_other_engine_which_came_before_it() -> None:
    # GIVEN a packet that was in PREROUTING before, and only now in INPUT, in both engines
    joiner, nothing = JourneyJoiner(), flipped()[:0]

    def table(call: int, at: int, hook: int) -> list[Array]:
        of = {"hook": hook, "flags": 0}
        return [entry(call, at, PACKET, **of), rule(call, 0, b"A", 1), leave(call, 1)]

    earlier, later = table(1, 10, 0), table(2, 900, 1)
    netlink = [
        entry(FIRST, 990, PACKET, skb=JOURNEY, source=1, tables=1, hook=1, flags=0),
        rule(FIRST, 0, b"in", 1),
        leave(FIRST, 1, skb=JOURNEY),
    ]
    priority = np.zeros(1, np.int32)
    # WHEN the first is joined, the table of INPUT is still to come
    found = joiner.join(earlier, netlink, priority, flipped(), later[0])
    # THEN the chain of nftables waits for it, and is then joined behind it
    assert found.tolist() == [False]
    assert joiner.join(later, netlink, priority, nothing, later[0][:0]).tolist() == [True]
    assert netlink[0]["skb"].tolist() == [0x1000]
    assert int(netlink[0]["time"][0]) - MONO > 900
    assert earlier[0]["flags"] & F_FIRST
    assert not later[0]["flags"] & F_FIRST


def order_of(
    before: int, behind: int, kernel_verdict: int, nft_verdicts: list[int]
) -> list[str | int]:
    """The order of rows of the table filter, and of nftables' calls, which are numbers.

    `before`, `behind`: chains of the table's priority, as the module counts them.
    """
    of = {"hook": 1, "family": 2}
    kernel = [
        entry(1, 500, PACKET, nft_before=before, nft_behind=behind, **of),
        rule(1, 0, b"INPUT", 1),
        leave(1, 1, kernel_verdict, at=600),
    ]
    calls = [FIRST + at for at in range(len(nft_verdicts))]
    nft = {"skb": JOURNEY, "source": 1, "tables": 1, **of}
    netlink = [
        joined(*(entry(call, 900, PACKET, **nft) for call in calls)),
        joined(*(rule(call, 0, b"in", 1) for call in calls)),
        joined(
            *(
                leave(call, 1, verdict, at=901, skb=JOURNEY)
                for call, verdict in zip(calls, nft_verdicts, strict=True)
            )
        ),
    ]
    JourneyJoiner().join(kernel, netlink, np.zeros(len(calls), np.int32), flipped())
    times: dict[str | int, int] = {"legacy": int(kernel[0]["time"][0])}
    times |= {at: int(time) for at, time in enumerate(netlink[0]["time"])}
    assert len(set(times.values())) == len(times)
    return sorted(times, key=times.__getitem__)


@pytest.mark.parametrize(
    ("before", "behind", "legacy", "nft", "expected"),
    [
        # all came through
        (0, 2, ACCEPT, [ACCEPT, ACCEPT], ["legacy", 0, 1]),
        (1, 1, ACCEPT, [ACCEPT, ACCEPT], [0, "legacy", 1]),
        (2, 0, ACCEPT, [ACCEPT, ACCEPT], [0, 1, "legacy"]),
        # dropped on the way
        (1, 1, ACCEPT, [ACCEPT, DROP], [0, "legacy", 1]),
        (1, 2, DROP, [ACCEPT], [0, "legacy"]),
        (1, 1, ACCEPT, [ACCEPT], [0, "legacy"]),
    ],
)
def test_calls_of_one_priority_come_as_the_kernel_has_their_hooks(
    before: int, behind: int, legacy: int, nft: list[int], expected: list[str | int]
) -> None:
    assert order_of(before, behind, legacy, nft) == expected


@pytest.mark.parametrize(
    ("before", "behind", "nft"),
    [
        (2, 0, [ACCEPT]),  # a call is missing: which one is unknown
        (1, 0, [ACCEPT, ACCEPT]),  # one too many
        (1, 0, [DROP]),  # what dropped the packet did not come first
        (255, 255, [ACCEPT, ACCEPT]),
    ],
)
def test_if_calls_and_hooks_disagree_none_of_nftables_is_said_to_have_come_first(
    before: int, behind: int, nft: list[int]
) -> None:
    assert order_of(before, behind, ACCEPT, nft) == ["legacy", *range(len(nft))]


@pytest.mark.parametrize(
    ("hook", "priority", "table", "expected"),
    [
        # before mangle by its priority, at dstnat by its type
        (0, -190, b"mangle", ["legacy", "nft"]),
        # behind filter, but at dstnat
        (3, 50, b"filter", ["nft", "legacy"]),
        # before filter, but at srcnat
        (1, -50, b"filter", ["legacy", "nft"]),
        (4, -160, b"mangle", ["legacy", "nft"]),
    ],
)
def test_a_chain_of_type_nat_comes_where_the_kernel_does_nat(
    hook: int, priority: int, table: bytes, expected: list[str]
) -> None:
    # GIVEN a chain of type nat with a priority of its own, and a legacy table at its hook
    chain = ChainInfo(hook, priority, "nat", ACCEPT, (), [1])
    snapshot = Snapshot(10, {(2, "t"): TableInfo(1, 0, None)}, {(2, "t", "c"): chain})
    location = Generations(snapshot, 1)._search(10, 0, ChainKey(2, b"t", b"c"), 1)
    # AND a packet that both engines report, nftables' row later, as it was read later
    of = {"hook": hook, "family": 2}
    kernel = [
        entry(1, 500, PACKET, **{**of, "table": table}),
        rule(1, 0, b"A", 1),
        leave(1, 1, at=600),
    ]
    call = FIRST + 1
    netlink = [
        entry(call, 900, PACKET, skb=JOURNEY, source=1, tables=2, **of),
        rule(call, 0, b"c", 1),
        leave(call, 1, at=901, skb=JOURNEY),
    ]
    JourneyJoiner().join(kernel, netlink, np.array([location.priority], np.int32), flipped())
    times = {"legacy": int(kernel[0]["time"][0]), "nft": int(netlink[0]["time"][0])}
    assert sorted(times, key=times.__getitem__) == expected
