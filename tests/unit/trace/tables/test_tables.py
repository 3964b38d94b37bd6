# SPDX-License-Identifier: GPL-2.0-only
"""Reassembly and conntrack over time: rates, levels, and frames that are malformed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.trace.session import Trace
from ipttrace.trace.tables import CONNTRACK, IPV4, IPV6, KernelTables, Table, TableHistory
from tests.data import tables as made
from tests.data.tables import ROUTER, SECOND, T0, look, table


def fed(*frames: dict[str, Any]) -> KernelTables:
    held = KernelTables()
    for frame in frames:
        held.feed(frame)
    return held


def history(held: KernelTables, name: Table = IPV4) -> TableHistory:
    known = held.namespace(ROUTER)
    assert known is not None
    return known.table(name)


def test_a_rate_is_per_second_since_the_values_were_last_the_same() -> None:
    # GIVEN a table that did not change for ten seconds
    held = fed(table(), *(look(second) for second in range(11)))
    # WHEN 50 fragments come within the next look
    held.feed(table(second=11, ReasmReqds=made.IPV4["ReasmReqds"] + 50))
    held.feed(look(11))
    # THEN they came in one second, not in eleven
    assert history(held).rate("ReasmReqds") == 50
    assert history(held).rate("ReasmOKs") == 0
    # AND a look later the rate is 0 again
    held.feed(look(12))
    assert history(held).rate("ReasmReqds") == 0


def test_the_first_values_have_no_rate_and_absent_ones_are_unknown() -> None:
    held = fed(table())
    assert history(held).rate("ReasmReqds") is None
    held.feed(look(1))
    assert history(held).rate("ReasmReqds") == 0
    assert history(held).rate("ReasmOverlaps") == 0
    assert history(held, IPV6).rate("ReasmReqds") is None
    assert not history(held, IPV6).known
    assert history(held, CONNTRACK).used is None
    assert history(held, CONNTRACK).share is None


def test_a_counter_that_decreases_was_reset() -> None:
    held = fed(table(), table(second=1, ReasmReqds=7), look(1))
    assert history(held).rate("ReasmReqds") is None
    assert history(held).recent("ReasmReqds") == 0


def test_a_clock_that_goes_back_discards_earlier_changes() -> None:
    held = fed(table(second=5), table(second=3, ReasmTimeout=99))
    assert history(held).rate("ReasmTimeout") is None
    assert history(held).level == "ok"


@pytest.mark.parametrize(
    ("name", "values", "level"),
    [
        ("ipv4", {}, "ok"),
        ("ipv4", {"memory": 3_145_727}, "ok"),
        ("ipv4", {"memory": 3_145_728}, "warn"),
        ("ipv4", {"memory": 4_194_304}, "full"),
        ("ipv4", {"memory": 4_000_000, "low_thresh": 4_194_304}, "warn"),
        ("ipv4", {"memory": 0, "high_thresh": 0, "low_thresh": 0}, "full"),
        ("conntrack", {"entries": 235_929}, "ok"),
        ("conntrack", {"entries": 235_930}, "warn"),
        ("conntrack", {"entries": 262_144}, "full"),
        ("conntrack", {"entries": 262_144, "max": 0}, "ok"),
        ("conntrack", {"invalid": 9_999}, "ok"),
    ],
)
def test_a_table_warns_before_it_is_full(name: Table, values: dict[str, int], level: str) -> None:
    assert history(fed(table(name, **values)), name).level == level


@pytest.mark.parametrize(
    ("name", "counter", "level"),
    [
        ("ipv4", "ReasmTimeout", "warn"),
        ("ipv4", "ReasmFails", "warn"),
        ("ipv4", "ReasmOverlaps", "warn"),
        ("ipv6", "ReasmTimeout", "warn"),
        ("conntrack", "insert_failed", "warn"),
        ("conntrack", "early_drop", "warn"),
        ("conntrack", "drop", "full"),
    ],
)
def test_packets_that_were_lost_lately_are_a_warning_for_some_seconds(
    name: Table, counter: str, level: str
) -> None:
    values = {"ipv4": made.IPV4, "ipv6": made.IPV6, "conntrack": made.CONNTRACK}[name]
    held = fed(table(name), table(name, 1, **{counter: values[counter] + 2}), look(1))
    assert history(held, name).level == level
    assert history(held, name).losing == (counter,)
    held.feed(look(11))
    assert history(held, name).level == level
    held.feed(look(12))
    assert history(held, name).level == "ok"
    assert history(held, name).losing == ()


def test_when_a_counter_grew_is_known_within_what_was_seen() -> None:
    held = fed(table(), table(second=4, ReasmTimeout=5), table(second=9, ReasmTimeout=6), look(20))
    growth = history(held).growth("ReasmTimeout")
    assert growth is not None
    assert (growth.since, growth.until) == (T0, T0 + 20 * SECOND)
    assert growth.times == (T0 + 4 * SECOND, T0 + 9 * SECOND)
    assert growth.counts == (0, 2, 3)
    # AND unknown for a counter that is absent, or was reset
    assert history(held).growth("drop") is None
    held.feed(table(second=21, ReasmTimeout=0))
    assert history(held).growth("ReasmTimeout") is None


def test_a_table_that_is_gone_is_unknown_again() -> None:
    held = fed(table("conntrack"), {**table("conntrack", 1), "values": None})
    assert not history(held, CONNTRACK).known
    assert history(held, CONNTRACK).level == "ok"


def test_a_namespace_that_is_gone_takes_no_memory() -> None:
    held = fed(table(), table("conntrack"))
    assert held.size > 1000
    held.feed({"mono": T0, "gone": [ROUTER]})
    assert held.namespace(ROUTER) is None
    assert held.size == 0


def test_a_trace_applies_frames_of_tables() -> None:
    trace = Trace()
    trace.feed(Frame(Kind.TABLES, json.dumps(table()).encode()))
    assert [one.name for one in trace.kernel_tables.namespaces()] == ["router"]
    assert trace.store.kernel_tables[0] is trace.kernel_tables


def test_endless_changes_and_namespaces_use_bounded_memory() -> None:
    held = fed(table())
    for second in range(1, 500):
        held.feed(table(second=second, ReasmReqds=second))
    most = held.size
    for second in range(500, 1000):
        held.feed(table(second=second, ReasmReqds=second))
    assert held.size == most
    for netns in range(1, 1024):
        held.feed(table(netns=netns))
    with pytest.raises(StreamError, match="too many namespaces"):
        held.feed(table(netns=1 << 31))


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"mono": -1},
        {"mono": 1 << 63},
        {"mono": True},
        {"mono": 1, "gone": 7},
        {"mono": 1, "gone": ["x"]},
        {"mono": 1, "gone": [1] * 9000},
        {**table(), "netns": "router"},
        {**table(), "table": "ipv5"},
        {**table(), "table": ["ipv4"]},
        {**table(), "name": 7},
        {**table(), "since": "now"},
        {**table(), "values": 7},
        {**table(), "values": {"memory": -1}},
        {**table(), "values": {"memory": None}},
        {**table(), "values": {str(number): 1 for number in range(65)}},
    ],
)
def test_a_malformed_frame_is_rejected(frame: dict[str, Any]) -> None:
    held = KernelTables()
    with pytest.raises(StreamError, match="malformed kernel tables in the stream"):
        held.feed(frame)
    assert not held.namespaces()


def test_names_are_clean() -> None:
    frame = {**table(), "name": "\x1b]0;pwned\x07", "values": {"\x1b[2J" + "x" * 99: 1}}
    known = fed(frame).namespaces()[0]
    assert known.name == "\\x1b]0;pwned\\x07"
    (name,) = known.table(IPV4).values
    assert name.isprintable()
    assert len(name) <= 40


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_frame_with_any_value_is_applied_or_rejected_with_one_line(data: st.DataObject) -> None:
    # GIVEN a valid frame with one value replaced
    name = data.draw(st.sampled_from(["ipv4", "ipv6", "conntrack"]))
    frame: dict[str, Any] = copy.deepcopy(table(name, 1))
    where = data.draw(st.sampled_from([frame, frame["values"]]))
    key = data.draw(st.sampled_from(sorted(where)))
    where[key] = data.draw(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
            st.just([]), st.just({}), st.just({"": ""}), st.just("\ud800\x1b[2J"),
            st.just(1 << 64), st.just((1 << 64) - 1),
        )
    )  # fmt: skip
    held = fed(table(name), look(0))
    before = held.version
    # WHEN it is fed
    said = ""
    try:
        held.feed(frame)
    except StreamError as error:
        said = str(error)
    # THEN it is applied, or one line says why not and nothing changes
    assert (held.version == before) == bool(said)
    assert said.isprintable()
    # AND the state can be queried
    for one in held.namespaces():
        for each in one.tables.values():
            assert each.level in ("ok", "warn", "full")
            for counter in each.values:
                each.rate(counter)
