# SPDX-License-Identifier: GPL-2.0-only
"""When a budget is spent, and the note about it."""

from __future__ import annotations

from ipttrace.capture.budget import Budget


def test_a_budget_without_limits_is_never_spent() -> None:
    budget = Budget()
    budget.begin(0, 0, 0.0)
    assert not budget.limited
    assert not budget.spent(10**9, 10**9, 0.1)


def test_a_steady_rate_below_the_limit_never_spends_the_budget() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # 999 rows/s for a minute, checked 20 times a second
    assert not any(budget.spent(999 * n // 20, 0, 10.0 + n / 20) for n in range(1, 1200))


def test_a_flood_spends_the_budget_as_soon_as_it_brought_a_seconds_rows() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # GIVEN 100 rows/s for a while
    assert not any(budget.spent(n, 0, 10.0 + n / 100) for n in range(1, 500))
    # WHEN 20,000 rows/s arrive
    trip = next(n for n in range(1, 100) if budget.spent(499 + 1000 * n, 0, 14.99 + n / 20))
    # THEN the budget is spent with the first thousand, and the note has the rate
    assert trip == 1
    level, text = budget.note(1499)
    assert level == "warn"
    assert "rows/s is more than --max-rate 1000; arm again with" in text
    assert text.startswith("disarmed: 1,")


def test_a_flood_from_the_first_moment_on_has_a_finite_rate() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    assert not budget.spent(1000, 0, 10.0)
    assert budget.spent(1001, 0, 10.0)
    assert budget.note(1001)[1].startswith("disarmed: 1,001 rows/s")


def test_lost_rows_count_for_the_rate() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(50, 7, 10.0)
    assert not budget.spent(550, 507, 10.5)
    assert budget.spent(550, 508, 10.6)


def test_the_rate_is_averaged_over_the_time_without_a_check() -> None:
    # GIVEN an agent that was stopped for ten seconds, while 5,000 rows arrived
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    # THEN the rate is 500 a second
    assert not budget.spent(5000, 0, 20.0)


def test_stop_after_counts_anew_from_each_arming() -> None:
    budget = Budget(stop_after=23)
    budget.begin(0, 0, 0.0)
    assert not budget.spent(22, 1000, 1.0)
    assert budget.spent(23, 1000, 2.0)
    assert budget.note(29) == (
        "info",
        "disarmed after 29 rows (--stop-after 23); arm again for as many more",
    )
    budget.begin(29, 1000, 3.0)
    assert not budget.spent(51, 1000, 4.0)
    assert budget.spent(52, 1000, 5.0)


def test_a_flood_before_an_arming_does_not_count() -> None:
    budget = Budget(max_rate=1000)
    budget.begin(0, 0, 10.0)
    assert budget.spent(5000, 0, 10.1)
    budget.begin(5000, 0, 10.2)
    assert not budget.spent(5900, 0, 10.3)
