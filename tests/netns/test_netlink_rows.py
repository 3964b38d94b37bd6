# SPDX-License-Identifier: GPL-2.0-only
"""What is traced over netlink is what happened: every packet, every rule, nothing else."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from netlink_lab import path, tracing_each, unknown

from ipttrace.lab import scenarios_way as way
from ipttrace.lab.network import ROLES, Network, NetworkError
from ipttrace.lab.scenarios import scenarios
from ipttrace.lab.traffic_server import Server

# A condition and `-j RETURN`: legacy tables tell of it as of any rule, nftables as of a return.
RETURNS = {("filter", "SITE-RULES", 2)}


@pytest.fixture(params=["legacy", "nft"])
def network(request: pytest.FixtureRequest, prefix: str) -> Iterator[Network]:
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    try:
        with Network(prefix, backend=request.param) as one, Server(one.server):
            yield one
    except NetworkError as error:
        if "this kernel has no" in str(error):
            pytest.skip(str(error))
        raise


def test_every_scenario_makes_just_the_rows_that_its_rules_say(
    network: Network, tmp_path: Path
) -> None:
    names = {role: network.ns(role) for role in ROLES}
    expected = scenarios()
    with tracing_each(tmp_path, names) as tracers:
        for one in expected:
            assert one.run(network) == one.sent
        rows = {role: tracer.finish() for role, tracer in tracers.items()}
    found = Counter(
        (role, row["hook"], row["table"], path(row), row["verdict"])
        for role, some in rows.items()
        for row in some
    )
    wanted: Counter = Counter()
    for (role, hook, table, steps, verdict), n in way.tally(
        traversal for one in expected for traversal in one.expected
    ).items():
        if network.backend == "nft":
            steps = tuple(
                replace(step, match="return")
                if (table, step.chain, step.rulenum) in RETURNS
                else step
                for step in steps
            )
        wanted[role, hook, table, steps, verdict] += n
    assert (found - wanted, wanted - found) == (Counter(), Counter())
    assert all(unknown(some) for some in rows.values())
