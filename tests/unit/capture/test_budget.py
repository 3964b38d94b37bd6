# SPDX-License-Identifier: GPL-2.0-only
"""When a budget is used up, and what is said of it."""

from __future__ import annotations

from ipttrace.capture.budget import Budget


def test_no_limit_is_never_used_up() -> None:
    budget = Budget()
    budget.begin(0, 0, 0.0)
    assert not budget.limited
    assert not budget.spent(10**9, 10**9, 0.1)


def test_a_steady_rate_below_the_limit_goes_on_for_ever() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # 999 rows/s for a minute, looked at 20 times a second
    assert not any(budget.spent(999 * n // 20, 0, 10.0 + n / 20) for n in range(1, 1200))


def test_a_flood_is_ended_as_soon_as_a_second_s_worth_has_come() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # GIVEN 100 rows/s for a while
    assert not any(budget.spent(n, 0, 10.0 + n / 100) for n in range(1, 500))
    # WHEN 20,000 rows/s come
    trip = next(n for n in range(1, 100) if budget.spent(499 + 1000 * n, 0, 14.99 + n / 20))
    # THEN it ends with the first thousand, and says how many there were
    assert trip == 1
    level, text = budget.words(1499)
    assert level == "warn"
    assert "rows/s is more than --max-rate 1000; arm again with" in text
    assert text.startswith("disarmed: 1,")


def test_a_flood_from_the_first_moment_on_is_not_divided_by_nothing() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    assert not budget.spent(1000, 0, 10.0)
    assert budget.spent(1001, 0, 10.0)
    assert budget.words(1001)[1].startswith("disarmed: 1,001 rows/s")


def test_rows_that_no_buffer_had_room_for_count_too() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(50, 7, 10.0)
    assert not budget.spent(550, 507, 10.5)
    assert budget.spent(550, 508, 10.6)


def test_the_rate_is_that_of_the_whole_time_where_nobody_looked_for_long() -> None:
    # GIVEN an agent that stood still for ten seconds, while 5,000 rows came
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # THEN that is 500 a second
    assert not budget.spent(5000, 0, 20.0)


def test_stop_after_counts_from_each_arming_anew() -> None:
    budget = Budget(stop_after=23)
    budget.begin(0, 0, 0.0)
    assert not budget.spent(22, 1000, 1.0)
    assert budget.spent(23, 1000, 2.0)
    assert budget.words(29) == (
        "info",
        "disarmed after 29 rows: --stop-after 23 is reached; arm again for as many more",
    )
    budget.begin(29, 1000, 3.0)
    assert not budget.spent(51, 1000, 4.0)
    assert budget.spent(52, 1000, 5.0)


def test_a_new_arming_does_not_remember_the_flood_before() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    assert budget.spent(5000, 0, 10.1)
    budget.begin(5000, 0, 10.2)
    assert not budget.spent(5900, 0, 10.3)
