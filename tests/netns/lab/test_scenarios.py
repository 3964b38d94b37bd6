# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios' expectations agree with the kernel's counters and its own trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from ipttrace.lab.network import ROLES, Network, NetworkError
from ipttrace.lab.traffic.server import Server
from ipttrace.trace.row import Step
from tests.lab.scenarios import Scenario, hits, path, scenarios, synproxy
from tests.lab.stages import Hits
from tests.netns.labs import lab_network
from tests.netns.tracelog import TraceLog

ALL = [pytest.param(one, id=f"{one.name}, IPv{one.family}") for one in scenarios()]

# The kernel's trace reports any unconditional verdict in a user chain as "return".
UNCONDITIONAL = {("filter", "LOGDROP", 2), ("filter", "SITE-RULES", 3)}


def _as_logged(expected: Hits) -> Hits:
    found: Hits = Counter()
    for (role, hook, table, chain, number, match), n in expected.items():
        logged = "return" if (table, chain, number) in UNCONDITIONAL else match
        found[role, hook, table, chain, number, logged] += n
    return found


def _counted(network: Network, family: int) -> Counter[tuple[str, str, str, int]]:
    found: Counter[tuple[str, str, str, int]] = Counter()
    for role in ROLES:
        for (table, chain, number), (packets, _) in network.counters(role, family).items():
            found[role, table, chain, number] += packets
    return found


class LoggedNetwork:
    """A network with all rule hits logged; runs scenarios one after the other."""

    def __init__(self, network: Network, log: TraceLog) -> None:
        self.network = network
        self.log = log

    def check(self, scenario: Scenario) -> None:
        # GIVEN an idle network
        before = _counted(self.network, scenario.family)
        # WHEN the scenario's traffic is sent
        sent = scenario.run(self.network)
        # THEN all of it was sent
        assert sent == scenario.sent
        expected = hits(scenario.expected)
        logged = self.log.hits(expected.total())

        # AND the kernel's trace has the same rules, equally often
        assert {hit[1] for hit in logged} == {scenario.family}
        seen = Counter({(role, *rest): n for (role, _, *rest), n in logged.items()})
        assert seen == _as_logged(expected)

        # AND so do the counters; the end of a user chain has none
        after = _counted(self.network, scenario.family)
        wanted: Counter[tuple[str, str, str, int]] = Counter()
        for (role, _, table, chain, number, match), n in expected.items():
            rule = (role, table, chain, 0 if match == "policy" else number)
            if rule in after:
                wanted[rule] += n
        after.subtract(before)
        assert +after == wanted


@pytest.fixture(scope="module")
def logged_network() -> Iterator[LoggedNetwork]:
    with lab_network() as network, Server(network.server), TraceLog(network) as log:
        yield LoggedNetwork(network, log)


@pytest.mark.parametrize("scenario", ALL)
def test_the_kernel_logs_and_counts_exactly_what_the_scenario_expects(
    logged_network: LoggedNetwork, scenario: Scenario
) -> None:
    logged_network.check(scenario)


def test_packets_stolen_by_synproxy_are_as_the_scenario_expects() -> None:
    with lab_network() as network, Server(network.server), TraceLog(network) as log:
        try:
            network.add_synproxy()
        except NetworkError as error:
            pytest.skip(str(error))
        for family in (4, 6):
            LoggedNetwork(network, log).check(synproxy(family))


def test_a_path_is_parsed_from_its_notation() -> None:
    assert path("FORWARD:1 A-B:2/return FORWARD:5/policy") == (
        Step("FORWARD", 1, "rule"),
        Step("A-B", 2, "return"),
        Step("FORWARD", 5, "policy"),
    )
