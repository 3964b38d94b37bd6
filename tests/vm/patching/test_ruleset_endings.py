# SPDX-License-Identifier: GPL-2.0-only
"""The probes on x_tables end with their agent, and follow x_tables when it is reloaded.

Unloads the tables of every namespace: no lab network may be up.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from ipttrace.capture.kernel.control import Change
from tests.vm.bare import Bare
from tests.vm.forked import flooding, until
from tests.vm.plain import Plain
from tests.vm.texts import live, probed, rules


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


def test_x_tables_is_watched_again_after_it_was_reloaded() -> None:
    with Bare() as bare:
        changes = bare.control.changes()
        bare.control.arm(bare.pins)
        try:
            with Plain() as plain:
                plain.load(rules("before"), 4)
            before = bare.control.status().ruleset
            assert before > 1
            # WHEN all of it is unloaded and loaded again, as an upgrade might do
            assert until(lambda: unloaded("x_tables"))
            subprocess.run(["modprobe", "-a", "iptable_filter", "ip6table_filter"], check=True)
            assert until(lambda: len(probed()) == 3)
            assert until(lambda: bare.control.status().rules_seen)
            again = bare.control.status().ruleset
            assert again > before
            with Plain() as plain:
                plain.load(rules("after"), 4)
                inode = plain.inode
            # THEN changes are reported again, and also that some may be unknown
            assert until(lambda: bare.control.status().ruleset > again)
            found: list[Change] = []

            def last() -> bool:
                found.extend(changes.take())
                return Change(0, bare.control.status().ruleset) in found

            assert until(last)
            reports = [one for one in found if one.first]
            numbers = {n for one in reports for n in range(one.first, one.last + 1)}
            assert numbers == set(range(1, found[-1].last + 1))
            assert [one.family for one in reports if one.last == again] == [0]
            assert {one.netns for one in reports if one.first > again} == {inode}
        finally:
            changes.close()
            bare.control.disarm()
    assert not probed()


def unloaded(module: str) -> bool:
    """Removes the module and those that use it; returns whether it is gone."""
    folder = Path("/sys/module") / module
    if not folder.exists():
        return True
    for holder in (folder / "holders").iterdir():
        unloaded(holder.name)
    subprocess.run(["rmmod", module], stderr=subprocess.DEVNULL)
    return not folder.exists()
