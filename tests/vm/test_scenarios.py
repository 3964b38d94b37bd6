# SPDX-License-Identifier: GPL-2.0-only
"""Known traffic through known rules yields exactly the expected traversals."""

from __future__ import annotations

import pytest

from ipttrace.lab.network import Network
from tests.lab import scenarios
from tests.lab.scenarios import Scenario
from tests.lab.stages import Tally
from tests.vm.conftest import SHARED, captured, seen, undisturbed

pytestmark = SHARED


@pytest.mark.parametrize("scenario", scenarios.scenarios(), ids=lambda s: f"{s.name} v{s.family}")
def test_each_scenario_yields_exactly_its_traversals(network: Network, scenario: Scenario) -> None:
    # GIVEN the lab network and a capture of everything
    expected = scenarios.tally(scenario.expected)

    def traced() -> Tally:
        with captured() as capture:
            # WHEN the scenario's packets are sent
            assert scenario.run(network) == scenario.sent
            capture.wait_rows(expected.total(), set(network.inodes().values()))
        return seen(capture.rows, network)

    # THEN there is each expected traversal, and no other
    assert undisturbed(network, traced) == expected
