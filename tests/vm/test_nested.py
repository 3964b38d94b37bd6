# SPDX-License-Identifier: GPL-2.0-only
"""Packets that a target sends from inside a call: each of the two has rows of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ipttrace.lab.network import Network
from ipttrace.stream.record import F_SOFTIRQ
from ipttrace.trace.row import Row
from tests.lab import scenarios
from tests.lab.scenarios import COUNT, Scenario, Traversal
from tests.vm.conftest import SHARED, Capture, captured, seen

pytestmark = SHARED


class Case(NamedTuple):
    """A scenario in which a rule of table filter rejects."""

    name: str
    outer: str  # the filter for the rejected packet
    inner: str  # and for the answer
    hook: str  # of the call that rejects
    softirq: bool  # it runs in one (forwarded packets), or in the context of the sender


ERRORS = "icmp or icmp6"
REJECTED = [
    Case("rejected with a reset", "tcp dst port 25", "tcp src port 25", "FORWARD", True),
    Case("rejected with an ICMP error", "udp dst port 161", ERRORS, "FORWARD", True),
    Case(
        "rejected by the sender with a reset", "tcp dst port 23", "tcp src port 23", "OUTPUT", False
    ),
    Case("rejected by the sender with an ICMP error", "udp dst port 69", ERRORS, "OUTPUT", False),
]
CASES = pytest.mark.parametrize("case", REJECTED, ids=[case.name for case in REJECTED])


def both(name: str) -> list[Scenario]:
    """The scenario over IPv4 and over IPv6."""
    found = [one for one in scenarios.scenarios() if one.name == name]
    assert [one.family for one in found] == [4, 6]
    return found


def is_answer(one: Traversal) -> bool:
    """Whether it is of the answer, which is made inside a call and arrives at the client."""
    return one.inside is not None or (one.role, one.hook) == ("client", "INPUT")


def traced(
    network: Network, pair: list[Scenario], expr: str, wanted: Callable[[Traversal], bool]
) -> Capture:
    """A capture of both with `expr`, whose rows are exactly the wanted traversals."""
    expected = {
        one.family: scenarios.tally(each for each in one.expected if wanted(each)) for one in pair
    }
    with captured(expr) as capture:
        for one in pair:
            assert one.run(network) == one.sent
        total = sum(each.total() for each in expected.values())
        capture.wait_rows(total, set(network.inodes().values()))
    rows = capture.rows
    for family, tally in expected.items():
        assert seen((row for row in rows if row.family == family), network) == tally
    return capture


def in_softirq(capture: Capture) -> dict[int, bool]:
    """call → whether it ran in a softirq."""
    store = capture.trace.store
    flags = store.column("flags") & F_SOFTIRQ
    return dict(zip(store.column("call").tolist(), (flags != 0).tolist(), strict=True))


@CASES
def test_the_rejected_packet_and_the_answer_have_rows_of_their_own(
    network: Network, case: Case
) -> None:
    pair = both(case.name)
    capture = traced(network, pair, f"{case.outer} or {case.inner}", lambda each: True)

    # THEN the answer's calls are inside the call that rejects
    rows = {row.call: row for row in capture.rows}
    inside: Counter[int] = Counter()
    for row in rows.values():
        if row.parent is not None:
            around = rows[row.parent]
            assert (around.hook, around.table, around.verdict) == (case.hook, "filter", "DROP")
            assert around.netns == row.netns
            assert around.skb != row.skb
            assert around.journey != row.journey
            # It starts after the other.
            assert around.time < row.time
            inside[row.parent] += 1
    # AND each of the 23 rejected packets of a family has the same calls inside
    for one in pair:
        made = [each for each in one.expected if each.inside is not None]
        mine = [n for call, n in inside.items() if rows[call].family == one.family]
        assert mine == [len(made)] * COUNT

    # AND they run in the context of the sender, or in a softirq
    assert capture.books["depth"] >= 2
    softly = in_softirq(capture)
    assert {softly[call] for call in inside} == {case.softirq}
    assert {softly[row.call] for row in rows.values() if row.parent is not None} == {case.softirq}


@CASES
def test_a_filter_for_the_rejected_packet_leaves_out_its_answer(
    network: Network, case: Case
) -> None:
    capture = traced(network, both(case.name), case.outer, lambda each: not is_answer(each))
    assert {row.parent for row in capture.rows} == {None}
    assert capture.books["depth"] == 1
    refused = [row for row in capture.rows if row.verdict == "DROP"]
    assert {(row.hook, row.table) for row in refused} == {(case.hook, "filter")}
    assert len(refused) == 2 * COUNT


@CASES
def test_a_filter_for_the_answer_leaves_out_the_rejected_packet(
    network: Network, case: Case
) -> None:
    capture = traced(network, both(case.name), case.inner, is_answer)
    # THEN the call around it is unknown, as it was not traced
    assert {row.parent for row in capture.rows} == {None}
    assert {row.verdict for row in capture.rows} == {"ACCEPT"}
    assert capture.books["depth"] == 1


def test_packets_stolen_by_synproxy_have_that_verdict_and_no_later_rows() -> None:
    # GIVEN a network whose router proxies SYNs, answering from inside the call
    with Network("ipt-syn") as network:
        network.add_synproxy()
        pair = [scenarios.synproxy(family) for family in (4, 6)]
        capture = traced(network, pair, "", lambda each: True)
    # THEN the verdict is STOLEN, and the calls of the answer are inside that call
    rows: dict[int, Row] = {row.call: row for row in capture.rows}
    stolen = {row.call for row in rows.values() if row.verdict == "STOLEN"}
    assert len(stolen) == 2 * COUNT
    assert {row.parent for row in rows.values() if row.parent is not None} == stolen
    # AND the stolen packet has no later row
    for call in stolen:
        same = [row for row in rows.values() if row.journey == rows[call].journey]
        assert max(same, key=lambda row: row.time).call == call
