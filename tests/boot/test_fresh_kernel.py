# SPDX-License-Identifier: GPL-2.0-only
"""The tests of tests/vm/fresh, in a VM that has just booted."""

from __future__ import annotations

import os
import platform

import pytest

from ipttrace.lab import kernels
from tests.boot.own_guest import pass_in_guest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"
)

NEWEST = os.environ.get("KERNEL", kernels.DEFAULT).split()[-1]


def test_what_needs_a_kernel_into_which_nothing_was_loaded_passes_there() -> None:
    pass_in_guest(NEWEST, "tests/vm/fresh", "IPTTRACE_FRESH")
