# SPDX-License-Identifier: GPL-2.0-only
"""The detail pane's story: a packet's journey through the tables, in order."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ipttrace.stream import record
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.story import Story, story
from tests.data.netlink_rows import NETNS, RecordedCalls
from tests.data.records import Array, entry, leave, rule, tcp, v4
from tests.data.traces import feed_records, replay, seqs_with
from tests.paths import LAB

CLIENT, PUBLIC, SERVER = (
    bytes(map(int, a.split("."))) for a in ("10.1.0.2", "10.1.0.1", "10.2.0.2")
)


def store_of(entries: list[Array], rules: list[Array], exits: list[Array]) -> Store:
    trace = Trace()
    feed_records(trace, entries, rules, exits)
    trace.finish()
    return trace.store


def forwarded(**mangled: Any) -> Store:
    """A packet through raw, mangle (sets a mark), nat (DNAT) and filter (drops it).

    `mangled`: fields of the packet as it enters filter.
    """
    to_public = v4(6, "10.1.0.2", "10.1.0.1", tcp(40000, 8080, 2))
    to_server = bytearray(v4(6, "10.1.0.2", "10.2.0.2", tcp(40000, 80, 2)))
    to_server[8] = 63
    ct: dict[str, Any] = {
        "flags": record.F_FOLLOWED | record.F_CONNTRACK,
        "ct_info": 2,
        "ct_proto": 6,
        "ct": 0x77,
        "ct_orig_src": CLIENT,
        "ct_orig_dst": PUBLIC,
        "ct_orig_sport": 40000,
        "ct_orig_dport": 8080,
        "ct_reply_src": PUBLIC,
        "ct_reply_dst": CLIENT,
        "ct_reply_sport": 8080,
        "ct_reply_dport": 40000,
    }
    nat = {**ct, "ct_reply_src": SERVER, "ct_reply_sport": 80, "ct_status": 0x120}
    alive = {"flags": record.EXIT_F_ALIVE}
    dev = {"in": b"lan0"}
    last: dict[str, Any] = {"packet": bytes(to_server), "len": 40, "caplen": 40}
    last |= {"hook": 2, "mark": 5, "out": b"wan0"}
    entries = [
        entry(10, 0, to_public, hook=0, table=b"raw", **dev),
        entry(11, 1000, to_public, hook=0, table=b"mangle", **ct, **dev),
        entry(12, 3000, to_public, hook=0, table=b"nat", mark=5, **ct, **dev),
        entry(13, 5000, **{**nat, **dev, **last, **mangled}),
    ]
    rules = [
        rule(10, 0, b"PREROUTING", 1, 2, 10),
        rule(11, 0, b"PREROUTING", 1, 0, 1010),
        rule(11, 1, b"MARKING", 2, 0, 1020),
        rule(12, 0, b"PREROUTING", 3, 0, 3010),
        rule(13, 0, b"FORWARD", 7, 0, 5010),
    ]
    exits = [
        leave(10, 1, at=500, **alive),
        leave(11, 2, at=1500, mark=5, ct_info=2, **alive),
        leave(12, 1, at=3500, mark=5, ct_info=2, ct_status=0x120, **alive),
        leave(13, 1, verdict=0, at=5500),
    ]
    return store_of(entries, rules, exits)


def story_of(store: Store, seq: int) -> Story:
    """The story of a row that the store holds."""
    found = story(store, seq)
    assert found is not None
    return found


def changes(found: Story, index: int) -> tuple[dict[str, str], dict[str, str]]:
    """Changes before the traversal at `index`, and those made by its table."""
    traversal = found.traversals[index]
    return (
        {change.name: change.text for change in traversal.changed_before},
        {change.name: change.text for change in traversal.changed_here},
    )


def test_the_story_lists_every_table_of_the_packet_in_order() -> None:
    store = forwarded()
    for seq in range(4):
        found = story(store, seq)
        assert found is not None
        assert [t.row.table for t in found.traversals] == ["raw", "mangle", "nat", "filter"]
        assert [t.since for t in found.traversals] == [0, 1000, 3000, 5000]
        assert [t.gap for t in found.traversals] == [None, 500, 1500, 1500]
        assert found.row.index == seq
        assert (found.starts_earlier, found.ends_later) == (False, False)
    steps = [hit.step for hit in story_of(store, 0).traversals[1].steps]
    assert [(step.chain, step.rulenum) for step in steps] == [("PREROUTING", 1), ("MARKING", 2)]


def test_only_values_that_changed_are_listed() -> None:
    found = story(forwarded(), 2)
    assert found is not None
    assert changes(found, 0) == ({}, {})
    assert changes(found, 1) == ({"ct": "- → NEW"}, {"mark": "0x0 → 0x5"})
    assert changes(found, 2) == ({}, {"ct status": "+DNAT"})
    assert changes(found, 3) == (
        {
            "dst": "10.1.0.1:8080 → 10.2.0.2:80",
            "out": "- → wan0",
            "ttl": "64 → 63",
            "ct reply": "(10.1.0.1:8080 → 10.1.0.2:40000) → (10.2.0.2:80 → 10.1.0.2:40000)",
        },
        {},
    )


def test_other_changed_bytes_are_listed_by_offset() -> None:
    packet = bytearray(v4(6, "10.1.0.2", "10.2.0.2", tcp(40000, 80, 2)))
    packet[1] = 0xB8
    packet[4:6] = b"\x55\x55"
    packet[34:36] = b"\x00\x01"
    before, _ = changes(story_of(forwarded(packet=bytes(packet)), 3), 3)
    assert before["dscp"] == "0 → 46"
    assert "ttl" not in before
    assert before["packet"] == "bytes 4-5, 34-35"


def test_conntrack_is_shown_as_it_was_when_the_packet_entered_the_table() -> None:
    store = forwarded()
    assert story_of(store, 0).conntrack is None
    conntrack = story_of(store, 3).conntrack
    assert conntrack is not None
    assert (conntrack.state, conntrack.status) == ("NEW", ("DNAT", "DNAT_DONE"))
    assert conntrack.orig == "10.1.0.2:40000 → 10.1.0.1:8080"
    assert conntrack.reply == "10.2.0.2:80 → 10.1.0.2:40000"


def test_notrack_is_shown_as_a_change() -> None:
    store = store_of(
        [entry(1, 0, table=b"raw")], [], [leave(1, 0, ct_info=7, flags=record.EXIT_F_ALIVE)]
    )
    assert changes(story_of(store, 0), 0) == ({}, {"ct": "- → UNTRACKED"})


def test_a_dropped_packet_has_no_changes() -> None:
    store = store_of([entry(1, 0, mark=9)], [], [leave(1, 0, verdict=0)])
    assert changes(story_of(store, 0), 0) == ({}, {})


def rejected() -> Store:
    """A packet is dropped by REJECT, whose answer goes through two tables inside that call."""
    answer: dict[str, Any] = {"skb": 0x2000, "parent": 2}
    return store_of(
        [
            entry(1, 0, table=b"mangle"),
            entry(2, 1000, flags=record.F_FOLLOWED),
            entry(3, 1100, table=b"mangle", **answer),
            entry(4, 1200, flags=record.F_FOLLOWED, **answer),
            entry(5, 9000, flags=record.F_FOLLOWED, skb=0x2000),
        ],
        [],
        [
            leave(1, 0, at=500),
            leave(3, 0, at=1150, skb=0x2000),
            leave(4, 0, at=1250, skb=0x2000),
            leave(2, 0, verdict=0, at=1500),
            leave(5, 0, at=9100, skb=0x2000),
        ],
    )


def test_a_reject_answer_is_indented_inside_the_call_that_sent_it() -> None:
    store = rejected()
    seqs = {row.call: row.index for row in store.rows(range(store.end))}
    found = story(store, seqs[1])
    assert found is not None
    assert [(t.row.call, t.depth, t.own) for t in found.traversals] == [
        (1, 0, True),
        (2, 0, True),
        (3, 1, False),
        (4, 1, False),
    ]


def test_the_story_of_a_reject_answer_includes_the_call_that_sent_it() -> None:
    store = rejected()
    seqs = {row.call: row.index for row in store.rows(range(store.end))}
    found = story(store, seqs[5])
    assert found is not None
    assert [(t.row.call, t.depth, t.own) for t in found.traversals] == [
        (2, 0, False),
        (3, 1, True),
        (4, 1, True),
        (5, 0, True),
    ]
    assert [t.since for t in found.traversals] == [-100, 0, 100, 7900]


def test_rule_texts_are_those_of_the_generation_that_the_packet_hit() -> None:
    class Rules(Rulesets):
        def text(
            self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
        ) -> str | None:
            return f"{family} {table} -A {chain} #{rulenum} @{generation}"

    store = forwarded()
    store.rulesets[0] = Rules()
    # GIVEN rows with a known generation
    part = next(store.parts())
    part.columns["ruleset"][:] = 3
    found = story(store, 1)
    assert found is not None
    assert [hit.rule for hit in found.traversals[1].steps] == [
        "4 mangle -A PREROUTING #1 @3",
        "4 mangle -A MARKING #2 @3",
    ]
    # THEN a policy has no text
    assert [hit.rule for hit in found.traversals[0].steps] == [None]


def many(count: int, others: int = 0) -> Store:
    """One skb through `count` tables, and `others` packets after each."""
    entries, exits = [], []
    for number in range(count):
        first = record.F_FIRST if number == 0 else record.F_FOLLOWED
        entries.append(entry(1 + number, 10_000 * number, flags=first, hook=2))
        exits.append(leave(1 + number, 0, at=10_000 * number + 9))
        for more in range(others):
            call = 100_000 + number * others + more
            at = 10_000 * number + 10 + more
            entries.append(entry(call, at, skb=0x9000 + 8 * more))
            exits.append(leave(call, 0, at=at, skb=0x9000 + 8 * more))
    return store_of(entries, [], exits)


def test_a_long_journey_is_cut_and_marked_as_cut() -> None:
    store = many(100)
    found = story(store, 50, limit=10)
    assert found is not None
    assert len(found.traversals) == 10
    assert any(traversal.row.index == 50 for traversal in found.traversals)
    assert (found.starts_earlier, found.ends_later) == (True, True)
    assert story_of(store, 99).ends_later is False
    assert story_of(store, 2).starts_earlier is False


def test_a_journey_beyond_the_searched_rows_is_marked_as_incomplete() -> None:
    store = many(3, others=50)
    assert len(story_of(store, 51).traversals) == 3
    found = story(store, 51, reach=20)
    assert found is not None
    assert len(found.traversals) == 1
    assert (found.starts_earlier, found.ends_later) == (True, True)


def test_a_row_that_the_store_does_not_hold_has_no_story() -> None:
    store = many(2)
    assert story(store, 2) is None
    assert story(store, -1) is None
    assert story(Store(), 0) is None


@pytest.fixture(scope="module")
def lab() -> Store:
    return replay(LAB).store


def test_every_row_of_the_lab_is_in_its_own_story(lab: Store) -> None:
    for seq in range(lab.first, lab.end):
        found = story(lab, seq)
        assert found is not None
        own = [t.row.index for t in found.traversals if t.own]
        assert own == [
            row.index
            for row in sorted(
                lab.rows(seqs_with(lab, "journey", found.row.journey)),
                key=lambda row: (row.time, row.index),
            )
        ]
        assert not found.starts_earlier


def test_device_names_in_changes_are_escaped() -> None:
    hostile = b"\x1b[2J[b]"
    found = story(forwarded(out=hostile), 3)
    assert found is not None
    assert changes(found, 3)[0]["out"] == "- → \\x1b[2J[b]"


def test_ipv6_addresses_stand_in_brackets_before_the_port() -> None:
    head = struct.pack(">IHBB", 6 << 28, 20, 6, 64) + bytes(15) + b"\x01" + bytes(15)
    fields = {"family": 10, "flags": record.F_FOLLOWED}
    store = store_of(
        [
            entry(1, 0, head + b"\x02" + tcp(1, 80, 2), family=10),
            entry(2, 100, head + b"\x03" + tcp(1, 81, 2), **fields),
        ],
        [],
        [leave(1, 0, at=10), leave(2, 0, at=110)],
    )
    before, _ = changes(story_of(store, 1), 1)
    assert before == {"dst": "[::2]:80 → [::3]:81"}


def test_the_story_of_deeply_nested_calls_is_bounded() -> None:
    # GIVEN forty calls, each inside the one before, and 500 inside one call
    deep = [
        entry(1 + at, at, skb=0x3000 + 8 * at, parent=at, hook=3, table=b"filter")
        for at in range(40)
    ]
    wide = [entry(1000 + at, 50 + at, skb=0x9000 + 8 * at, parent=1) for at in range(500)]
    ends = [leave(int(each["call"][0]), 0, skb=int(each["skb"][0])) for each in deep + wide]
    store = store_of(deep + wide, [], ends)
    for seq in range(store.end):
        found = story(store, seq, limit=16)
        assert found is not None
        assert len(found.traversals) <= 32
        assert any(traversal.row.index == seq for traversal in found.traversals)
        assert max(traversal.depth for traversal in found.traversals) <= 8


def test_values_that_an_engine_cannot_know_are_not_changes() -> None:
    # GIVEN a tracked packet, traced by the kernel engine, then twice by the netlink engine
    calls = RecordedCalls()
    ct: dict[str, Any] = {"ct_info": 2, "ct_proto": 17}
    flags = record.F_FIRST | record.F_CONNTRACK
    calls.call(b"filter", [(b"INPUT", 1, 0)], **ct, flags=flags)
    calls.nft(b"t", 1, [(b"in", 1, 0)])
    calls.nft(b"t", 1, [(b"late", 1, 0)])
    found = story(calls.trace().store, 0)
    assert found is not None
    # THEN conntrack is not reported as lost, and gaps are unknown
    assert [changes(found, at) for at in range(3)] == [({}, {})] * 3
    assert [each.gap for each in found.traversals] == [None, None, None]


def test_rules_of_an_inet_table_have_their_texts() -> None:
    calls = RecordedCalls()
    calls.nft(b"t", 1, [(b"in", 1, 0), (b"jail", 0, 0)], first=True, ruleset=1)
    trace = calls.trace("netlink")
    chains = {"in": {"policy": "accept", "rules": ["jump jail"]}}
    rules = {"netns": NETNS, "family": "inet", "table": "t", "since": 1, "upto": 1}
    trace.rulesets.feed({**rules, "chains": chains})
    found = story(trace.store, 0)
    assert found is not None
    assert [hit.rule for hit in found.traversals[0].steps] == ["jump jail", None]


def test_a_connection_of_which_only_the_state_is_known_shows_that_and_no_zeros() -> None:
    store = forwarded(flags=record.F_FOLLOWED, ct_flags=record.CT_STATE, ct_info=3, ct_mark=7)
    conntrack = story_of(store, 3).conntrack
    assert conntrack is not None
    assert (conntrack.state, conntrack.status) == ("ESTABLISHED reply", ("DNAT", "DNAT_DONE"))
    unknown = (conntrack.mark, conntrack.zone, conntrack.proto, conntrack.orig, conntrack.reply)
    assert unknown == (None,) * 5
    # AND what cannot be compared has not changed
    before, _ = changes(story_of(store, 3), 3)
    assert not {"ct orig", "ct reply", "ct mark", "zone"} & before.keys()


def test_a_packet_that_conntrack_found_invalid_says_so() -> None:
    store = forwarded(flags=record.F_FOLLOWED, ct=0, ct_info=0, ct_flags=record.CT_INVALID)
    found = story_of(store, 3)
    assert found.conntrack is None
    assert changes(found, 3)[0]["ct"] == "NEW → INVALID"


def test_the_reply_s_tuple_that_netlink_does_not_know_yet_is_no_address() -> None:
    store = forwarded(ct_reply_src=bytes(16), ct_reply_dst=bytes(16))
    conntrack = story_of(store, 3).conntrack
    assert conntrack is not None
    assert conntrack.orig == "10.1.0.2:40000 → 10.1.0.1:8080"
    assert conntrack.reply is None
    assert "ct reply" not in changes(story_of(store, 3), 3)[0]


def masqueraded(**connection: Any) -> Store:
    """A packet that leaves by POSTROUTING, and an answer; `connection`: fields of the answer's."""
    there = v4(6, "10.1.0.2", "10.2.0.2", tcp(40000, 80, 2))
    back = v4(6, "10.2.0.2", "10.2.0.1", tcp(80, 61000, 18))
    home = v4(6, "10.2.0.2", "10.1.0.2", tcp(80, 40000, 18))
    of: dict[str, Any] = {"source": record.SOURCE_NFT, "tables": 1, "table": b"t"}
    first, next_ = record.F_FIRST, record.F_FOLLOWED
    entries = [
        entry(1, 0, there, hook=2, skb=1, **{**of, "flags": first}),
        entry(2, 10, there, hook=4, skb=1, **{**of, "flags": next_}),
        entry(3, 20, back, hook=0, skb=2, **{**of, "flags": first}),
        entry(4, 30, home, hook=2, skb=2, **{**of, "flags": next_, **connection}),
    ]
    rules = [rule(call, 0, b"c", 1, 0, 10 * call) for call in (1, 2, 3, 4)]
    return store_of(entries, rules, [leave(call, 1, at=10 * call) for call in (1, 2, 3, 4)])


CONNECTION: dict[str, Any] = {
    "flags": record.F_FOLLOWED | record.F_CONNTRACK,
    "ct_info": 3,
    "ct_proto": 6,
    "ct_status": 0x190,
    "ct_orig_src": CLIENT,
    "ct_orig_dst": SERVER,
    "ct_orig_sport": 40000,
    "ct_orig_dport": 80,
    "ct_reply_src": SERVER,
    "ct_reply_dst": bytes([10, 2, 0, 1]),
    "ct_reply_sport": 80,
    "ct_reply_dport": 61000,
}


@pytest.mark.parametrize("connection", [{}, CONNECTION], ids=["by an answer", "by conntrack"])
def test_the_last_line_tells_what_masquerade_made_of_the_source(connection: Any) -> None:
    store = masqueraded(**connection)
    forward, postrouting = story_of(store, 0).traversals
    assert forward.changed_behind == ()
    (change,) = postrouting.changed_behind
    assert (change.name, change.text) == ("src", "10.1.0.2:40000 → 10.2.0.1:61000")
    # AND the answer was translated back between its tables
    _, home = story_of(store, 2).traversals
    assert [change.text for change in home.changed_before if change.name == "dst"] == [
        "10.2.0.1:61000 → 10.1.0.2:40000"
    ]
    assert home.changed_behind == ()
