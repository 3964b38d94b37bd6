# SPDX-License-Identifier: GPL-2.0-only
"""The tests of tests/vm/without_lsm, in VMs in which bpf is not among the security modules."""

from __future__ import annotations

import os
import platform

import pytest

from ipttrace.lab import kernels
from tests.boot.own_guest import pass_in_guest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"
)

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()


@pytest.mark.parametrize("series", SERIES)
def test_the_guard_denies_what_programs_of_a_cgroup_can(series: str) -> None:
    machine = ("--one-thread", "--append", "lsm=capability,yama")
    pass_in_guest(series, "tests/vm/without_lsm", "IPTTRACE_WITHOUT_LSM", *machine)
