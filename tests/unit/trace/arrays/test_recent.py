# SPDX-License-Identifier: GPL-2.0-only
"""The bounded map of integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.trace.arrays.recent import Recent


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 1000)), max_size=20), max_size=10
    )
)
def test_the_last_written_value_is_returned(batches: list[list[tuple[int, int]]]) -> None:
    recent = Recent(1000)
    truth: dict[int, int] = {}
    for batch in batches:
        keys, values = (
            np.array(side, np.uint64) for side in ([k for k, _ in batch], [v for _, v in batch])
        )
        recent.put(keys, values)
        truth.update(batch)
        found, known = recent.get(np.arange(30, dtype=np.uint64))
        assert {k: int(found[k]) for k in range(30) if known[k]} == truth


def test_the_oldest_key_is_forgotten_first() -> None:
    recent = Recent(100)
    for start in range(0, 1000, 10):
        keys = np.arange(start, start + 10, dtype=np.uint64)
        recent.put(keys, keys)
        assert len(recent) <= 100
        assert recent.get(keys)[1].all()
    assert not recent.get(np.arange(100, dtype=np.uint64))[1].any()
