# SPDX-License-Identifier: GPL-2.0-only
"""Rates and series of seconds, also when the clock is set back or no rows arrive."""

from __future__ import annotations

import numpy as np

from ipttrace.trace.store import Store
from ipttrace.trace.tally.rules import RulesTally
from ipttrace.trace.tally.totals import TotalsTally
from tests.data import synth
from tests.data.traces import synthetic

SECOND = 1_000_000_000


def rows_at(*times: int) -> Store:
    """A store with one row, of the same rule, at each of `times` (ns since the epoch)."""
    one = synthetic(synth.make(1), 10)
    (part, *_) = one.store.parts()
    store = Store(10_000)
    store.names = one.store.names
    for time in times:
        columns = {name: column[:1].copy() for name, column in part.columns.items()}
        columns["time"][:] = time
        steps = {name: column[:1] for name, column in part.steps.items()}
        store.append(columns, np.array([1]), steps)
    return store


def feed(tally: RulesTally | TotalsTally, store: Store) -> None:
    for part in store.parts():
        tally.feed(part)


START = 1_700_000_000 * SECOND


def test_a_rate_covers_two_seconds_and_falls_when_no_rows_arrive() -> None:
    # GIVEN 100 rows a second for five seconds
    tally = RulesTally()
    feed(tally, rows_at(*(START + at * SECOND // 100 for at in range(500))))
    live = tally.slots.live
    assert tally.rates(live).tolist() == [100.0]
    # WHEN one second passes without rows, then two more
    assert tally.rates(live, START + 6 * SECOND).tolist() == [50.0]
    assert tally.rates(live, START + 8 * SECOND).tolist() == [0.0]


def test_rates_start_over_when_the_clock_is_set_back() -> None:
    # GIVEN rows of an hour, then rows from its beginning again
    tally = RulesTally()
    feed(tally, rows_at(*(START + at * SECOND for at in range(3600))))
    feed(tally, rows_at(*(START + at * SECOND // 10 for at in range(40))))
    tally.newest[0] = START + 4 * SECOND
    assert tally.rates(tally.slots.live).tolist() == [10.0]


def test_seconds_are_kept_for_ten_minutes() -> None:
    tally = TotalsTally()
    feed(tally, rows_at(*(START + at * SECOND for at in range(1000) for _ in range(2))))
    held = tally.seconds(600)
    assert held.newest == START // SECOND + 999
    assert held.outcomes["ACCEPT"].tolist() == [2] * 600
    # AND seconds without rows are empty
    later = tally.seconds(10, START + 1003 * SECOND)
    assert later.outcomes["ACCEPT"].tolist() == [2] * 6 + [0] * 4


def test_losses_count_for_the_second_of_their_report() -> None:
    tally = TotalsTally()
    feed(tally, rows_at(START))
    tally.note_books(0, {"lost": [1, 2, 0], "missed": 5})
    feed(tally, rows_at(START + 3 * SECOND))
    tally.note_books(0, {"lost": [1, 2, 4], "missed": 5})
    tally.note_books(1, {"lost": [10], "missed": 0})
    tally.note_books(1, {})
    held = tally.seconds(4)
    assert held.series["lost"].tolist() == [3, 0, 0, 14]
    assert held.series["missed"].tolist() == [5, 0, 0, 0]
    assert (tally.lost, tally.missed) == (17, 5)
