# SPDX-License-Identifier: GPL-2.0-only
"""Who changes rules all the time is read less and less often, and after all others."""

from __future__ import annotations

from ipttrace.capture.rules import pauses
from ipttrace.capture.rules.pauses import Pauses

NOISY, CALM = (7, 4), (8, 4)


def test_a_group_that_is_read_again_and_again_waits_up_to_two_seconds() -> None:
    one = Pauses()
    now, lengths = 0.0, []
    for _ in range(10):
        lengths.append(one.begin(NOISY, now))
        now = one.end([NOISY])
    assert lengths[:3] == [pauses.FIRST, 2 * pauses.FIRST, 4 * pauses.FIRST]
    assert lengths[-1] == pauses.LONGEST
    # WHEN it comes to rest, THEN it is as any other
    assert one.begin(NOISY, now + 3 * pauses.LONGEST) == pauses.FIRST


def test_a_calm_group_comes_before_a_noisy_one_that_was_due_first() -> None:
    one = Pauses()
    one.begin(NOISY, 0.0)
    one.begin(NOISY, 0.06)
    one.begin(CALM, 0.06)
    assert one.calmest([NOISY, CALM], 0.07) is None
    assert one.calmest([NOISY, CALM], 0.12) == CALM
    assert one.calmest([NOISY, CALM], 1.0) == CALM
    assert one.calmest([NOISY], 1.0) == NOISY
    # AND one that was never read needs no pause
    assert one.calmest([NOISY, (9, 6)], 0.0) == (9, 6)
    one.forget(NOISY)
    assert one.end([NOISY]) == 0.0
