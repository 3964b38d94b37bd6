# SPDX-License-Identifier: GPL-2.0-only
"""Rows are of one kind exactly if they are equal, however many kinds there are."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.bpf.alike import alike, words_of
from ipttrace.capture.bpf.runs import NAME_DTYPE
from ipttrace.stream.record import ENTRY_DTYPE


@pytest.mark.parametrize("kinds", [1, 2, 100, 5_000, 100_003])
def test_equal_rows_are_of_one_kind(kinds: int) -> None:
    # GIVEN rows of so many kinds, which differ in the first column, the last, or both
    random = np.random.default_rng(kinds)
    number = random.integers(0, kinds, 100_003)
    columns = [(number % 7).astype(np.uint8), np.full(len(number), 5), number // 7 << 40]
    # WHEN they are compared
    ones, found = alike(columns)
    # THEN each row equals the one of its kind, which no other kind has
    for column in columns:
        assert np.array_equal(column[ones[found]], column)
    assert np.array_equal(found[ones], np.arange(len(ones)))
    assert len(ones) == len(np.unique(number))


@pytest.mark.parametrize("wide", [0, 1 << 63])
def test_few_small_numbers_are_told_apart_as_well(wide: int) -> None:
    # GIVEN columns that differ little, of large and of small numbers and of truth values
    rows = np.arange(999)
    columns = [
        rows % 3 == 0,
        rows.astype(np.uint64) % 5 + np.uint64(wide),
        (200 + rows % 2).astype("u1"),
    ]
    # WHEN they are compared
    ones, found = alike(columns)
    # THEN there is a kind for each combination
    assert len(ones) == 2 * 5 * 2
    for column in columns:
        assert np.array_equal(column[ones[found]], column)


def test_of_no_row_there_is_no_kind() -> None:
    ones, found = alike([np.zeros(0, np.uint64)])
    assert len(ones) == len(found) == 0


@pytest.mark.parametrize(
    ("dtype", "name"), [(NAME_DTYPE, "name"), (ENTRY_DTYPE, "table"), (ENTRY_DTYPE, "comm")]
)
def test_the_words_of_a_name_are_all_of_it(dtype: np.dtype[np.void], name: str) -> None:
    # GIVEN names that differ in their last byte alone, and what else records have
    records = np.frombuffer(np.random.default_rng(1).bytes(9 * dtype.itemsize), dtype).copy()
    width = dtype[name].itemsize
    records[name] = [b"n" * (width - 1) + b"%d" % at for at in range(9)]
    # THEN the words differ, and there are no others
    words = np.stack(words_of(records, name), axis=1)
    assert [row.tobytes() for row in words] == records[name].tolist()
