# SPDX-License-Identifier: GPL-2.0-only
"""While rules are changed, a run is of the generation whose rules it has taken."""

from __future__ import annotations

import numpy as np
import pytest

from ipttrace.capture.bpf.cursors import Cursors
from ipttrace.capture.bpf.runs import CURSOR, HEAD_DTYPE, TURNED

SECOND = 1_000_000_000


def corrected(
    cursors: Cursors, *runs: tuple[int, int, int, int], at: int = 0
) -> list[tuple[int, int]]:
    """The generation and `later` of runs: number, cursor, how much later, whether it turned."""
    heads = np.zeros(len(runs), HEAD_DTYPE)
    for head, (number, cursor, later, turned) in zip(heads, runs, strict=True):
        head["generation"], head["later"] = number, later
        head["flags"] = CURSOR * cursor | TURNED * turned
    cursors.correct(7, heads, np.full(len(runs), at, np.uint64))
    return list(zip(heads["generation"].tolist(), heads["later"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param((11, 0, 0, 0), (11, 0), id="no change"),
        pytest.param((12, 0, 0, 0), (11, 0), id="all of it between both steps"),
        pytest.param((12, 0, 0, 1), (11, 1), id="the second step during the run"),
        pytest.param((11, 0, 1, 0), (11, 0), id="the first step during the run"),
        pytest.param((11, 0, 1, 1), (11, 1), id="both steps during the run"),
        pytest.param((11, 0, 2, 0), (11, 2), id="two changes during the run"),
        pytest.param((0, 1, 0, 0), (0, 0), id="an unknown number"),
    ],
)
def test_a_run_may_be_of_the_generations_that_were_there_as_it_began(
    run: tuple[int, int, int, int], expected: tuple[int, int]
) -> None:
    # GIVEN a namespace, in which odd numbers come with the cursor 0
    assert corrected(Cursors(), (11, 0, 0, 0), run)[1] == expected


def test_a_module_that_was_loaded_again_counts_from_1_with_the_cursor_where_it_was() -> None:
    # GIVEN runs that all have the other cursor
    cursors = Cursors()
    stray = corrected(cursors, (5, 1, 0, 0), (5, 1, 0, 0), at=SECOND)
    assert stray == [(4, 0), (4, 0)]
    # WHEN it stays so for longer than any change takes
    assert corrected(cursors, (5, 1, 0, 0), at=3 * SECOND) == [(5, 0)]
    # THEN that is how it is there
    assert corrected(cursors, (6, 0, 0, 0), (7, 0, 0, 0), at=3 * SECOND) == [(6, 0), (6, 0)]
    cursors.forget({7, 8})
    assert corrected(cursors, (6, 0, 0, 0)) == [(5, 0)]


def test_a_long_wait_between_both_steps_is_not_taken_for_that() -> None:
    cursors = Cursors()
    assert corrected(cursors, (12, 0, 0, 0), at=SECOND) == [(11, 0)]
    assert corrected(cursors, (12, 1, 0, 0), at=SECOND + 5) == [(12, 0)]
    assert corrected(cursors, (13, 1, 0, 0), at=9 * SECOND) == [(12, 0)]
