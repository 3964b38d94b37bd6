# SPDX-License-Identifier: GPL-2.0-only
"""Maps that forget by age, and the memory of journeys on a host that runs for hours."""

from __future__ import annotations

import numpy as np

from ipttrace.capture.netlink.events import (
    EVENT,
    RULE,
    TABLE_PREFIX,
    ChainKey,
    ChainRegistry,
    UniqueNumbers,
)
from ipttrace.capture.netlink.fading import SPAN, FadingMap
from ipttrace.capture.netlink.journeys import NftJourneys
from ipttrace.capture.netlink.keys import Keys
from ipttrace.capture.netlink.legacy_journeys import LegacyJourneys


def test_what_was_written_lately_is_remembered_and_the_rest_forgotten() -> None:
    held: FadingMap[str] = FadingMap(100, span=10)
    held.fade(1000)
    held[1], held[2] = "one", "two"
    held.fade(1012)
    held[2] = "again"
    assert (held.get(1), held[2], held.get(3), held.get(3, "-")) == ("one", "again", None, "-")
    assert (1 in held, 3 in held, sorted(held), len(held)) == (True, False, [1, 2], 2)
    held.fade(1024)
    assert (held.get(1), held.get(2)) == (None, "again")
    assert held.pop(2) == "again"
    assert held.pop(2) is None
    assert not held


def test_after_a_long_pause_all_is_forgotten() -> None:
    held: FadingMap[int] = FadingMap(100, span=10)
    held.fade(0)
    held[1] = 1
    held.fade(20)
    assert not held


def test_a_flood_forgets_before_the_time_is_over() -> None:
    held: FadingMap[int] = FadingMap(100)
    held.fade(0)
    for key in range(100_000):
        held[key] = key
    assert 50 <= len(held) <= 100
    assert held.get(99_999) == 99_999
    assert held.get(0) is None


def test_a_packet_seen_once_a_second_is_held_for_as_long_as_that_lasts() -> None:
    held: FadingMap[int] = FadingMap(100)
    for second in range(600):
        held.fade(second * 1_000_000_000)
        assert second == 0 or held.get(1) == second - 1
        held[1] = second
        held[1000 + second] = 0
    assert len(held) <= 2 * SPAN // 1_000_000_000 + 1


def test_packets_of_hours_ago_are_not_remembered() -> None:
    # GIVEN flips of 100 packets a second, each with another id, as a quiet host has them
    chains = ChainRegistry()
    flip = ChainKey(1, TABLE_PREFIX + b"1", b"flip")
    chains.chains.append(flip)
    journeys = NftJourneys(
        chains, flip.table, UniqueNumbers(), lambda packets, _: packets[:, 0] > 0
    )
    legacy = LegacyJourneys(UniqueNumbers(), lambda packets, _: packets[:, 0] > 0)
    keys = np.random.default_rng(23).integers(1, 1 << 60, (600, 100), np.uint64)
    for second in range(600):
        events = np.zeros(100, EVENT)
        events["id"] = np.arange(100) + 100 * second
        events["time"] = second * 1_000_000_000
        events["kind"] = RULE
        journeys.assign(events)
        of = Keys(keys[second], keys[second], keys[second])
        none = Keys(*np.zeros((3, 0), np.uint64))
        legacy.assign(events[:0], none, journeys.flips, of)
    # THEN those of the last minute are remembered
    held = [journeys._open, *legacy._all]
    assert max(map(len, held)) <= 100 * 61
    assert len(journeys._open) >= 100 * 29
    assert len(legacy._newest) >= 100 * 29
