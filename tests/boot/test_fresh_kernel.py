# SPDX-License-Identifier: GPL-2.0-only
"""The tests of tests/vm/fresh, in a VM that has just booted."""

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

NEWEST = os.environ.get("KERNEL", kernels.DEFAULT).split()[-1]


def test_what_needs_a_kernel_into_which_nothing_was_loaded_passes_there() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["-W", "ignore::pytest.PytestConfigWarning", "tests/vm/fresh"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ipttrace.lab.vm", "--kernel", NEWEST, "--"),
            *("env", "IPTTRACE_FRESH=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", *words),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
