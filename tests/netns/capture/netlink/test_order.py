# SPDX-License-Identifier: GPL-2.0-only
"""Rows come in the order in which the packet met the chains, as marks and counters prove it.

Of chains of one hook and priority, nftables' or legacy, the kernel calls the one first that
was registered last.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import order
from tests.lab.order import BITS
from tests.netns.netlink_lab import Row, tracing
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def truth_of(namespace: RulesetNamespace) -> tuple[order.Run, order.Truth]:
    def run(argv: list[str], text: str) -> str:
        return namespace.run(*argv, input=text)

    def open_socket(family: int) -> socket.socket:
        with namespace.enter():
            return socket.socket(family, socket.SOCK_DGRAM)

    return run, order.Truth(run, open_socket, list(BITS))


def orders(rows: list[Row], hook: str = "INPUT") -> list[list[str]]:
    """Of each packet: the chains at a hook in the order of its rows, of packets one by one."""
    names = ["legacy" if row["table"] == "filter" else row["table"] for row in rows
             if row["hook"] == hook]  # fmt: skip
    return [names[at : at + len(BITS)] for at in range(0, len(names), len(BITS))]


def has_rows(count: int, rows: list[Row]) -> bool:
    return bool(sum(row["hook"] == "INPUT" for row in rows) >= count)


def test_chains_of_one_priority_come_in_the_order_in_which_they_were_registered(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN two nft chains and the legacy table filter at priority 0, of IPv6 the latter first
    run, truth = truth_of(namespace)
    order.add_legacy(run, 6)
    order.add_nft(run, "a")
    order.add_nft(run, "b")
    order.add_legacy(run, 4)
    expected = []
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        # WHEN datagrams pass, and the nft chains are registered anew, one after the other
        for anew in ("", "a", "b"):
            if anew:
                order.add_nft(run, anew)
            for family in (4, 6):
                expected += [truth.order(family, 5)] * 5
            tracer.wait_until(partial(has_rows, 3 * len(expected)))
        rows = tracer.finish()
    # THEN the rows have the order that the marks show
    assert expected[0] == ["legacy", "b", "a"]
    assert expected[5] == ["b", "a", "legacy"]
    assert orders(rows) == expected


def test_a_nat_chain_runs_where_nat_is_whatever_its_priority(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN a chain of type nat at priority 0: at OUTPUT, the kernel does all NAT at -100
    run, truth = truth_of(namespace)
    order.add_nft(run, "a", "nat", "output priority 0")
    order.add_nft(run, "b", "filter", "output priority -50")
    order.add_legacy(run, 4, "OUTPUT")
    with tracing(tmp_path, Path(namespace.path).name, "udp") as tracer:
        expected = truth.order(4, 1)
        tracer.wait(3)
        rows = tracer.finish()
    assert expected == ["a", "b", "legacy"]
    assert orders(rows, "OUTPUT") == [expected]
