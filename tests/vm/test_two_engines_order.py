# SPDX-License-Identifier: GPL-2.0-only
"""With both engines, a packet's rows of one priority come as the packet met the chains.

Behind test_two_engines.py by name, for the same reason.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.trace.row import Row
from tests.lab import order
from tests.vm.conftest import SHARED
from tests.vm.plain import Plain
from tests.vm.texts import live

pytestmark = SHARED

COUNT = 7


def met(rows: list[Row]) -> list[str]:
    return ["legacy" if row.table == "filter" else row.table for row in rows]


@pytest.mark.parametrize("family", [4, 6])
def test_of_one_priority_the_chain_registered_last_has_the_first_row(
    pair: str, family: int, tmp_path: Path
) -> None:
    with Plain() as plain:

        def run(argv: list[str], text: str) -> str:
            return run_in(plain.name, argv, text=text).stdout

        def open_socket(kind: int) -> socket.socket:
            return socket_in(plain.name, kind, socket.SOCK_DGRAM)

        truth = order.Truth(run, open_socket, list(order.BITS))
        # GIVEN a chain made before the legacy table filter, and one made after it
        order.add_nft(run, "a")
        order.add_legacy(run, family)
        order.add_nft(run, "b")
        expected = []
        with live(tmp_path / "ready", expr="udp", netns=plain.name, engine="auto") as agent:
            # WHEN datagrams pass, of which each of the three drops some, and others once chains
            # were registered anew
            for anew, *dropping in (("", *order.PORTS), ("a", "nobody"), ("b", "nobody")):
                if anew:
                    order.add_nft(run, anew)
                for dropped_by in dropping:
                    expected += [truth.order(family, COUNT, dropped_by)] * COUNT
            # (The table filter has a row at OUTPUT as well.)
            agent.wait_rows(sum(map(len, expected)) + len(expected))
            rows = agent.finish()
        assert agent.trace.engine == pair
    journeys: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.hook == "INPUT":
            journeys[row.journey].append(row)
    # THEN each packet's rows have the order that the counters prove
    assert expected[0] == ["b", "legacy", "a"]
    assert expected[4 * COUNT] == ["a", "b", "legacy"]
    assert [met(one) for one in journeys.values()] == expected
    # AND the last is the one that dropped it
    verdicts = {tuple(row.verdict for row in one) for one in journeys.values()}
    assert verdicts == {
        (*["ACCEPT"] * passed, end)
        for passed, end in [(2, "ACCEPT"), (0, "DROP"), (1, "DROP"), (2, "DROP")]
    }
