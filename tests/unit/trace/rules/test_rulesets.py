# SPDX-License-Identifier: GPL-2.0-only
"""The rules of a stream: the text of each row, malformed frames, and bounded memory."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from ipttrace.stream.decoder import read
from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.stream.writer import Writer
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.session import Trace
from tests.data import records, synth
from tests.data.messages import message

NETNS = 4026531840


def frame(since: int, *rules: str, table: str = "filter", **more: Any) -> dict[str, Any]:
    """A RULES frame with one chain."""
    chains = {"INPUT": {"policy": "DROP", "rules": list(rules)}}
    return {**mark(since, table), "chains": chains, "upto": since, **more}


def mark(since: int, table: str = "filter", **more: Any) -> dict[str, Any]:
    """A RULES frame: the table has changed, rules unknown."""
    frame = {"netns": NETNS, "family": 4, "table": table, "backend": "legacy", "mono": 5}
    return {**frame, "since": since, **more}


def counters(mono: int, since: int, *rules: tuple[int, int]) -> dict[str, Any]:
    chains = {"INPUT": {"policy": [1, 60], "rules": [list(pair) for pair in rules]}}
    return {**mark(since), "mono": mono, "chains": chains}


def text(
    rulesets: Rulesets, generation: int, rulenum: int = 1, table: str = "filter"
) -> str | None:
    return rulesets.text(NETNS, 4, table, "INPUT", rulenum, generation)


def fed(*frames: dict[str, Any], **options: Any) -> Rulesets:
    rulesets = Rulesets(**options)
    for one in frames:
        rulesets.feed(one)
    return rulesets


def test_a_row_has_the_text_of_its_generation_and_none_before_the_first() -> None:
    # GIVEN rules from generation 3 on, and others from 5 on
    rulesets = fed(frame(3, "-j DROP", "-j LOG"), frame(5, "-j ACCEPT", upto=7))
    # THEN each generation has its own text
    assert [text(rulesets, generation) for generation in range(9)] == [
        None,
        None,
        None,
        "-j DROP",
        "-j DROP",
        "-j ACCEPT",
        "-j ACCEPT",
        "-j ACCEPT",
        None,  # nobody has said yet that nothing changed in it
    ]
    # AND an invalid number, chain, table or namespace has no text
    assert text(rulesets, 3, 2) == "-j LOG"
    for rulenum in (-1, 0, 3, 1 << 31):
        assert text(rulesets, 3, rulenum) is None
    assert rulesets.text(NETNS, 6, "filter", "INPUT", 1, 3) is None
    assert rulesets.text(NETNS, 4, "nat", "INPUT", 1, 3) is None
    assert rulesets.text(NETNS, 4, "filter", "OUTPUT", 1, 3) is None


def test_changed_rules_have_no_text_until_they_are_read() -> None:
    # GIVEN a table that changed twice, and its rules were never read in between
    rulesets = fed(frame(1, "one"), mark(2), mark(3), {"upto": 4})
    version = rulesets.version
    assert [text(rulesets, generation) for generation in (1, 2, 3, 4)] == ["one", None, None, None]
    # WHEN the second version comes
    rulesets.feed(frame(3, "three"))
    # THEN the first stays unknown
    found = [text(rulesets, generation) for generation in (1, 2, 3, 4, 5)]
    assert found == ["one", None, "three", "three", None]
    assert rulesets.version > version


def test_a_change_of_another_table_does_not_affect_a_text() -> None:
    rulesets = fed(frame(1, "one"), mark(2, "nat"), frame(2, "two", table="nat"))
    assert text(rulesets, 2) == "one"
    assert text(rulesets, 2, table="nat") == "two"
    assert text(rulesets, 1, table="nat") is None


def test_lost_changes_make_rules_unknown_until_they_are_read_again() -> None:
    # GIVEN changes 3 to 6 of unknown tables
    rulesets = fed(frame(1, "one"), {"since": 3, "upto": 6})
    assert [text(rulesets, generation) for generation in (2, 3, 6)] == ["one", None, None]
    assert not rulesets.tables(NETNS)[0].current
    # WHEN the table is read again, the same as before
    rulesets.feed(frame(6, "one"))
    assert [text(rulesets, generation) for generation in (2, 3, 5, 6)] == ["one", None, None, "one"]
    assert rulesets.tables(NETNS)[0].current


def test_texts_are_clean_and_of_bounded_length() -> None:
    evil = '-m comment --comment "\x1b[2Jx\u202e\n=cmd()" -j DROP'
    rulesets = fed(frame(1, evil, "y" * 5000))
    shown = text(rulesets, 1)
    assert shown == '-m comment --comment "\\x1b[2Jx\\u202e\\x0a=cmd()" -j DROP'
    long = text(rulesets, 1, 2)
    assert long is not None
    assert len(long) == 4096
    assert long.endswith("…")
    assert rulesets.tables(NETNS)[0].chains["INPUT"].rules == (shown, long)


def test_tables_are_listed_with_the_newest_rules_as_packets_meet_them() -> None:
    rulesets = fed(
        frame(1, "in filter"),
        frame(1, "in raw", table="raw"),
        {**frame(1, "six"), "family": 6},
        frame(2, "newer"),
        mark(3, upto=3),
    )
    found = rulesets.tables(NETNS)
    assert [(one.family, one.table, one.current) for one in found] == [
        (4, "raw", True),
        (4, "filter", False),
        (6, "filter", True),
    ]
    assert found[1].since == 2
    assert found[1].chains["INPUT"].policy == "DROP"
    assert found[1].chains["INPUT"].rules == ("newer",)
    assert rulesets.namespaces() == [NETNS]
    assert rulesets.tables(1) == []
    # WHEN a table goes, and comes again
    rulesets.feed({"netns": NETNS, "family": 4, "table": "raw", "gone": True})
    assert [one.table for one in rulesets.tables(NETNS)] == ["filter", "filter"]
    # THEN earlier rows keep their texts
    assert text(rulesets, 1, table="raw") == "in raw"
    rulesets.feed(frame(4, "in raw again", table="raw"))
    assert rulesets.tables(NETNS)[0].chains["INPUT"].rules == ("in raw again",)


def test_counters_come_with_the_previous_ones_if_the_rules_are_the_same() -> None:
    rulesets = Rulesets()
    assert rulesets.counters(NETNS, 4, "filter") is None
    rulesets.feed_counters(counters(10, 1, (1, 100)))
    rulesets.feed_counters(counters(30, 1, (3, 300)))
    found = rulesets.counters(NETNS, 4, "filter")
    assert found is not None
    assert found[1] is not None
    assert (found[0].mono, found[1].mono) == (30, 10)
    assert found[0].chains["INPUT"].policy == (1, 60)
    gained = found[0].chains["INPUT"].rules - found[1].chains["INPUT"].rules
    assert gained.tolist() == [[2, 200]]
    # WHEN the rules change
    rulesets.feed_counters(counters(50, 2))
    found = rulesets.counters(NETNS, 4, "filter")
    assert found is not None
    assert found[1] is None
    assert found[0].chains["INPUT"].rules.shape == (0, 2)


def test_texts_beyond_the_room_drop_the_oldest_generations() -> None:
    # GIVEN room for some generations of a table, and another that never changes
    rulesets = fed(frame(1, "quiet", table="nat"), room=100_000)
    for generation in range(1, 101):
        rules = [f"rule {n} of {generation} " + "x" * 1000 for n in range(20)]
        rulesets.feed(frame(generation, *rules, upto=generation))
    # THEN the newest ones are kept, and the table that never changes
    assert (text(rulesets, 100) or "").startswith("rule 0 of 100 ")
    assert (text(rulesets, 99) or "").startswith("rule 0 of 99 ")
    assert text(rulesets, 50) is None
    assert text(rulesets, 100, table="nat") == "quiet"
    # AND unchanged rules are stored once: many small changes fit
    rulesets = fed(room=100_000)
    same = ["x" * 1000 + str(n) for n in range(20)]
    for generation in range(1, 101):
        rulesets.feed(frame(generation, *same, f"the {generation}th", upto=generation))
    assert text(rulesets, 50, 21) == "the 50th"


def test_a_table_larger_than_the_room_does_not_affect_others() -> None:
    rulesets = fed(frame(1, "x" * 200_000), room=100_000)
    assert text(rulesets, 1) is None
    rulesets.feed(frame(2, "small"))
    assert text(rulesets, 2) == "small"


def test_endless_changes_and_gaps_use_bounded_memory() -> None:
    rulesets = fed(room=50_000)
    for generation in range(1, 3000):
        rulesets.feed(frame(generation, table=f"t{generation}"))
        rulesets.feed({"since": generation, "upto": generation})
        rulesets.feed_counters({**counters(1, 1, *[(1, 1)] * 9), "table": f"t{generation}"})
    assert len(rulesets.tables(NETNS)) < 3000
    assert text(rulesets, 2999) is None
    many = [(1, 1)] * 100_000
    for n in range(60):
        rulesets.feed_counters({**counters(1, 1, *many), "table": f"u{n}"})
    assert rulesets.counters(NETNS, 4, "u59") is not None
    assert rulesets.counters(NETNS, 4, "u0") is None


def test_chains_whose_clean_names_are_equal_have_no_texts() -> None:
    chains = {name: {"policy": None, "rules": [name]} for name in ("a\x1b", "a\\x1b", "b")}
    rulesets = fed({**mark(1), "chains": chains})
    assert rulesets.text(NETNS, 4, "filter", "a\\x1b", 1, 1) is None
    assert rulesets.text(NETNS, 4, "filter", "b", 1, 1) == "b"


@pytest.mark.parametrize(
    "lie",
    [
        {"netns": -1},
        {"netns": "1"},
        {"netns": 1 << 32},
        {"family": 5},
        {"family": True},
        {"family": [4]},
        {"table": 7},
        {"table": "x" * 1025},
        {"since": None},
        {"since": -1},
        {"since": 1.5},
        {"since": 1 << 40},
        {"upto": "all"},
        {"chains": []},
        {"chains": {"INPUT": []}},
        {"chains": {"INPUT": {"policy": "DROP"}}},
        {"chains": {"INPUT": {"policy": 1, "rules": []}}},
        {"chains": {"INPUT": {"policy": None, "rules": [1]}}},
        {"chains": {"INPUT": {"policy": None, "rules": "-j DROP"}}},
        {"chains": {"I" * 1025: {"policy": None, "rules": []}}},
    ],
)
def test_malformed_rules_are_rejected_with_one_line(lie: dict[str, Any]) -> None:
    with pytest.raises(StreamError, match=r"^malformed rules in the stream: \S.*$"):
        Rulesets().feed({**frame(1, "-j DROP"), **lie})


def test_rules_out_of_order_are_rejected() -> None:
    with pytest.raises(StreamError, match=r"^malformed rules .*: generations not in order$"):
        fed(frame(5, "five"), frame(4, "four"))


@pytest.mark.parametrize(
    "lie",
    [
        {"mono": -1},
        {"since": "1"},
        {"table": None},
        {"chains": None},
        {"chains": {"INPUT": 1}},
        {"chains": {"INPUT": {"policy": 1, "rules": []}}},
        {"chains": {"INPUT": {"policy": None, "rules": {}}}},
        {"chains": {"INPUT": {"policy": None, "rules": [[1]]}}},
        {"chains": {"INPUT": {"policy": None, "rules": [[1, -1]]}}},
        {"chains": {"INPUT": {"policy": None, "rules": [[True, False]]}}},
        {"chains": {"INPUT": {"policy": None, "rules": [[[1, 2], [3, 4]]]}}},
        {"chains": {"INPUT": {"policy": None, "rules": [[1.5, 2]]}}},
        {"chains": {"INPUT": {"policy": None, "rules": [["1", 2]]}}},
    ],
)
def test_malformed_counters_are_rejected_with_one_line(lie: dict[str, Any]) -> None:
    with pytest.raises(StreamError, match=r"^malformed counters in the stream\b.*$"):
        Rulesets().feed_counters({**counters(1, 1, (1, 1)), **lie})


def test_counters_beyond_64_bits_are_limited() -> None:
    rulesets = Rulesets()
    rulesets.feed_counters(counters(1, 1, (1 << 80, 5)))
    found = rulesets.counters(NETNS, 4, "filter")
    assert found is not None
    assert found[0].chains["INPUT"].rules.tolist() == [[(1 << 64) - 1, 5]]


def test_a_second_stream_has_its_own_generations() -> None:
    # GIVEN two recordings in one, each with other rules in generation 1
    sink = io.BytesIO()
    writer = Writer(sink)
    packet = records.v4(17, "10.0.0.1", "10.0.0.2", records.udp(1, 2))
    for words in ("first", "second"):
        writer.hello(synth.hello())
        writer.message(Kind.RULES, message(frame(1, words)))
        for call, ruleset in ((1, 1), (2, 2)):
            writer.records(0, records.entry(call, 0, packet, hook=1, netns=NETNS, ruleset=ruleset))
            writer.records(1, records.rule(call, 0, b"INPUT", 1))
            writer.records(2, records.leave(call, 1, 0, at=9))
    sink.seek(0)
    trace = Trace()
    for one in read(sink):
        trace.feed(one)
    trace.finish()
    # AND a third of the same host, without rules so far
    again = Trace(store=trace.store, host=trace.host)
    again.feed(Frame(Kind.HELLO, json.dumps(synth.hello()).encode()))
    for kind, some in enumerate(
        (
            records.entry(1, 0, packet, hook=1, netns=NETNS, ruleset=1),
            records.rule(1, 0, b"INPUT", 1),
            records.leave(1, 1, 0, at=9),
        )
    ):
        again.feed(Frame(Kind.ENTRY + kind, some.tobytes()))
    again.finish()
    # THEN each row has the rule of its own recording, or none
    store = trace.store
    texts = [row.rule for row in store.rows(range(store.end))]
    assert texts == ["first", None, "second", None, None]
    assert store.rulesets[0].tables(NETNS) == []


def row_of(ruleset: int, flags: int) -> Any:
    """The row of a call in generation `ruleset` that hit rule 2 of INPUT."""
    sink = io.BytesIO()
    writer = Writer(sink)
    writer.hello(synth.hello())
    writer.message(Kind.RULES, message(frame(7, "-i lo", "-p udp -j DROP")))
    packet = records.v4(17, "10.0.0.1", "10.0.0.2", records.udp(1, 2))
    writer.records(0, records.entry(1, 0, packet, hook=1, netns=NETNS, ruleset=ruleset))
    writer.records(1, records.rule(1, 0, b"INPUT", 2))
    writer.records(2, records.leave(1, 1, 0, at=9, flags=flags))
    sink.seek(0)
    trace = Trace()
    for one in read(sink):
        trace.feed(one)
    trace.finish()
    return trace.store.row(0)


def test_a_row_has_the_text_of_its_rule() -> None:
    row = row_of(ruleset=7, flags=0)
    assert (row.rule, row.ruleset) == ("-p udp -j DROP", 7)


def test_a_row_whose_rules_changed_during_the_call_has_no_text() -> None:
    row = row_of(ruleset=7, flags=0x02)
    assert (row.rule, row.ruleset) == (None, 0)
    assert row_of(ruleset=0, flags=0).rule is None
    assert row_of(ruleset=6, flags=0).rule is None


def test_any_json_is_applied_or_rejected_with_one_line() -> None:
    trace = Trace()
    values: list[dict[str, object]] = [{"table": "filter"}, {"since": []}, {"gone": True}]
    for value in values:
        with pytest.raises(StreamError, match=r"^malformed rules in the stream\b.*$"):
            trace.feed(Frame(Kind.RULES, json.dumps(value).encode()))


def test_rules_without_a_known_text_have_none_and_the_others_theirs() -> None:
    rulesets = fed(frame(3, "-j DROP", "", "", unknown={"INPUT": [2]}))
    assert [text(rulesets, 3, number) for number in (1, 2, 3)] == ["-j DROP", None, ""]
    # AND recordings from before, which do not name them, stay readable
    assert text(fed(frame(3, "-j DROP", "")), 3, 2) == ""


@pytest.mark.parametrize("unknown", [5, {"INPUT": 5}, {"INPUT": ["2"]}])
def test_malformed_numbers_of_unknown_rules_are_refused(unknown: object) -> None:
    with pytest.raises(StreamError, match=r"^malformed rules in the stream: unknown$"):
        fed(frame(3, "-j DROP", unknown=unknown))


@pytest.mark.parametrize(
    "handles", [5, {"INPUT": 5}, {"INPUT": ["2"]}, {"INPUT": [-2]}, {"INPUT": [1, 2]}]
)
def test_malformed_handles_of_rules_are_refused(handles: object) -> None:
    with pytest.raises(StreamError, match=r"^malformed rules in the stream: handles$"):
        fed(frame(3, "-j DROP", handles=handles))
