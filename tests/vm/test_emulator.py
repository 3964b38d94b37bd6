# SPDX-License-Identifier: GPL-2.0-only
"""The VM computes as a real machine does: else what other tests find may be the emulator's."""

from __future__ import annotations

import numpy as np


def test_numpy_sorts_rightly_on_the_emulated_cpu() -> None:
    # With AVX2 as QEMU 7.2 emulates it, half of these orders are wrong.
    for seed in range(20):
        values = np.random.default_rng(seed).permutation(seed + 2)
        order = np.argsort(values)
        assert values[order].tolist() == list(range(seed + 2))
