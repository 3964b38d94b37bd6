# SPDX-License-Identifier: GPL-2.0-only
"""The tests of tests/vm/without_lsm, in VMs in which bpf is not among the security modules."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ipttrace.lab import kernels
from tests.paths import PROJECT

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"
)

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()


@pytest.mark.parametrize("series", SERIES)
def test_the_guard_denies_what_programs_of_a_cgroup_can(series: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["-W", "ignore::pytest.PytestConfigWarning", "tests/vm/without_lsm"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ipttrace.lab.vm", "--kernel", series, "--one-thread"),
            *("--append", "lsm=capability,yama", "--"),
            *("env", "IPTTRACE_WITHOUT_LSM=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", *words),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
