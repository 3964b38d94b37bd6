# SPDX-License-Identifier: GPL-2.0-only
"""One packet, one journey through all tables, although NAT changes its addresses."""

from __future__ import annotations

from collections import defaultdict

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import addresses as at
from ipttrace.trace.row import Row
from tests.lab import scenarios, stages
from tests.lab.scenarios import COUNT, Scenario
from tests.vm.conftest import SHARED, Capture, captured, seen, undisturbed

pytestmark = SHARED

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
CLIENT = {4: at.CLIENT4, 6: at.CLIENT6}
ROUTER = {4: at.ROUTER4, 6: at.ROUTER6}
UPLINK = {4: at.UPLINK4, 6: at.UPLINK6}
SERVER = {4: at.SERVER4, 6: at.SERVER6}

FIRST = [
    ("PREROUTING", "raw"),
    ("PREROUTING", "mangle"),
    ("PREROUTING", "nat"),
    ("FORWARD", "mangle"),
    ("FORWARD", "filter"),
    ("POSTROUTING", "mangle"),
    ("POSTROUTING", "nat"),
]
FOLLOWED = {
    ("client", "OUTPUT"),
    ("router", "PREROUTING"),
    ("router", "FORWARD"),
    ("router", "POSTROUTING"),
}
LATER = [(hook, table) for hook, table in FIRST if table != "nat"]


def port_forward(family: int) -> Scenario:
    name = "TCP through DNAT and MASQUERADE"
    return next(one for one in scenarios.scenarios(family) if one.name == name)


def journeys(capture: Capture, netns: int) -> list[list[Row]]:
    """The rows of a namespace by time, a list for each journey."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(capture.rows, key=lambda row: row.time):
        if row.netns == netns:
            found[row.journey].append(row)
    return list(found.values())


def tables(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.hook, row.table) for row in rows]


@FAMILIES
def test_a_connection_through_dnat_and_masquerade_is_four_journeys(
    network: Network, family: int
) -> None:
    one = port_forward(family)
    total = scenarios.tally(one.expected).total()

    def traced() -> Capture:
        with captured() as capture:
            assert one.run(network) == one.sent
            capture.wait_rows(total, set(network.inodes().values()))
        return capture

    capture = undisturbed(network, traced)
    syn, *rest = journeys(capture, network.inodes()["router"])

    # THEN the SYN passes all tables, and later packets all except nat
    assert tables(syn) == FIRST
    assert [each[0].flags for each in (syn, *rest)] == ["SYN", "SYN,ACK", "ACK", "RST,ACK"]
    assert [tables(each) for each in rest] == [LATER] * 3
    for each in (syn, *rest):
        assert len({row.skb for row in each}) == 1

    # AND has its addresses of the time in each row
    port = syn[0].sport
    client, router, server = CLIENT[family], ROUTER[family], SERVER[family]
    sent = (client, port, router, 8080)
    translated = (client, port, server, 80)
    tuples = [(row.src, row.sport, row.dst, row.dport) for row in syn]
    assert tuples == [sent] * 3 + [translated] * 4
    back = [(row.src, row.sport, row.dst) for row in rest[0]]
    assert back[0] == (server, 80, UPLINK[family])
    assert back[2:] == [(server, 80, client)] * 3

    # AND conntrack's original tuple, if there is one, is that before DNAT
    for row in (row for each in (syn, *rest) for row in each):
        if row.table == "raw":
            assert (row.ct_orig_dst, row.ct_state) == (None, None)
            continue
        assert (row.ct_orig_src, row.ct_orig_sport) == (client, port)
        assert (row.ct_orig_dst, row.ct_orig_dport) == (router, 8080)
        assert row.ct_state == ("NEW" if row.journey == syn[0].journey else "ESTABLISHED")

    # AND all of it is one flow, in both directions, in client and router
    roles = network.inodes()
    mine = {row.flow for row in capture.rows if row.netns in (roles["client"], roles["router"])}
    assert len(mine) == 1


@FAMILIES
def test_a_filter_for_the_address_before_nat_traces_the_packet_also_after_nat(
    network: Network, family: int
) -> None:
    # GIVEN a filter that matches the client's packets until DNAT changes them
    one = port_forward(family)
    expr = f"dst host {ROUTER[family]} and tcp dst port 8080"
    # It matches neither the answers nor what arrives at the server.
    answer = stages.reply("FORWARD:1 SITE-RULES:3 FORWARD:2", 1, syn=True)
    wanted = scenarios.tally(
        each for each in one.expected if (each.role, each.hook) in FOLLOWED
    ) - scenarios.tally(answer)

    def traced() -> Capture:
        with captured(expr) as capture:
            # WHEN this connection is made, and others are too
            assert traffic.ping(network.client, ROUTER[family], COUNT).received == COUNT
            assert one.run(network) == one.sent
            capture.wait_rows(wanted.total(), set(network.inodes().values()))
        return capture

    capture = undisturbed(network, traced)
    # THEN the rows of later hooks are there, although the filter does not match there
    syn, *rest = journeys(capture, network.inodes()["router"])
    assert tables(syn) == FIRST
    assert [tables(each) for each in rest] == [LATER] * 2
    assert {row.dst for row in syn} == {ROUTER[family], SERVER[family]}
    # AND no others
    assert seen(capture.rows, network) == wanted
    # In the client and again in the router: the kernel clears nf_trace between namespaces.
    assert capture.books["flipped"] == 6
    assert capture.books["followed"] == len(syn) + 2 * len(LATER) - 3
    assert capture.books["refused"] > 0
