# SPDX-License-Identifier: GPL-2.0-only
"""Histograms of costs, and the quantiles read from them."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.trace.tally import costs as tally_costs


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_quantile_is_off_by_at_most_a_sixteenth(share: float) -> None:
    rng = np.random.default_rng(5)
    costs = np.exp(rng.normal(9, 2, 20_000)).astype(np.uint64) + 40
    counts = np.bincount(tally_costs.buckets(costs), minlength=tally_costs.BUCKETS)
    exact = np.sort(costs)[int(np.ceil(share * len(costs))) - 1]
    found = float(tally_costs.quantiles(counts[None], share)[0])
    assert abs(found - exact) / exact <= 1 / 16


def test_costs_of_zero_and_of_years_count_in_the_outermost_buckets() -> None:
    costs = np.array([0, 1, 31, 32, 1 << 40, (1 << 64) - 1], np.uint64)
    assert tally_costs.buckets(costs).tolist() == [0, 0, 0, 0, 255, 255]
    assert np.isnan(tally_costs.quantiles(np.zeros((1, 256)), 0.5)).all()
