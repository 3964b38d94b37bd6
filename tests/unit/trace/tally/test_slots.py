# SPDX-License-Identifier: GPL-2.0-only
"""Slots for a bounded number of keys: the keys not counted for longest are evicted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ipttrace.trace.tally.slots import OTHER, Slots

Keys = npt.NDArray[np.uint64]


def keys(*numbers: int) -> Keys:
    return np.array(numbers, np.uint64)


def count(slots: Slots, some: Keys) -> None:
    found, _, _ = slots.assign(some)
    np.add.at(slots.columns["hits"], found, 1)


def hits(slots: Slots, key: int) -> int | None:
    found = np.flatnonzero(slots._keys == np.uint64(key))
    return int(slots.columns["hits"][slots._slots[found[0]]]) if len(found) else None


def new_slots(limit: int) -> Slots:
    return Slots(limit, {"hits": ("i8", ()), "mark": ("i8", ())}, ("hits",))


def test_equal_keys_share_a_slot_and_new_keys_are_reported_once() -> None:
    slots = new_slots(100)
    found, first, fresh = slots.assign(keys(7, 5, 7, 9, 5))
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert len({*found.tolist()}) == 3
    assert OTHER not in found
    assert sorted(zip(first.tolist(), fresh.tolist(), strict=True)) == [
        (0, found[0]),
        (1, found[1]),
        (3, found[3]),
    ]
    again, first, fresh = slots.assign(keys(9, 7))
    assert again.tolist() == [found[3], found[0]]
    assert len(first) == len(fresh) == 0


def test_the_keys_not_counted_for_longest_are_evicted_for_new_ones() -> None:
    # GIVEN 32 keys, all except two counted again
    slots = new_slots(32)
    count(slots, np.arange(32, dtype=np.uint64))
    count(slots, np.setdiff1d(np.arange(32, dtype=np.uint64), keys(3, 17)))
    # WHEN two more are counted
    count(slots, keys(100, 101))
    # THEN those two are evicted, and their counts added to slot 0
    assert hits(slots, 3) is hits(slots, 17) is None
    assert hits(slots, 4) == 2
    assert hits(slots, 100) == hits(slots, 101) == 1
    assert slots.columns["hits"][OTHER] == 2
    assert slots.evicted == 2


def test_eviction_loses_no_count() -> None:
    rng = np.random.default_rng(3)
    slots = new_slots(200)
    total = 0
    for _ in range(300):
        some = rng.zipf(1.3, rng.integers(1, 150)).astype(np.uint64) % np.uint64(5000)
        count(slots, some)
        total += len(some)
        assert len(slots) <= 200
        assert len(set(slots.live.tolist())) == len(slots)
        assert int(slots.columns["hits"].sum()) == total
    assert slots.evicted > 0
    assert len(slots.columns["hits"]) <= 201


def test_new_keys_beyond_the_limit_count_for_slot_0() -> None:
    slots = new_slots(10)
    count(slots, np.arange(50, dtype=np.uint64))
    assert len(slots) == 10
    assert slots.columns["hits"][OTHER] == 40
    # AND later keys get a slot again
    count(slots, keys(1000))
    assert hits(slots, 1000) == 1


def test_a_reused_slot_is_empty() -> None:
    slots = new_slots(2)
    found, _, _ = slots.assign(keys(1, 2))
    slots.columns["mark"][found] = 99
    slots.assign(keys(2))
    found, _, fresh = slots.assign(keys(3))
    assert found.tolist() == fresh.tolist()
    assert slots.columns["mark"][found[0]] == 0
