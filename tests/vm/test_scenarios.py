# SPDX-License-Identifier: GPL-2.0-only
"""Known traffic through known rules gives exactly the traversals that it must."""

from __future__ import annotations

from collections import Counter

import pytest

from ipttrace.lab import scenarios
from ipttrace.lab.network import Network
from ipttrace.lab.scenarios import Scenario
from tests.vm.conftest import Capture, captured


def seen(capture: Capture, network: Network) -> Counter:
    """What was traced, in the terms of the scenarios."""
    roles = {inode: role for role, inode in network.inodes().items()}
    found: Counter = Counter()
    for row in capture.rows:
        if row.netns in roles:
            found[roles[row.netns], row.hook, row.table, row.path, row.verdict] += 1
    return found


@pytest.mark.parametrize("scenario", scenarios.scenarios(), ids=lambda s: f"{s.name} v{s.family}")
def test_each_scenario_is_seen_exactly_as_it_must_be(network: Network, scenario: Scenario) -> None:
    # GIVEN the lab network and a capture of everything
    with captured() as capture:
        # WHEN the scenario's packets are sent
        assert scenario.run(network) == scenario.sent
    # THEN each traversal is there, and none beside them
    assert seen(capture, network) == scenarios.tally(scenario.expected)
