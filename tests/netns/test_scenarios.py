# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios' expectations agree with the kernel's own counters and its own trace."""

from __future__ import annotations

from collections import Counter

import pytest
from tracelog import TraceLog

from ipttrace.lab.network import ROLES, Network, NetworkError
from ipttrace.lab.scenarios import Scenario, hits, path, scenarios, synproxy
from ipttrace.lab.traffic_server import Server
from ipttrace.trace.row import Step

ALL = [pytest.param(one, id=f"{one.name}, IPv{one.family}") for one in scenarios()]


def _counted(network: Network, family: int) -> Counter[tuple[str, str, str, int]]:
    found: Counter[tuple[str, str, str, int]] = Counter()
    for role in ROLES:
        for (table, chain, number), (packets, _) in network.counters(role, family).items():
            found[role, table, chain, number] += packets
    return found


@pytest.mark.parametrize("scenario", ALL)
def test_the_kernel_logs_and_counts_just_what_the_scenario_expects(
    network: Network, scenario: Scenario
) -> None:
    _compare(network, scenario)


@pytest.mark.parametrize("family", [4, 6])
def test_packets_that_synproxy_steals_are_as_the_scenario_expects(
    network: Network, family: int
) -> None:
    try:
        network.add_synproxy()
    except NetworkError as error:
        pytest.skip(str(error))
    _compare(network, synproxy(family))


def _compare(network: Network, scenario: Scenario) -> None:
    # GIVEN a network that is quiet
    with Server(network.server), TraceLog(network) as log:
        # WHEN the scenario's traffic is sent
        sent = scenario.run(network)
        # THEN all of it went out
        assert sent == scenario.sent
        logged = log.hits(sum(hits(scenario.expected).values()))

    # AND the kernel's trace names the same rules, as often
    expected = hits(scenario.expected)
    assert {hit[1] for hit in logged} == {scenario.family}
    assert Counter({(role, *rest): n for (role, _, *rest), n in logged.items()}) == expected

    # AND so do the counters: a chain's end has one only if it is a policy's
    counted = _counted(network, scenario.family)
    wanted: Counter[tuple[str, str, str, int]] = Counter()
    for (role, _, table, chain, number, match), n in expected.items():
        place = (role, table, chain, 0 if match == "policy" else number)
        if place in counted:
            wanted[place] += n
    assert +counted == wanted


def test_a_path_is_read_as_it_is_written() -> None:
    assert path("FORWARD:1 A-B:2/return FORWARD:5/policy") == (
        Step("FORWARD", 1, "rule"),
        Step("A-B", 2, "return"),
        Step("FORWARD", 5, "policy"),
    )
