# SPDX-License-Identifier: GPL-2.0-only
"""An emulated guest's clock has the frequency that the host's counter really has."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from ipttrace.lab.kernels import Kernel
from ipttrace.lab.vm.qemu import qemu_arguments
from ipttrace.lab.vm.tsc import host_tsc_khz


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 has this counter")
def test_the_counters_frequency_is_the_same_each_time() -> None:
    one, other = host_tsc_khz(), host_tsc_khz()
    assert one is not None
    assert other is not None
    assert abs(one - other) < one / 1000


def test_the_kernel_gets_the_frequency_as_an_argument() -> None:
    arguments = qemu_arguments(
        Kernel("6.1.0-1-amd64", Path("/nowhere")),
        accel="tcg",
        cpus=2,
        memory="3G",
        append=[],
        share=None,
        initramfs=9,
        ports={"console": 5},
        tsc_khz=2445424,
    )
    assert " tsc_early_khz=2445424" in arguments[arguments.index("-append") + 1]
