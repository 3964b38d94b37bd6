# SPDX-License-Identifier: GPL-2.0-only
"""From nftables' messages to rows: right where all came, and never wrong where some did not."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ipttrace.capture.netlink.attributes import NFGEN, attributes
from ipttrace.capture.netlink.events import record_name
from ipttrace.trace.row import Row
from tests.data.nft_messages import (
    ACCEPT,
    CONTINUE,
    DROP,
    GOTO,
    JUMP,
    MARK,
    RETURN,
    SECOND,
    Pipeline,
    attribute,
    batch,
    captured,
    change_messages,
    first_message,
    flip,
    message,
    snapshot,
    trace_message,
    udp,
)

# Table inet t: at input `in` (and `late` after it), at output `out`; `a` and `b` are a user's.
RULES = snapshot(
    **{"in": (1, [10, 11, 12]), "out": (3, [20]), "a": (None, [30, 31]), "b": (None, [40])}
)


def path(row: Row) -> str:
    return " ".join(f"{one.chain}:{one.rulenum}:{one.match}" for one in row.path)


def pipeline_of(*messages: bytes) -> Pipeline:
    one = Pipeline(RULES)
    one.feed([*messages])
    return one


# -- attributes


def test_attributes_that_lie_about_their_lengths_end_the_message() -> None:
    good = attribute(1, b"\0\0\0\1")
    cases = {
        good + attribute(2, b"\0\0\0\2"): {1, 2},
        good + struct.pack("=HH", 0, 2) + bytes(4): {1},
        good + struct.pack("=HH", 3, 2) + bytes(4): {1},
        good + struct.pack("=HH", 9, 2) + bytes(4): {1},
        good + struct.pack("=HH", 0xFFFF, 2) + bytes(4): {1},
        good + b"\x08\0": {1},
        good + struct.pack("=HH", 4, 2): {1, 2},
        struct.pack("=HH", 0xFFFC, 1) + good: set(),
        # of a type that is not known, in network byte order or nested
        attribute(99, b"12345678") + attribute(0x4001, b"\0\0\0\1"): {1},
        b"": set(),
    }
    one = batch([message(body) for body in cases])
    of = attributes(one.data, one.lengths, NFGEN, 3)
    for at, there in enumerate(cases.values()):
        assert {kind for kind in (1, 2) if of.has(kind)[at]} == there, at
    assert of.integer(1, ">u4").tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 1, 0]
    assert of.integer(2, ">u4").tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    # an attribute that is too short for what it should hold has no value
    assert not of.has(2, 4)[6]
    assert not of.bytes(2, 8)[6].any()


def test_the_end_of_the_datagram_counts_not_what_the_message_says() -> None:
    one = batch([message(attribute(1, b"\0\0\0\1") + attribute(2, b"\0\0\0\2"))])
    for length in range(NFGEN + 17):
        of = attributes(one.data, np.array([length], np.int32), NFGEN, 3)
        assert bool(of.has(1)[0]) == (length >= NFGEN + 8)
        assert bool(of.has(2)[0]) == (length >= NFGEN + 16)


# -- runs


def test_what_was_really_told_becomes_the_rows_that_it_was() -> None:
    own, snapshots, messages = captured()
    one = Pipeline(snapshots[0], own)
    one.feed(messages)
    (change,) = one.decoder.changes
    assert change == (snapshots[1].genid, SECOND)
    rows = [row for row in one.rows() if row.dst == "127.0.0.1" and row.proto == "UDP"]
    shown = {(row.dport, row.hook, row.table): (path(row), row.verdict) for row in rows[:18]}
    # every datagram leaves, and comes
    assert len(rows) == 18 + 3
    assert shown[53, "INPUT", "filter"] == ("INPUT:1:rule", "ACCEPT")
    assert shown[53, "OUTPUT", "fw"] == ("out:1:rule out:2:policy", "ACCEPT")
    assert shown[9, "INPUT", "fw"] == (
        "in:1:rule mid:1:rule leaf:1:rule leaf:2:return mid:2:rule mid:3:return in:5:rule "
        "in:6:policy",
        "ACCEPT",
    )
    assert shown[10, "INPUT", "fw"] == ("in:2:rule off:1:rule off:2:return in:6:policy", "ACCEPT")
    assert shown[11, "INPUT", "fw"] == ("in:3:rule", "DROP")
    assert shown[12, "INPUT", "fw"] == ("in:4:rule", "ACCEPT")
    assert shown[13, "INPUT", "fw"] == ("in:5:rule in:6:policy", "ACCEPT")
    assert (one.decoder.unread, one.calls.incomplete, one.trace.incomplete) == (0, 0, 0)


def test_jumps_gotos_and_returns_are_steps_of_the_path() -> None:
    one = pipeline_of(
        flip(1),
        trace_message(1, "in", 10, JUMP, packet=udp()),
        trace_message(1, "a", 30, GOTO),
        trace_message(1, "b", 40, RETURN),
        trace_message(1, "in", 11, JUMP),
        trace_message(1, "a", 31, CONTINUE),
        trace_message(1, "a"),
        trace_message(1, "in", 12, CONTINUE),
        trace_message(1, "in"),
        trace_message(1, "in", policy=DROP),
    )
    (row,) = one.rows()
    assert path(row) == (
        "in:1:rule a:1:rule b:1:return in:2:rule a:2:rule a:3:return in:3:rule in:4:policy"
    )
    assert (row.verdict, row.chain, row.rulenum) == ("DROP", "in", 4)


def test_packets_that_processors_tell_of_at_once_are_told_apart() -> None:
    # GIVEN two packets in the same chains, their messages one by one in turns
    ways = [
        [
            flip(number, udp(port)),
            trace_message(number, "in", 10, JUMP, packet=udp(port)),
            trace_message(number, "a", handle, CONTINUE),
            trace_message(number, "in", 12, verdict),
        ]
        for number, port, handle, verdict in ((1, 53, 30, ACCEPT), (2, 80, 31, DROP))
    ]
    one = pipeline_of(*(each for pair in zip(*ways, strict=True) for each in pair))
    rows = one.rows()
    assert [(row.dport, path(row), row.verdict) for row in rows] == [
        (53, "in:1:rule a:1:rule in:3:rule", "ACCEPT"),
        (80, "in:1:rule a:2:rule in:3:rule", "DROP"),
    ]


def test_messages_of_a_run_may_come_in_portions() -> None:
    one = Pipeline(RULES)
    for each in (
        [flip(1), trace_message(1, "in", 10, JUMP, packet=udp())],
        [trace_message(1, "a", 30)],
        [trace_message(1, "in", 12, DROP), flip(2), first_message(2)],
        [trace_message(2, "in", policy=ACCEPT)],
    ):
        one.feed(each)
    assert [path(row) for row in one.rows()] == [
        "in:1:rule a:1:rule in:3:rule",
        "in:1:rule in:4:policy",
    ]


def test_ids_that_are_used_again_are_of_another_packet() -> None:
    """The kernel makes them of the packet's address, which the next packet has too."""
    one = Pipeline(RULES)
    for port in (53, 80, 443):
        one.feed([flip(7, udp(port)), trace_message(7, "in", 12, ACCEPT, packet=udp(port))])
    one.feed(
        [
            *(flip(7), trace_message(7, "in", 12, DROP, packet=udp(1))),
            *(flip(7), trace_message(7, "in", 12, DROP, packet=udp(2))),
        ]
    )
    rows = one.rows()
    assert [row.dport for row in rows] == [53, 80, 443, 1, 2]
    assert len({row.journey for row in rows}) == 5
    assert one.journeys.begun == 5


def test_packets_that_others_trace_are_shown_only_where_they_were_asked_for() -> None:
    # GIVEN packets that no table of ours flipped
    one = Pipeline(RULES)
    one.feed([first_message(1), trace_message(1, "in", policy=ACCEPT)])
    one.matching = False
    one.feed([first_message(2), trace_message(2, "in", policy=ACCEPT)])
    # what began before we listened
    one.feed([trace_message(3, "in", 11), trace_message(3, "in", policy=ACCEPT)])
    (row,) = one.rows()
    assert row.verdict == "ACCEPT"
    assert one.journeys.refused == 2
    assert one.journeys.begun == 0


def test_names_longer_than_a_record_holds_stay_apart() -> None:
    names = [f"{'x' * 60}{last}" for last in "ab"]
    one = Pipeline(snapshot(**{names[0]: (1, [1]), names[1]: (3, [1, 2])}))
    for name, handle in zip(names, (1, 2), strict=True):
        one.feed([flip(1), trace_message(1, name, handle, DROP, packet=udp())])
    rows = one.rows()
    assert [row.chain for row in rows] == [record_name(name.encode()).decode() for name in names]
    assert [(row.hook, row.rulenum) for row in rows] == [("INPUT", 1), ("OUTPUT", 2)]
    assert rows[0].chain != rows[1].chain


# -- losses


WHOLE = [
    flip(1),
    trace_message(1, "in", 10, JUMP, packet=udp()),
    trace_message(1, "a", 30, CONTINUE),
    trace_message(1, "a"),
    trace_message(1, "in", 12, CONTINUE),
    trace_message(1, "in"),
    trace_message(1, "in", policy=DROP),
    trace_message(1, "out", 20, CONTINUE, packet=udp()),
    trace_message(1, "out"),
    trace_message(1, "out", policy=ACCEPT),
]


def rows_without(*lost: int) -> tuple[list[Row], Pipeline]:
    one = pipeline_of(*(each for at, each in enumerate(WHOLE) if at not in lost))
    return one.rows(), one


def test_nothing_lost() -> None:
    rows, one = rows_without()
    assert [(row.table, row.hook, row.verdict) for row in rows] == [
        ("t", "INPUT", "DROP"),
        ("t", "OUTPUT", "ACCEPT"),
    ]
    assert one.calls.incomplete == 0


def test_a_run_whose_first_message_was_lost_is_no_row() -> None:
    rows, one = rows_without(1)
    assert [row.hook for row in rows] == ["OUTPUT"]
    assert one.calls.incomplete == 1


def test_a_run_whose_last_messages_were_lost_is_no_row_and_counts_as_incomplete() -> None:
    for lost in ((6,), (5, 6), (2, 3, 4, 5, 6)):
        rows, one = rows_without(*lost)
        assert [row.hook for row in rows] == ["OUTPUT"]
        assert (one.calls.incomplete, one.trace.incomplete) == (1, 1)


def test_the_end_of_one_run_is_never_taken_for_that_of_another() -> None:
    # GIVEN that the end of one chain and the beginning of the next are lost
    for lost in ((6, 7), (2, 3, 4, 5, 6, 7), (6, 7, 8), (5, 6, 7, 8)):
        rows, one = rows_without(*lost)
        # THEN the two are not sewn together
        assert rows == [], lost
        assert one.trace.incomplete == 1
        assert one.calls.incomplete >= 1


def test_another_tables_messages_end_a_run_too() -> None:
    one = pipeline_of(
        *WHOLE[:2],
        trace_message(1, "x", 5, CONTINUE, table="other"),
        trace_message(1, "x", policy=ACCEPT, table="other"),
    )
    assert one.rows() == []
    assert one.trace.incomplete == 1


@pytest.mark.parametrize("lost", range(len(WHOLE)))
def test_one_lost_message_makes_no_row_wrong(lost: int) -> None:
    rows, one = rows_without(lost)
    whole = {row.hook: row for row in rows_without()[0]}
    for row in rows:
        full = whole[row.hook]
        assert row.verdict == full.verdict
        assert (row.chain, row.rulenum, row.src) == (full.chain, full.rulenum, full.src)
        # a step may be missing; none is put in
        steps = iter(full.path)
        assert all(step in steps for step in row.path)
    assert len(rows) + one.trace.incomplete >= 1


def test_a_run_that_waits_for_its_end_is_given_up_after_a_while() -> None:
    one = Pipeline(RULES)
    one.feed([flip(1), first_message(1)])
    assert one.trace.rows == 0
    one.feed_events(np.zeros(0, one.decoder.decode(batch([])).dtype), 3 * SECOND)
    assert one.calls._pending is None
    assert one.calls.incomplete == 1


# -- generations


def test_rules_made_anew_with_the_same_handles_are_not_confused() -> None:
    # GIVEN rules
    one = Pipeline(RULES)
    packet = [flip(1), trace_message(1, "in", 12, DROP, packet=udp())]
    one.feed(batch(packet, SECOND))
    # WHEN they are replaced by others, whose table and handles begin again
    one.feed(batch(change_messages(2), 2 * SECOND))
    newer = snapshot(2, 9, **{"in": (1, [12, 10, 11])})
    one.generations.change(*one.decoder.changes.pop(), 2, newer)
    one.feed(batch(packet, 3 * SECOND))
    rows = one.rows()
    # THEN each row has the number of its own time
    assert [row.rulenum for row in rows] == [3, 1]
    assert one.generations.newest is newer


def test_of_two_rules_that_could_be_meant_none_is_named() -> None:
    # GIVEN a packet told of just before the new rules are
    one = Pipeline(RULES)
    packet = [flip(1), trace_message(1, "in", 12, DROP, packet=udp())]
    events = one.decoder.decode(batch([*packet, *change_messages(2), *packet]))
    newer = snapshot(2, 9, **{"in": (1, [12, 10, 11])})
    one.generations.change(*one.decoder.changes.pop(), 2, newer)
    one.feed_events(events, SECOND)
    first, second = one.rows()
    assert first.rulenum is None or first.rulenum == 0
    assert first.rule is None
    assert (first.verdict, first.chain) == ("DROP", "in")
    assert second.rulenum == 1


def test_a_generation_that_was_gone_before_it_was_read_names_only_what_both_sides_agree_on() -> (
    None
):
    # GIVEN that between two known generations was one that nobody saw
    one = Pipeline(RULES)
    one.feed(batch(change_messages(2), 2 * SECOND))
    one.generations.change(*one.decoder.changes.pop(), 2, None)
    rows = [
        [flip(1), trace_message(1, "in", 10, DROP, packet=udp())],
        [flip(1), trace_message(1, "in", 12, DROP, packet=udp())],
        [flip(1), trace_message(1, "a", 30, DROP, packet=udp())],
    ]
    events = [one.decoder.decode(batch(each, 3 * SECOND)) for each in rows]
    one.decoder.decode(batch(change_messages(3), 4 * SECOND))
    one.generations.change(
        *one.decoder.changes.pop(), 3, snapshot(3, **{"in": (1, [10, 12, 11]), "a": (None, [])})
    )
    for each in events:
        one.feed_events(each, 4 * SECOND)
    shown = [(row.chain, row.rulenum or 0, row.rule) for row in one.rows()]
    assert shown == [("in", 1, None), ("in", 0, None), ("a", 0, None)]


def test_old_generations_are_forgotten() -> None:
    one = Pipeline(RULES)
    for number in range(2, 500):
        one.feed(batch(change_messages(number), number * SECOND))
        one.generations.change(*one.decoder.changes.pop(), number, snapshot(number))
    generations = one.generations
    assert (
        len(generations._order) == len(generations._snapshots) == len(generations._announced) == 64
    )
    # AND a packet of one that is forgotten is still a row
    one.decoder.generation = 3
    one.feed([flip(1), trace_message(1, "in", 12, DROP, packet=udp())])
    assert [row.verdict for row in one.rows()] == ["DROP"]


def test_a_mark_is_told_and_an_unknown_device_is_none() -> None:
    more = attribute(MARK, struct.pack(">I", 0xFFFFFFFF))
    one = pipeline_of(flip(1), trace_message(1, "in", 12, DROP, packet=udp(), more=more))
    (row,) = one.rows()
    assert (row.mark, row.out) == (0xFFFFFFFF, None)
