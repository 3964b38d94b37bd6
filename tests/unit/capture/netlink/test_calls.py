# SPDX-License-Identifier: GPL-2.0-only
"""From nftables' messages to rows: complete if all arrived, never wrong if some were lost."""

from __future__ import annotations

import struct
from itertools import product

import numpy as np
import pytest

from ipttrace.capture.netlink.attributes import NFGEN, attributes
from ipttrace.capture.netlink.calls import CallMaker
from ipttrace.capture.netlink.events import (
    LEGACY_EVENT,
    POLICY,
    VERDICT_CONTINUE,
    ChainKey,
    ChainRegistry,
    UniqueNumbers,
    packet_length,
)
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.stream.record import SOURCE_NFLOG
from ipttrace.trace.row import Row
from tests.data.nft_messages import (
    ACCEPT,
    CONTINUE,
    DROP,
    GOTO,
    JUMP,
    MARK,
    NET,
    RETURN,
    SECOND,
    TRANSPORT,
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

# Table inet t: base chains `in` at input and `out` at output; `a` and `b` are jumped to.
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


def test_an_attribute_with_a_wrong_length_ends_the_message() -> None:
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
        # of an unknown type; with the flag for network byte order
        attribute(99, b"12345678") + attribute(0x4001, b"\0\0\0\1"): {1},
        b"": set(),
    }
    one = batch([message(body) for body in cases])
    of = attributes(one.data, one.lengths, NFGEN, 3)
    for at, expected in enumerate(cases.values()):
        assert {kind for kind in (1, 2) if of.has(kind)[at]} == expected, at
    assert of.integer(1, ">u4").tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 1, 0]
    assert of.integer(2, ">u4").tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    # an attribute that is too short has no value
    assert not of.has(2, 4)[6]
    assert not of.bytes(2, 8)[6].any()


def test_attributes_beyond_the_end_of_the_datagram_are_ignored() -> None:
    one = batch([message(attribute(1, b"\0\0\0\1") + attribute(2, b"\0\0\0\2"))])
    for length in range(NFGEN + 17):
        of = attributes(one.data, np.array([length], np.int32), NFGEN, 3)
        assert bool(of.has(1)[0]) == (length >= NFGEN + 8)
        assert bool(of.has(2)[0]) == (length >= NFGEN + 16)


# -- calls


def test_captured_messages_become_the_rows_of_the_traffic() -> None:
    own, snapshots, messages = captured()
    one = Pipeline(snapshots[0], own)
    one.feed(messages)
    (change,) = one.decoder.changes
    assert change[0] == snapshots[1].genid
    assert SECOND - 100_000 < change[1] < SECOND  # in the order of the socket's messages
    rows = [row for row in one.rows() if row.dst == "127.0.0.1" and row.proto == "UDP"]
    shown = {(row.dport, row.hook, row.table): (path(row), row.verdict) for row in rows[:18]}
    # every datagram is sent and received
    assert len(rows) == 18 + 3
    assert shown[53, "INPUT", "filter"] == ("INPUT:1:rule", "ACCEPT")
    assert shown[53, "OUTPUT", "fw"] == ("out:1:rule out:2:policy", "ACCEPT")
    assert shown[9, "INPUT", "fw"] == (
        "in:1:rule mid:1:rule leaf:1:rule leaf:2:rule mid:2:rule mid:3:return in:5:rule "
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
        "in:1:rule a:1:rule b:1:rule in:2:rule a:2:rule a:3:return in:3:rule in:4:policy"
    )
    assert (row.verdict, row.chain, row.rulenum) == ("DROP", "in", 4)


def test_packets_whose_messages_alternate_are_kept_apart() -> None:
    # GIVEN two packets in the same chains, traced on two processors at once
    messages = [
        [
            flip(number, udp(port)),
            trace_message(number, "in", 10, JUMP, packet=udp(port)),
            trace_message(number, "a", handle, CONTINUE),
            trace_message(number, "in", 12, verdict),
        ]
        for number, port, handle, verdict in ((1, 53, 30, ACCEPT), (2, 80, 31, DROP))
    ]
    one = pipeline_of(*(each for pair in zip(*messages, strict=True) for each in pair))
    rows = one.rows()
    assert [(row.dport, path(row), row.verdict) for row in rows] == [
        (53, "in:1:rule a:1:rule in:3:rule", "ACCEPT"),
        (80, "in:1:rule a:2:rule in:3:rule", "DROP"),
    ]


def test_messages_of_a_call_may_come_in_several_batches() -> None:
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


def test_a_packet_with_the_id_of_an_earlier_one_begins_another_journey() -> None:
    """The kernel derives ids from the packet's address, which the next packet may get."""
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


def test_packets_that_others_trace_are_shown_only_if_expr_matches() -> None:
    # GIVEN packets that the flip table did not flip
    one = Pipeline(RULES)
    one.feed([first_message(1), trace_message(1, "in", policy=ACCEPT)])
    one.matching = False
    one.feed([first_message(2), trace_message(2, "in", policy=ACCEPT)])
    # a call that began before the engine listened
    one.feed([trace_message(3, "in", 11), trace_message(3, "in", policy=ACCEPT)])
    (row,) = one.rows()
    assert row.verdict == "ACCEPT"
    assert one.journeys.refused == 2
    assert one.journeys.begun == 0


def test_names_longer_than_a_record_holds_are_whole_in_rows() -> None:
    names = [f"{'x' * 60}{last}" for last in "ab"]
    one = Pipeline(snapshot(**{names[0]: (1, [1]), names[1]: (3, [1, 2])}))
    for name, handle in zip(names, (1, 2), strict=True):
        one.feed([flip(1), trace_message(1, name, handle, DROP, packet=udp())])
    rows = one.rows()
    assert [row.chain for row in rows] == names
    assert [(row.hook, row.rulenum) for row in rows] == [("INPUT", 1), ("OUTPUT", 2)]


def test_no_two_names_of_a_run_have_one_short_form() -> None:
    names = RecordNames()
    long = [b"x" * 40 + bytes(pair) for pair in product(range(65, 125), repeat=2)]
    # one that looks like a short form, and one that fits
    given = [*long, names.short(long[0]), b"INPUT", "ä".encode() * 127, b"\xff" * 255]
    short = [names.short(name) for name in given]
    assert len(set(short)) == len(given)
    assert max(map(len, short)) <= 31
    full = {name: names.new.get(name.decode()) for name in short}
    assert [full[one] for one in short[:-4]] == [name.decode() for name in long]
    assert full[short[-4]] == given[-4].decode()
    assert (short[-3], full[b"INPUT"]) == (b"INPUT", None)
    assert full[short[-1]] == "\\xff" * 255
    # AND a name keeps its form
    assert [names.short(name) for name in given] == short


# -- losses


COMPLETE = [
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
    one = pipeline_of(*(each for at, each in enumerate(COMPLETE) if at not in lost))
    return one.rows(), one


def test_nothing_lost() -> None:
    rows, one = rows_without()
    assert [(row.table, row.hook, row.verdict) for row in rows] == [
        ("t", "INPUT", "DROP"),
        ("t", "OUTPUT", "ACCEPT"),
    ]
    assert one.calls.incomplete == 0


def test_a_call_whose_first_message_was_lost_is_no_row() -> None:
    rows, one = rows_without(1)
    assert [row.hook for row in rows] == ["OUTPUT"]
    assert one.calls.incomplete == 1


def test_a_call_whose_last_messages_were_lost_is_no_row_and_counts_as_incomplete() -> None:
    for lost in ((6,), (5, 6), (2, 3, 4, 5, 6)):
        rows, one = rows_without(*lost)
        assert [row.hook for row in rows] == ["OUTPUT"]
        assert (one.calls.incomplete, one.trace.incomplete) == (1, 1)


def test_the_end_of_one_call_is_never_taken_for_that_of_another() -> None:
    # GIVEN that the end of one call and the beginning of the next are lost
    for lost in ((6, 7), (2, 3, 4, 5, 6, 7), (6, 7, 8), (5, 6, 7, 8)):
        rows, one = rows_without(*lost)
        # THEN the two are not joined
        assert rows == [], lost
        assert one.trace.incomplete == 1
        assert one.calls.incomplete >= 1


def test_messages_of_another_table_end_a_call_too() -> None:
    one = pipeline_of(
        *COMPLETE[:2],
        trace_message(1, "x", 5, CONTINUE, table="other"),
        trace_message(1, "x", policy=ACCEPT, table="other"),
    )
    assert one.rows() == []
    assert one.trace.incomplete == 1


@pytest.mark.parametrize("lost", range(len(COMPLETE)))
def test_one_lost_message_makes_no_row_wrong(lost: int) -> None:
    rows, one = rows_without(lost)
    complete = {row.hook: row for row in rows_without()[0]}
    for row in rows:
        full = complete[row.hook]
        assert row.verdict == full.verdict
        assert (row.chain, row.rulenum, row.src) == (full.chain, full.rulenum, full.src)
        # a step may be missing; none is invented
        steps = iter(full.path)
        assert all(step in steps for step in row.path)
    assert len(rows) + one.trace.incomplete >= 1


def test_a_call_whose_end_does_not_come_is_given_up() -> None:
    one = Pipeline(RULES)
    one.feed([flip(1), first_message(1)])
    assert one.trace.rows == 0
    one.feed_events(np.zeros(0, one.decoder.decode(batch([])).dtype), 3 * SECOND)
    assert one.calls._pending is None
    assert one.calls.incomplete == 1


# -- generations


def test_rules_of_a_table_made_again_with_the_same_handles_are_not_confused() -> None:
    # GIVEN rules
    one = Pipeline(RULES)
    packet = [flip(1), trace_message(1, "in", 12, DROP, packet=udp())]
    one.feed(batch(packet, SECOND))
    # WHEN they are replaced by a new table, which uses the same handles
    one.feed(batch(change_messages(2), 2 * SECOND))
    newer = snapshot(2, 9, **{"in": (1, [12, 10, 11])})
    one.generations.change(*one.decoder.changes.pop(), 2, newer)
    one.feed(batch(packet, 3 * SECOND))
    rows = one.rows()
    # THEN each row has the rule number of its own time
    assert [row.rulenum for row in rows] == [3, 1]
    assert one.generations.newest is newer


def test_a_rule_stays_unknown_if_it_could_be_either_of_two() -> None:
    # GIVEN a packet reported just before the new rules are announced
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


def test_in_a_generation_that_was_never_read_only_rules_of_both_neighbours_are_named() -> None:
    # GIVEN an unread generation between two known ones
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
    kept = (generations._order, generations._snapshots, generations._announced)
    assert [len(one) for one in kept] == [64] * 3
    # AND a packet of a forgotten generation is still a row
    one.decoder.generation = 3
    one.feed([flip(1), trace_message(1, "in", 12, DROP, packet=udp())])
    assert [row.verdict for row in one.rows()] == ["DROP"]


def test_a_row_has_the_mark_and_no_name_for_an_unknown_device() -> None:
    more = attribute(MARK, struct.pack(">I", 0xFFFFFFFF))
    flipped = trace_message(
        1, "prerouting", 4, ACCEPT, table="ipttrace-7-7", packet=udp(), more=more
    )
    one = pipeline_of(flipped, trace_message(1, "in", 12, DROP, packet=udp(), more=more))
    (row,) = one.rows()
    assert (row.mark, row.out) == (0xFFFFFFFF, None)


# -- marks


def marked(value: int) -> bytes:
    return attribute(MARK, struct.pack(">I", value))


def test_the_mark_is_that_with_which_the_packet_came_not_that_which_the_first_rule_set() -> None:
    one = Pipeline(RULES)
    # GIVEN a packet with mark 7, to which the first rule of `in` gives mark 21
    one.feed(
        [
            trace_message(
                1, "prerouting", 4, ACCEPT, table="ipttrace-7-7", packet=udp(), more=marked(7)
            ),
            trace_message(1, "in", 10, packet=udp(), more=marked(0x15)),
            trace_message(1, "in", policy=ACCEPT, more=marked(0x15)),
        ]
    )
    # AND in a later batch of messages, another chain's rule that removes it
    one.feed(
        [
            trace_message(1, "out", 20, packet=udp()),
            trace_message(1, "out", policy=ACCEPT),
        ]
    )
    assert [(row.table, row.hook, row.mark) for row in one.rows()] == [
        ("t", "INPUT", 7),
        ("t", "OUTPUT", 0x15),
    ]


def test_the_mark_of_a_packet_is_empty_if_nothing_tells_what_it_was_before_the_rule() -> None:
    # GIVEN a packet that another program traces
    one = Pipeline(RULES)
    one.feed(
        [
            trace_message(1, "in", 10, packet=udp(), more=marked(0x15)),
            trace_message(1, "in", policy=ACCEPT, more=marked(0x15)),
            trace_message(1, "out", 20, packet=udp(), more=marked(0x16)),
            trace_message(1, "out", policy=ACCEPT, more=marked(0x16)),
        ]
    )
    assert [row.mark for row in one.rows()] == [None, 0x15]


# -- IPv6

SIX = struct.pack(">IHBB", 6 << 28, 100, 0, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"


@pytest.mark.parametrize("following", [0, 43, 44, 60])
def test_the_protocol_behind_extension_headers_is_empty_not_the_name_of_the_first(
    following: int,
) -> None:
    # GIVEN a message with 40 bytes of the network header, and the start of a UDP header
    six = SIX[:6] + bytes([following]) + SIX[7:]
    headers = attribute(NET, six) + attribute(TRANSPORT, struct.pack(">HHHH", 1, 53, 60, 0))
    first = trace_message(1, "in", 12, DROP, more=headers)
    (row,) = pipeline_of(flip(1), first).rows()
    # THEN nothing says what follows the extension header: ports are not of an unknown protocol
    assert (row.proto, row.sport, row.dport, row.icmp) == ("", None, None, None)
    assert (row.src, row.dst, row.len) == ("::1", "::2", 140)


def test_a_later_fragment_of_ipv6_has_neither_protocol_nor_addresses() -> None:
    # GIVEN a message without a network header: the kernel has the packet's start for transport
    headers = attribute(TRANSPORT, (SIX[:6] + bytes([44]) + SIX[7:])[:20])
    first = trace_message(1, "in", 12, DROP, more=headers)
    (row,) = pipeline_of(flip(1), first).rows()
    assert (row.proto, row.src, row.dst, row.dport) == ("", "", "", None)
    assert (row.table, row.verdict) == ("t", "DROP")


# -- lengths


@pytest.mark.parametrize(
    ("start", "caplen", "length"),
    [
        (bytes.fromhex("4500 05dc"), 60, 1500),
        (bytes.fromhex("4500 05dc"), 4, 1500),
        # cut before the length, or nothing reported at all
        (bytes.fromhex("4500"), 2, None),
        (b"", 0, None),
        # GSO beyond 64 KiB, and a jumbogram
        (bytes.fromhex("4500 0000"), 60, None),
        (bytes.fromhex("6000 0000 0000 06"), 60, None),
        (bytes.fromhex("6000 0000 0064 11"), 60, 140),
        (bytes.fromhex("6000 0000"), 5, None),
        # no next header, no payload
        (bytes.fromhex("6000 0000 0000 3b"), 40, 40),
        # ARP, whole; padded to 46 bytes, of which 40 are reported
        (bytes.fromhex("0001 0800 0604"), 28, 28),
        (bytes.fromhex("0001 0800 0604"), 40, None),
    ],
)
def test_a_length_that_the_header_does_not_tell_is_unknown(
    start: bytes, caplen: int, length: int | None
) -> None:
    packet = np.frombuffer(start.ljust(60, b"\0"), np.uint8).reshape(1, 60)
    assert packet_length(packet, np.array([caplen])).tolist() == [length or 0]


# -- legacy tables


@pytest.mark.parametrize(("ruleset", "rows"), [(7, [2]), (0, [1, 1])])
def test_a_run_that_goes_on_is_waited_for_if_its_rules_are_known(
    ruleset: int, rows: list[int]
) -> None:
    # GIVEN a rule behind which the table goes on, and its policy 200 ms later
    chains = ChainRegistry()
    chain = chains.number(ChainKey(0, b"filter", b"INPUT"))
    maker = CallMaker(chains, UniqueNumbers(), RecordNames(), SOURCE_NFLOG)
    events = np.zeros(2, LEGACY_EVENT)
    events["journey"], events["chain"], events["ruleset"] = 1, chain, ruleset
    events["time"] = (1, 200_000_000)
    events["verdict"] = (VERDICT_CONTINUE, ACCEPT)
    events["kind"][1], events["last"][1] = POLICY, True
    # WHEN a busy host is slow between them
    found = [maker.feed(events[:1], 100_000_000), maker.feed(events[1:], 200_000_001)]
    # THEN they are one row; without the rules the first may have been the last
    assert [len(one.rules) for one in found if len(one.entries)] == rows
