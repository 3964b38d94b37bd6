# SPDX-License-Identifier: GPL-2.0-only
"""The modules of the tables are loaded and unloaded, before arming and while armed.

Unloads the tables of every namespace: no lab network may be up.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.lab import traffic
from ipttrace.trace.row import Step
from tests.vm.bare import Bare, references
from tests.vm.conftest import SHARED, captured, kprobes
from tests.vm.forked import flooding, until
from tests.vm.plain import Plain

pytestmark = SHARED

BOTH = 3
ONLY_4, ONLY_6 = 1, 2


def unload(family: str) -> None:
    """Removes ip_tables or ip6_tables, and the tables that use it."""
    core = Path(f"/sys/module/{family}_tables")

    def gone() -> bool:
        if not core.exists():
            return True
        above = [holder.name for holder in (core / "holders").iterdir()]
        # A deleted namespace may not be freed yet.
        subprocess.run(["rmmod", *above, core.name], stderr=subprocess.DEVNULL)
        return not core.exists()

    assert until(gone)


@pytest.fixture(autouse=True)
def _tables_come_back() -> Iterator[None]:
    yield
    subprocess.run(["modprobe", "-a", "iptable_filter", "ip6table_filter"], check=True)


def test_without_any_tables_the_error_names_the_module_to_load() -> None:
    with Bare() as bare:
        # GIVEN neither ip_tables nor ip6_tables
        unload("ip")
        unload("ip6")
        # WHEN it is armed, THEN the error names the module to load
        with pytest.raises(CaptureError) as caught:
            bare.control.arm(bare.pins)
        assert caught.value.__cause__.code == errno.ENOENT  # type: ignore[union-attr]
        assert str(caught.value) == (
            "ipt_do_table and ip6t_do_table are absent: legacy iptables is not loaded"
            " (modprobe ip_tables)"
        )
        assert not kprobes()
        assert references() == 0
        # AND loading that is enough
        subprocess.run(["modprobe", "ip_tables"], check=True)
        bare.control.arm(bare.pins)
        assert bare.control.status().targets == ONLY_4
        bare.control.disarm()


def test_a_namespace_that_is_made_with_tables_is_traced() -> None:
    # GIVEN that namespaces are made with the table filter (as with forward=0, a policy of DROP)
    unload("ip")
    subprocess.run(["modprobe", "iptable_filter", "forward=0"], check=True)
    try:
        # WHEN one is made while it is armed
        with captured() as capture, Plain() as plain:
            inode = plain.inode
            plain.run("iptables-legacy", "-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
            assert traffic.udp(plain.name, "127.0.0.1", 9, 23).sent == 23
            capture.wait_rows(46, {inode})
        # THEN its packets have rows
        rows = [row for row in capture.rows if row.netns == inode and row.proto == "UDP"]
        assert len(rows) == 46
        paths = {row.path for row in rows if row.hook == "OUTPUT"}
        assert paths == {(Step("OUTPUT", 1, "rule"),)}
    finally:
        unload("ip")


def test_tables_loaded_while_armed_are_traced_and_can_be_unloaded() -> None:
    with Bare() as bare, Plain() as plain:
        # GIVEN that it was armed with only ip6_tables loaded
        unload("ip")
        bare.control.arm(bare.pins)

        def targets() -> int:
            return bare.control.status().targets

        def calls() -> int:
            # A probe that hits inside another one's handler is skipped, and counted.
            status = bare.control.status()
            return status.calls + status.skipped + status.nmissed

        def called(times: int) -> bool:
            return calls() >= times

        assert targets() == ONLY_6
        for turn in range(5):
            # WHEN ip_tables is loaded, THEN its calls are traced
            plain.load("*filter\nCOMMIT\n", 4)
            assert until(lambda: targets() == BOTH)
            before = calls()
            traffic.udp(plain.name, "127.0.0.1", 9, 23)
            # The receiving side may run later, in ksoftirqd.
            assert until(partial(called, before + 46))
            # WHEN it is unloaded under traffic, THEN its probe is removed
            with flooding(plain.name):
                if turn % 2:
                    assert until(partial(called, before + 501))
                unload("ip")
                assert until(lambda: targets() == ONLY_6)
        assert len([line for line in kprobes() if " xt_re" not in line]) == 2
        bare.control.disarm()
    assert not kprobes()
