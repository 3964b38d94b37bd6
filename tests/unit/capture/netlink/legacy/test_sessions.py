# SPDX-License-Identifier: GPL-2.0-only
"""A table that may have been another one, unseen, between two readings is known to be one."""

from __future__ import annotations

import random

from ipttrace.capture.netlink.legacy.lock import Moment
from ipttrace.capture.netlink.legacy.sessions import Gap, Sessions

NAT, FILTER = "nat", "filter"
BOTH = frozenset({NAT, FILTER})
FREE = Moment(0, 0, 0)


def gaps(*readings: tuple[Moment, Moment, int]) -> list[Gap]:
    """Of each reading the gap before it: the lock before and after, changes that it shows."""
    sessions = Sessions()
    return [sessions.add(*one) for one in readings]


def test_a_change_by_one_session_hides_nothing_and_by_two_it_may() -> None:
    one = gaps((FREE, FREE, 0), (Moment(1, 0, 0), Moment(1, 0, 0), 1))[1]
    two = gaps((FREE, FREE, 0), (Moment(2, 0, 0), Moment(2, 0, 0), 1))[1]
    assert one.hidden(BOTH, {NAT}) == frozenset()
    # From A by B to C takes two sessions; the other table would need two more.
    assert two.hidden(BOTH, {NAT}) == {NAT}
    # Without a change, a session that changed nothing, and two, which may have changed back.
    assert gaps((FREE, FREE, 0), (Moment(1, 0, 0),) * 2 + (0,))[1].hidden(BOTH, set()) == set()
    assert gaps((FREE, FREE, 0), (Moment(2, 0, 0),) * 2 + (0,))[1].hidden(BOTH, set()) == BOTH


def test_a_session_that_is_still_open_is_explained_by_a_later_reading() -> None:
    first, second, third = (FREE, FREE, 0), (Moment(1, 0, 0), Moment(2, 1, 0), 1), (2, 0, 0)
    doubtful = gaps(first, second)[1]
    assert doubtful.hidden(BOTH, {NAT}) == {NAT}
    # WHEN it changes the other table behind the reading
    found = gaps(first, second, (Moment(*third), Moment(*third), 1))[1]
    assert found.hidden(BOTH, {NAT}) == frozenset()


def test_nothing_is_known_while_the_lock_is_in_doubt() -> None:
    doubt = Moment(1, 0, 1)
    found = gaps((FREE, FREE, 0), (doubt, doubt, 0), (doubt, doubt, 0))
    assert [gap.missed for gap in found[1:]] == [None, 0]
    assert found[1].hidden(BOTH, set()) == BOTH


def test_no_replacement_is_ever_hidden_without_being_suspected() -> None:
    """Sessions and readings at random: the truth is what each table was between two readings."""
    rng = random.Random(7)
    cleared = 0
    for _ in range(2000):
        sessions, opened, closed, acted = Sessions(), 0, 0, 0
        sessions.add(FREE, FREE, 0)
        tables, before = dict.fromkeys(BOTH, 0), dict.fromkeys(BOTH, 0)
        met = {key: {0} for key in BOTH}  # since the reading before
        found: list[tuple[Gap, set[str], set[str]]] = []
        for _ in range(15):
            started = None
            for step in rng.choices(("open", "replace", "close"), k=8):
                if started is None and rng.random() < 0.2:
                    started = Moment(opened, opened - closed, 0)
                if step == "open" and opened < closed + 3:
                    opened += 1
                elif step == "close" and opened > closed:
                    closed += 1
                    acted = max(acted, closed)
                elif step == "replace" and acted < opened and acted == closed:
                    # Of those that wait for the lock, the first has it.
                    acted += 1
                    key = rng.choice(sorted(BOTH))
                    tables[key] = rng.randrange(3)
                    met[key].add(tables[key])
            started = started or Moment(opened, opened - closed, 0)
            # WHEN tables are read, some time before the lock is looked at again
            changed = {key for key in BOTH if tables[key] != before[key]}
            wrong = {key for key in BOTH if met[key] - {before[key], tables[key]}}
            before, met = dict(tables), {key: {tables[key]} for key in BOTH}
            if opened < closed + 3 and rng.random() < 0.3:
                opened += 1
            gap = sessions.add(started, Moment(opened, opened - closed, 0), len(changed))
            found.append((gap, changed, wrong))
        for gap, changed, wrong in found:
            assert wrong <= gap.hidden(BOTH, changed)
            cleared += not gap.hidden(BOTH, changed)
    # AND not everything is suspected
    assert cleared > 500
