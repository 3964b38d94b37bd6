# SPDX-License-Identifier: GPL-2.0-only
"""The probes on x_tables end with their agent."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.vm.conftest import SHARED
from tests.vm.forked import flooding, until
from tests.vm.plain import Plain
from tests.vm.texts import live, probed, rules

pytestmark = SHARED


def test_a_killed_agent_leaves_no_probe_on_the_tables(tmp_path: Path) -> None:
    with Plain() as plain:
        plain.load(rules("killed"), 4)
        with live(tmp_path / "ready") as one:
            assert len(probed()) == 3
            # WHEN it is killed while rules change
            with flooding(plain.name):
                plain.load(rules("once more", 2), 4)
                one.agent.signal(signal.SIGKILL)
                plain.load(rules("and more", 3), 4)
                assert one.agent.wait() == -signal.SIGKILL
            # THEN its probes are removed, and rules can still be changed
            assert until(lambda: not probed())
            plain.load(rules("after", 4), 4)
        with live(tmp_path / "again") as one:
            one.wait_text(plain, 4, 4, "after")
            one.finish()
    assert not probed()
