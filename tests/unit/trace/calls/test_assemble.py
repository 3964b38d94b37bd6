# SPDX-License-Identifier: GPL-2.0-only
"""Records joined to calls in any order, with any of them missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream.record import (
    ENTRY,
    EXIT,
    EXIT_F_CHANGED,
    MATCHES,
    RULE,
    SOURCE_KERNEL,
    SOURCE_NFLOG,
    SOURCE_NFT,
)
from ipttrace.trace.calls.assemble import PATIENCE_NS, Assembler, Calls
from tests.data import streams, synth
from tests.data.records import MONO, Array, entry, joined, leave, rule

SECOND = 1_000_000_000


def batch(
    assembler: Assembler, entries: list[Array], rules: list[Array], exits: list[Array]
) -> list[int]:
    """Feeds one batch; returns the ids of the finished calls."""
    found = []
    for kind, records in ((ENTRY, entries), (RULE, rules), (EXIT, exits)):
        if records:
            calls = assembler.feed(kind, joined(*records))
            found += ids(calls)
    return found


def ids(calls: Calls | None) -> list[int]:
    return [] if calls is None else calls.entries["call"].tolist()


def paths(calls: Calls) -> list[list[tuple[bytes, int]]]:
    steps = list(zip(calls.rules["chain"].tolist(), calls.rules["rulenum"].tolist(), strict=True))
    ends = np.cumsum(calls.counts).tolist()
    return [steps[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def test_a_call_lists_its_rules_in_the_order_of_their_hits() -> None:
    assembler = Assembler()
    assembler.feed(ENTRY, entry(5))
    assembler.feed(
        RULE, joined(rule(5, 2, b"FORWARD", 3), rule(5, 0, b"FORWARD", 1), rule(5, 1, b"user", 9))
    )
    calls = assembler.feed(EXIT, leave(5, 3))
    assert calls is not None
    assert paths(calls) == [[(b"FORWARD", 1), (b"user", 9), (b"FORWARD", 3)]]
    assert (calls.partial.tolist(), calls.decided.tolist()) == ([False], [True])


def test_the_answer_of_a_reject_rule_is_a_call_with_its_own_rules() -> None:
    # GIVEN an INPUT call, and within it the OUTPUT call of the ICMP error
    assembler = Assembler()
    assembler.feed(ENTRY, joined(entry(1, 0), entry(2, 100, skb=0x2000, parent=1)))
    assembler.feed(RULE, joined(rule(1, 0, b"INPUT", 4, at=10), rule(2, 0, b"OUTPUT", 1, at=110)))
    # WHEN the inner one ends first
    calls = assembler.feed(EXIT, joined(leave(2, 1, at=200), leave(1, 1, 0, at=300)))
    # THEN each has its own rules, in the order in which they began
    assert calls is not None
    assert ids(calls) == [1, 2]
    assert paths(calls) == [[(b"INPUT", 4)], [(b"OUTPUT", 1)]]
    assert calls.exits["verdict"].tolist() == [0, 1]
    assert calls.journeys.tolist() == [1, 2]


def test_a_call_without_exit_is_counted_but_not_shown() -> None:
    assembler = Assembler()
    assert batch(assembler, [entry(1), entry(2)], [rule(1, 0, b"INPUT", 1)], [leave(2, 0)]) == [2]
    assert assembler.incomplete == 0
    assert assembler.waiting == 1
    late = PATIENCE_NS + SECOND
    assert batch(assembler, [entry(3, late)], [], [leave(3, 0, at=late)]) == [3]
    assert (assembler.incomplete, assembler.waiting) == (1, 0)


def test_a_call_without_entry_is_counted_but_not_shown() -> None:
    assembler = Assembler()
    assert batch(assembler, [], [rule(1, 0, b"INPUT", 1)], [leave(1, 1)]) == []
    assert assembler.finish() is None
    assert assembler.incomplete == 1


def test_a_call_without_its_last_rule_is_partial_and_undecided() -> None:
    assembler = Assembler()
    assembler.feed(ENTRY, joined(entry(1), entry(2, 1), entry(3, 2)))
    assembler.feed(RULE, joined(rule(1, 0, b"INPUT", 4), rule(2, 1, b"user", 2)))
    calls = assembler.feed(EXIT, joined(leave(1, 2), leave(2, 2), leave(3, 1)))
    assert calls is not None
    assert calls.partial.tolist() == [True, True, True]
    assert calls.decided.tolist() == [False, True, False]


def test_a_call_spread_over_two_batches_is_shown_with_the_second() -> None:
    assembler = Assembler()
    assert batch(assembler, [entry(1)], [rule(1, 0, b"INPUT", 1)], [leave(9, 0)]) == []
    assembler.feed(RULE, rule(1, 1, b"INPUT", 7))
    calls = assembler.feed(EXIT, leave(1, 2))
    assert calls is not None
    assert paths(calls) == [[(b"INPUT", 1), (b"INPUT", 7)]]
    assert calls.journeys.tolist() == [1]


def test_an_entry_after_its_exit_still_makes_a_row() -> None:
    assembler = Assembler()
    assert batch(assembler, [], [], [leave(1, 0)]) == []
    assert assembler.feed(ENTRY, entry(1)) is None
    assert ids(assembler.flush()) == [1]
    assert assembler.waiting == 0


def test_a_repeated_call_is_shown_once() -> None:
    assembler = Assembler()
    assert batch(assembler, [entry(1), entry(1)], [], [leave(1, 0), leave(1, 0)]) == [1]


def matches(calls: Calls | None) -> list[str]:
    assert calls is not None
    return [MATCHES[match] for match in calls.rules["match"].tolist()]


RETURN, POLICY = (MATCHES.index(name) for name in ("return", "policy"))


def test_an_unconditional_drop_in_a_user_chain_is_a_rule_not_a_return() -> None:
    # GIVEN `-A LOGDROP -j DROP`, which the kernel reports as "return"
    assembler = Assembler()
    assembler.feed(ENTRY, joined(entry(1), entry(2, 1)))
    assembler.feed(
        RULE,
        joined(
            rule(1, 0, b"INPUT", 3),
            rule(1, 1, b"LOGDROP", 2, RETURN),
            # and another call that did return
            rule(2, 0, b"SITE", 4, RETURN),
            rule(2, 1, b"INPUT", 9, POLICY),
        ),
    )
    # THEN the deciding hit is a rule, and the return stays a return
    calls = assembler.feed(EXIT, joined(leave(1, 2, 0), leave(2, 2)))
    assert matches(calls) == ["rule", "rule", "return", "policy"]


@pytest.mark.parametrize("source", [SOURCE_KERNEL, SOURCE_NFT, SOURCE_NFLOG])
def test_the_end_of_a_chain_stays_a_return_if_a_match_drops_the_packet_behind_it(
    source: int,
) -> None:
    # GIVEN a call that ends right behind the end of a chain, of known rules, and as many of
    # rules that are unknown or changed meanwhile
    of: dict[str, Any] = {"source": source}
    entries = [entry(1, ruleset=7, **of), entry(2, 1, **of), entry(3, 2, ruleset=7, **of)]
    exits = [leave(1, 2, 0), leave(2, 2, 0), leave(3, 2, 0, flags=EXIT_F_CHANGED)]
    assembler = Assembler()
    assembler.feed(ENTRY, joined(*entries))
    hits = [
        one
        for call in (1, 2, 3)
        for one in (rule(call, 0, b"INPUT", 1), rule(call, 1, b"SITE", 4, RETURN))
    ]
    assembler.feed(RULE, joined(*hits))
    # THEN "return" is corrected only where it may be a rule; nftables' never is
    calls = assembler.feed(EXIT, joined(*exits))
    unknown = "return" if source == SOURCE_NFT else "rule"
    assert matches(calls)[1::2] == ["return", unknown, unknown]


def test_a_return_stays_a_return_though_its_chain_is_entered_again() -> None:
    # GIVEN a chain that two rules jump to, the second of which was lost
    assembler = Assembler()
    assembler.feed(ENTRY, entry(1))
    hits = [(0, b"INPUT", 1, 0), (1, b"SITE", 2, RETURN), (3, b"SITE", 1, 0)]
    assembler.feed(RULE, joined(*(rule(1, *one) for one in hits)))
    calls = assembler.feed(EXIT, leave(1, 4, 0))
    assert matches(calls) == ["rule", "return", "rule"]


def test_a_return_stays_a_return_if_the_records_after_it_are_lost() -> None:
    assembler = Assembler()
    assembler.feed(ENTRY, joined(entry(1), entry(2, 1)))
    assembler.feed(RULE, joined(rule(1, 0, b"SITE", 4, RETURN), rule(2, 1, b"SITE", 4, RETURN)))
    # The last rule of call 1 is missing, and the first of call 2.
    calls = assembler.feed(EXIT, joined(leave(1, 2), leave(2, 2)))
    assert matches(calls) == ["return", "rule"]


def test_feeding_does_not_modify_the_records() -> None:
    assembler = Assembler()
    hit = rule(1, 0, b"LOGDROP", 2, RETURN)
    hit.setflags(write=False)
    assembler.feed(ENTRY, entry(1))
    assembler.feed(RULE, hit)
    assert matches(assembler.feed(EXIT, leave(1, 1, 0))) == ["rule"]
    assert hit["match"].tolist() == [RETURN]


def test_an_skb_has_one_journey_until_its_address_is_reused() -> None:
    assembler = Assembler()
    journeys = []
    times = iter(range(0, 10_000, 100))
    for first, call in ((1, 1), (0, 2), (0, 3), (1, 4), (0, 5)):
        at = next(times)
        assembler.feed(ENTRY, entry(call, at, flags=first))
        calls = assembler.feed(EXIT, leave(call, 0, at=at + 50))
        assert calls is not None
        journeys += calls.journeys.tolist()
    assert journeys == [1, 1, 1, 4, 4]


def test_packets_in_one_batch_have_separate_journeys() -> None:
    assembler = Assembler()
    entries = [
        entry(1, 0, skb=0xA),
        entry(2, 10, skb=0xB),
        entry(3, 20, skb=0xA, flags=2),
        entry(4, 30, skb=0xB, flags=2),
        entry(5, 40, skb=0xA),  # the address is used again
        entry(6, 50, skb=0xA, flags=2),
        entry(7, 60, skb=0xC, flags=2),  # its beginning was not seen
        entry(8, 70, skb=0xC, flags=2),
    ]
    assembler.feed(ENTRY, joined(*entries))
    calls = assembler.feed(EXIT, joined(*(leave(call, 0, at=call * 10) for call in range(1, 9))))
    assert calls is not None
    assert calls.journeys.tolist() == [1, 2, 1, 2, 5, 5, 7, 7]


@pytest.mark.parametrize("verdict", [0, 2])
def test_a_journey_ends_when_the_packet_is_dropped_or_stolen(verdict: int) -> None:
    # GIVEN a dropped packet, and another one at its address whose first entry
    # record was lost
    assembler = Assembler()
    assert batch(assembler, [entry(1, 0)], [], [leave(1, 0, verdict, at=50)]) == [1]
    assembler.feed(ENTRY, entry(3, 100, flags=0))
    calls = assembler.feed(EXIT, leave(3, 0, at=150))
    # THEN it is not part of the dropped packet's journey
    assert calls is not None
    assert calls.journeys.tolist() == [3]


def test_endless_entries_without_exits_use_bounded_memory() -> None:
    assembler = Assembler()
    some = synth.make(20_000).entries.copy()
    total = 0
    for _ in range(20):
        some["call"] += len(some)
        assembler.feed(ENTRY, some)
        assembler.feed(EXIT, leave(1 << 60, 0, at=0))
        total += len(some)
        assert assembler.waiting <= 1 << 18
    assembler.finish()
    assert assembler.incomplete >= total


@pytest.mark.parametrize("size", [7, 500, 3000, 10**6])
def test_the_batch_size_does_not_change_the_calls(size: int) -> None:
    records = synth.make(1500)
    assembler = Assembler()
    got: dict[int, tuple[object, ...]] = {}
    for each in records.batches(size):
        for kind, some in enumerate(each):
            calls = assembler.feed(kind, some)
            if calls is not None:
                assert not calls.partial.any()
                assert (np.diff(calls.entries["time"].astype(np.int64)) >= 0).all()
                for at, (call, path) in enumerate(zip(ids(calls), paths(calls), strict=True)):
                    assert calls.exits["call"][at] == call
                    got[call] = (path, int(calls.journeys[at]))
    assert len(got) == len(records.entries)
    assert (assembler.incomplete, assembler.waiting) == (0, 0)
    wanted: dict[int, list[tuple[bytes, int]]] = {call: [] for call in got}
    for each in np.sort(records.rules, order=["call", "seq"]):
        wanted[int(each["call"])].append((bytes(each["chain"]), int(each["rulenum"])))
    assert {call: path for call, (path, _) in got.items()} == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5), st.integers(1, 400))
def test_shown_and_incomplete_calls_add_up_after_any_loss(
    seed: int, share: float, size: int
) -> None:
    # GIVEN records, some of them lost
    rng = np.random.default_rng(seed)
    records = synth.make(200)
    kept = synth.Records(
        *(
            kind[rng.random(len(kind)) >= share]
            for kind in (records.entries, records.rules, records.exits)
        )
    )
    # WHEN they come in batches
    assembler = Assembler()
    shown: list[int] = []
    partial: set[int] = set()
    for each in kept.batches(size) if len(kept) else ():
        for kind, some in enumerate(each):
            calls = assembler.feed(kind, some)
            shown += ids(calls)
            if calls is not None:
                partial |= set(calls.entries["call"][calls.partial].tolist())
    shown += ids(assembler.finish())
    # THEN every call with entry and exit is shown once, and the others are counted
    begun, ended = (set(kind["call"].tolist()) for kind in (kept.entries, kept.exits))
    assert sorted(shown) == sorted(begun & ended)
    assert assembler.incomplete == len(begun ^ ended)
    gone = set(records.rules["call"].tolist())
    whole = {
        call
        for call, have in zip(*np.unique(kept.rules["call"], return_counts=True), strict=True)
        if have == np.count_nonzero(records.rules["call"] == call)
    }
    assert partial == (gone - whole) & set(shown)


def test_random_bytes_in_every_field_raise_nothing() -> None:
    rng = np.random.default_rng(3)
    assembler = Assembler()
    for turn in range(30):
        for kind, like in enumerate((entry(1), rule(1, 0, b"", 1), leave(1, 0))):
            raw = rng.integers(0, 256, 50 * like.dtype.itemsize, dtype=np.uint8)
            some = raw.view(like.dtype)
            some["call"] %= 40 + turn
            assembler.feed(kind, some)
    assembler.finish()


def backlog(calls: int) -> tuple[Array, Array, Array]:
    """One batch of `calls` calls over two minutes, as an agent that could not write takes it."""
    entries, rules, exits = streams.records(calls)
    for records in (entries, rules, exits):
        records["time"] = MONO + np.arange(calls, dtype=np.uint64) * (120 * SECOND // calls)
    # The exits come CPU by CPU.
    return entries, rules, np.concatenate([exits[::2], exits[1::2]])


def in_frames(assembler: Assembler, kinds: Iterable[Array]) -> tuple[int, int]:
    """Feeds frames of 1 MB; returns the number of finished calls and of rule records."""
    rows = rules = 0
    for kind, records in enumerate(kinds):
        most = (1 << 20) // records.dtype.itemsize
        for start in range(0, len(records), most):
            calls = assembler.feed(kind, records[start : start + most])
            if calls is not None:
                rows += len(calls)
                rules += len(calls.rules)
    return rows, rules


def test_a_backlog_of_300000_calls_in_one_batch_gives_300000_rows() -> None:
    assembler = Assembler()
    assert in_frames(assembler, backlog(300_000)) == (300_000, 300_000)
    assembler.finish()
    assert (assembler.incomplete, assembler.waiting, assembler.size) == (0, 0, 0)


def test_a_call_that_was_open_when_a_long_batch_began_is_a_row() -> None:
    # GIVEN a call that had not ended when a batch was taken, and its exit last in the next one
    assembler = Assembler()
    assert batch(assembler, [entry(1 << 50)], [], [leave(1 << 51, 0)]) == []
    entries, rules, exits = backlog(30_000)
    rows, _ = in_frames(assembler, (entries, rules, np.append(exits, leave(1 << 50, 0))))
    assert rows == 30_001


@pytest.mark.parametrize("first", [ENTRY, EXIT])
def test_a_call_that_is_given_up_is_counted_once(first: int) -> None:
    # GIVEN one record of a call, and too many others meanwhile
    assembler = Assembler()
    records = {ENTRY: entry(1), EXIT: leave(1, 0)}
    assembler.feed(first, records.pop(first))
    assembler.feed(EXIT, leave(2, 0))
    late = PATIENCE_NS + SECOND
    assert batch(assembler, [entry(3, late)], [], [leave(3, 0, at=late)]) == [3]
    assert assembler.incomplete == 2
    # WHEN its other record comes in the end
    for kind, other in records.items():
        assembler.feed(kind, other)
    assembler.finish()
    # THEN it is not counted again
    assert assembler.incomplete == 2
