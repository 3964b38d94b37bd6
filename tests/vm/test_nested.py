# SPDX-License-Identifier: GPL-2.0-only
"""Packets that a target sends from inside a call: two calls at once, each with its own."""

from __future__ import annotations

from collections import Counter

import pytest

from ipttrace.lab import scenarios
from ipttrace.lab.network import Network
from ipttrace.lab.scenarios import COUNT, Scenario, Traversal
from ipttrace.stream.record import F_SOFTIRQ
from ipttrace.trace.row import Row
from tests.vm.conftest import Capture, captured, seen

# What is refused, and what is sent to say so; the call that does it, and whether it
# runs in a softirq (what is forwarded) or in the context of who sends.
ERRORS = "icmp or icmp6"
FORWARD, OUTPUT = ("FORWARD", "filter"), ("OUTPUT", "filter")
REFUSED = [
    ("rejected with a reset", "tcp dst port 25", "tcp src port 25", FORWARD, True),
    ("rejected with an ICMP error", "udp dst port 161", ERRORS, FORWARD, True),
    ("rejected at home with a reset", "tcp dst port 23", "tcp src port 23", OUTPUT, False),
    ("rejected at home with an ICMP error", "udp dst port 69", ERRORS, OUTPUT, False),
]
CASES = pytest.mark.parametrize(
    ("name", "outer", "inner", "place", "softirq"), REFUSED, ids=[case[0] for case in REFUSED]
)
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


def scenario(name: str, family: int) -> Scenario:
    return next(one for one in scenarios.scenarios(family) if one.name == name)


def is_answer(one: Traversal) -> bool:
    """Is it of the packet that says no, which is made inside or arrives at the client?"""
    return one.inside is not None or (one.role, one.hook) == ("client", "INPUT")


def traced(network: Network, one: Scenario, expr: str, expected: list[Traversal]) -> Capture:
    """The capture of the scenario under `expr`, which saw what was expected and nothing else."""
    wanted = scenarios.tally(expected)
    with captured(expr) as capture:
        assert one.run(network) == one.sent
        capture.wait_rows(wanted.total(), set(network.inodes().values()))
    assert seen(capture.rows, network) == wanted
    return capture


def in_softirq(capture: Capture) -> dict[int, bool]:
    """call → was it made in a softirq."""
    store = capture.trace.store
    flags = store.column("flags") & F_SOFTIRQ
    return dict(zip(store.column("call").tolist(), (flags != 0).tolist(), strict=True))


@CASES
@FAMILIES
def test_both_the_refused_packet_and_the_answer_have_rows_of_their_own(
    network: Network,
    family: int,
    name: str,
    outer: str,
    inner: str,
    place: tuple[str, str],
    softirq: bool,
) -> None:
    one = scenario(name, family)
    capture = traced(network, one, f"{outer} or {inner}", list(one.expected))

    # THEN the answer's calls are inside that of the packet which is refused
    rows = {row.call: row for row in capture.rows}
    inside: Counter = Counter()
    for row in rows.values():
        if row.parent is not None:
            around = rows[row.parent]
            assert (around.hook, around.table, around.verdict) == (*place, "DROP")
            assert around.netns == row.netns
            assert around.skb != row.skb
            assert around.journey != row.journey
            # its records are of a time within the other's
            assert around.time < row.time
            inside[row.parent] += 1
    made = [each for each in one.expected if each.inside is not None]
    assert sum(inside.values()) == sum(each.count for each in made)
    # AND each of the 23 refused packets has the same calls in it
    assert list(inside.values()) == [len(made)] * COUNT

    # AND they nest, in the context where it belongs
    assert capture.books["depth"] >= 2
    softly = in_softirq(capture)
    assert {softly[call] for call in inside} == {softirq}
    assert {softly[row.call] for row in rows.values() if row.parent is not None} == {softirq}


@CASES
@FAMILIES
def test_a_filter_for_the_refused_packet_leaves_out_its_answer(
    network: Network,
    family: int,
    name: str,
    outer: str,
    inner: str,
    place: tuple[str, str],
    softirq: bool,
) -> None:
    one = scenario(name, family)
    expected = [each for each in one.expected if not is_answer(each)]
    capture = traced(network, one, outer, expected)
    assert {row.parent for row in capture.rows} == {None}
    assert capture.books["depth"] == 1
    refused = [row for row in capture.rows if row.verdict == "DROP"]
    assert {(row.hook, row.table) for row in refused} == {place}
    assert len(refused) == COUNT


@CASES
@FAMILIES
def test_a_filter_for_the_answer_leaves_out_the_refused_packet(
    network: Network,
    family: int,
    name: str,
    outer: str,
    inner: str,
    place: tuple[str, str],
    softirq: bool,
) -> None:
    one = scenario(name, family)
    expected = [each for each in one.expected if is_answer(each)]
    capture = traced(network, one, inner, expected)
    # THEN what it was made inside of is not known, for it was never traced
    assert {row.parent for row in capture.rows} == {None}
    assert {row.verdict for row in capture.rows} == {"ACCEPT"}
    assert capture.books["depth"] == 1


def test_packets_that_synproxy_steals_say_so_and_are_not_looked_at_again() -> None:
    # GIVEN a network whose router proxies SYNs, answering from inside the call
    with Network("ipt-syn") as network:
        network.add_synproxy()
        both = [scenarios.synproxy(family) for family in (4, 6)]
        expected = [each for one in both for each in one.expected]
        with captured() as capture:
            for one in both:
                assert one.run(network) == one.sent
            capture.wait_rows(scenarios.tally(expected).total(), set(network.inodes().values()))
        assert seen(capture.rows, network) == scenarios.tally(expected)
    # THEN the verdict is STOLEN, and the answer is inside that call
    rows: dict[int, Row] = {row.call: row for row in capture.rows}
    stolen = {row.call for row in rows.values() if row.verdict == "STOLEN"}
    assert len(stolen) == 2 * COUNT
    assert {row.parent for row in rows.values() if row.parent is not None} == stolen
    # AND nothing of the stolen packet comes after it
    for call in stolen:
        same = [row for row in rows.values() if row.journey == rows[call].journey]
        assert max(same, key=lambda row: row.time).call == call
