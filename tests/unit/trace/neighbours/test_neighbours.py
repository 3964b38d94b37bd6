# SPDX-License-Identifier: GPL-2.0-only
"""Neighbour tables of a stream: rates, levels, next hops, and malformed frames."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.trace.neighbours import SAMPLES, Neighbours, Reach, TableView
from ipttrace.trace.session import Trace
from tests.data import neighbours as made
from tests.data.neighbours import FAILED, REACHABLE, ROUTER, namespace, neighbour, news, table


def fed(*frames: dict[str, Any]) -> Neighbours:
    held = Neighbours()
    for frame in frames:
        held.feed(json.loads(json.dumps(frame)))
    return held


def arp(*tables: tuple[float, dict[str, Any]]) -> TableView:
    return fed(*(made.tables(second, one) for second, one in tables)).tables()[0]


# Tables.


def test_rates_are_per_second_of_the_host_s_clock() -> None:
    view = arp((0, table(lookups=100)), (0.5, table(lookups=123)), (2.5, table(lookups=129)))
    assert view.history("lookups") == [46.0, 3.0]
    assert view.rate("lookups") == 3.0


def test_one_sample_has_no_rate() -> None:
    view = arp((0, table()))
    assert view.rate("lookups") is None
    assert view.hit_ratio() is None
    assert view.history("lookups") == []


def test_a_reset_counter_gives_a_gap_not_a_negative_rate() -> None:
    view = arp((0, table(hits=900)), (1, table(hits=5)), (2, table(hits=28)))
    assert view.history("hits") == [None, 23.0]


def test_a_clock_that_goes_back_discards_earlier_samples() -> None:
    view = arp((10, table(hits=5)), (11, table(hits=7)), (3, table(hits=9)), (3, table(hits=10)))
    assert view.history("hits") == []
    assert view.table.stats["hits"] == 10


def test_the_last_two_minutes_are_kept() -> None:
    view = arp(*((second, table(allocs=second * 23)) for second in range(500)))
    assert view.history("allocs") == [23.0] * SAMPLES
    assert len(view.entries_history()) == SAMPLES + 1


def test_hits_per_lookup_are_known_now_and_since_boot() -> None:
    view = arp((0, table(lookups=1000, hits=100)), (1, table(lookups=1040, hits=130)))
    assert view.hit_ratio() == 0.75
    assert view.hit_ratio_ever() == 130 / 1040
    assert arp((0, table(lookups=0, hits=0))).hit_ratio_ever() is None


@pytest.mark.parametrize(
    ("entries", "level"), [(0, "ok"), (511, "ok"), (512, "warn"), (1023, "warn"), (1024, "full")]
)
def test_a_table_warns_before_it_is_full(entries: int, level: str) -> None:
    assert arp((0, table(entries=entries))).level == level


def test_a_nearly_full_table_warns_if_its_thresholds_are_equal() -> None:
    one = {**table(entries=850), "thresholds": [1000, 1000, 1000]}
    assert arp((0, one)).level == "warn"


def test_a_table_that_rejected_a_neighbour_counts_as_full_for_some_samples() -> None:
    samples = [(second, table(entries=3, table_fulls=int(second >= 5))) for second in range(16)]
    assert arp(*samples[:5]).level == "ok"
    assert arp(*samples[:6]).level == "full"
    assert arp(*samples[:15]).level == "full"
    assert arp(*samples).level == "ok"


def test_a_table_without_limits_has_no_share() -> None:
    view = arp((0, {**table(), "thresholds": [0, 0, 0]}))
    assert view.share is None
    assert arp((0, table(entries=256))).share == 0.25


# Namespaces.


def test_a_frame_with_changes_replaces_only_these() -> None:
    held = fed(namespace())
    changed = neighbour("10.0.0.2", FAILED)
    held.feed(news(neighbours_changed=[changed], neighbours_gone=[[4, "10.0.0.3", 2, False]]))
    known = held.namespace(ROUTER)
    assert known is not None
    states = {one.dst: one.state for one in known.neighbours.values()}
    assert states["10.0.0.2"] == "FAILED"
    assert "10.0.0.3" not in states
    assert states["10.0.0.9"] == "FAILED"
    assert len(known.routes) == len(made.ROUTES)
    held.feed(news(devices_changed=[made.device(2, "renamed")]))
    assert known.device(2) == "renamed"
    assert known.device(3) == "wan0"
    assert known.device(99) == "99"


def test_a_complete_frame_replaces_everything() -> None:
    held = fed(namespace(), namespace(neighbours=[neighbour("10.0.0.77", REACHABLE)]))
    known = held.namespace(ROUTER)
    assert known is not None
    assert [one.dst for one in known.neighbours.values()] == ["10.0.0.77"]


def test_a_namespace_that_no_longer_exists_is_removed() -> None:
    held = fed(namespace(), namespace(made.CLIENT, "client"))
    assert [one.name for one in held.namespaces()] == ["client", "router"]
    held.feed({"mono": made.T0, "gone": [ROUTER, 12345]})
    assert [one.name for one in held.namespaces()] == ["client"]
    assert held.usable(ROUTER, "10.0.0.2") == Reach("unknown")


def test_ages_become_times() -> None:
    known = fed(namespace(second=100)).namespace(ROUTER)
    assert known is not None
    one = known.neighbours[4, "10.0.0.2", 2, False]
    assert (one.confirmed, one.used, one.updated) == (50_096.0, 50_098.0, 50_091.0)


def test_every_frame_increases_the_version() -> None:
    held = Neighbours()
    versions = {held.version}
    for frame in (made.tables(), namespace(), news(), {"mono": made.T0, "gone": []}):
        held.feed(frame)
        versions.add(held.version)
    assert len(versions) == 5


def test_a_trace_applies_frames_of_neighbours() -> None:
    trace = Trace(1000)
    trace.feed(Frame(Kind.NEIGHBOURS, json.dumps(namespace()).encode()))
    assert trace.neighbours.usable(ROUTER, "10.0.0.2", "lan0").usable is True


# Next hops.


@pytest.mark.parametrize(
    ("dst", "out", "state", "via", "usable"),
    [
        ("10.0.0.2", "lan0", "REACHABLE", "10.0.0.2", True),
        ("10.0.0.2", None, "REACHABLE", "10.0.0.2", True),
        ("10.0.0.3", None, "STALE", "10.0.0.3", True),
        ("10.0.0.9", "lan0", "FAILED", "10.0.0.9", False),
        ("10.0.0.10", "lan0", "INCOMPLETE", "10.0.0.10", False),
        ("10.0.0.11", "lan0", "absent", "10.0.0.11", False),
        # via a gateway, and by the longer prefix
        ("10.7.1.1", "lan0", "FAILED", "10.0.0.9", False),
        ("10.7.7.1", "lan0", "REACHABLE", "10.0.0.2", True),
        # default route: the better metric, or the device the packet left by
        ("8.8.8.8", None, "DELAY", "192.0.2.1", True),
        ("8.8.8.8", "wan0", "DELAY", "192.0.2.1", True),
        ("8.8.8.8", "lan0", "FAILED", "10.0.0.9", False),
        ("8.8.8.8", "elsewhere", "unknown", None, None),
        # one of two hops
        ("203.0.113.1", "lan0", "FAILED", "10.0.0.9", False),
        ("203.0.113.1", "wan0", "DELAY", "192.0.2.1", True),
        ("203.0.113.1", None, "unknown", None, None),
        # this host's own, broadcast, multicast, no such route, no resolution
        ("10.0.0.1", None, "unknown", None, None),
        ("10.0.0.255", None, "unknown", None, None),
        ("224.0.0.251", None, "unknown", None, None),
        ("198.51.100.1", None, "unknown", None, None),
        ("172.16.0.1", None, "unknown", None, None),
        ("0.0.0.0", None, "unknown", None, None),
        ("", None, "unknown", None, None),
        ("no address", None, "unknown", None, None),
        # IPv6
        ("2001:db8:1234:5678:9abc:def0:1234:5678", "wan0", "PROBE", "fe80::1", True),
        ("fe80::1", "wan0", "PROBE", "fe80::1", True),
        ("fe80::1", "lan0", "absent", "fe80::1", False),
        ("fe80::1", None, "unknown", None, None),
        ("ff02::1", None, "unknown", None, None),
    ],
)
def test_a_packet_s_next_hop_is_found(
    dst: str, out: str | None, state: str, via: str | None, usable: bool | None
) -> None:
    reach = fed(namespace()).usable(ROUTER, dst, out)
    assert (reach.state, reach.via, reach.usable) == (state, via, usable)


def test_an_answer_changes_with_the_next_frame() -> None:
    held = fed(namespace())
    first = held.usable(ROUTER, "10.0.0.2", "lan0")
    assert held.usable(ROUTER, "10.0.0.2", "lan0") is first
    held.feed(made.tables(1))
    assert held.usable(ROUTER, "10.0.0.2", "lan0") is first
    held.feed(news(neighbours_changed=[neighbour("10.0.0.2", FAILED)]))
    assert held.usable(ROUTER, "10.0.0.2", "lan0").usable is False


def test_a_neighbour_beyond_the_sent_ones_is_unknown_not_absent() -> None:
    totals = {"neighbours": 5000, "routes": len(made.ROUTES), "devices": 4, "rules": 0}
    held = fed(namespace(totals=totals))
    assert held.usable(ROUTER, "10.0.0.2", "lan0").usable is True
    assert held.usable(ROUTER, "10.0.0.11", "lan0").state == "unknown"
    held = fed(namespace(totals={**totals, "neighbours": 9, "routes": 5000}))
    assert held.usable(ROUTER, "10.0.0.2", "lan0").state == "unknown"


def test_with_policy_routing_the_next_hop_is_unknown_without_a_device() -> None:
    totals = {"neighbours": 9, "routes": len(made.ROUTES), "devices": 4, "rules": 1}
    held = fed(namespace(totals=totals))
    assert held.usable(ROUTER, "10.0.0.9").state == "unknown"
    assert held.usable(ROUTER, "10.0.0.9", "lan0").usable is False


def test_a_proxy_entry_is_not_a_neighbour() -> None:
    proxy = {"family": 4, "dst": "10.0.0.50", "dev": 2, "state": 0, "flags": 8, "lladdr": None}
    held = fed(namespace(neighbours=[proxy]))
    known = held.namespace(ROUTER)
    assert known is not None
    assert [one.proxy for one in known.neighbours.values()] == [True]
    assert held.usable(ROUTER, "10.0.0.50", "lan0").state == "absent"


# Hostile frames.

_GOOD: dict[str, dict[str, Any]] = {"tables": made.tables(), "namespace": namespace()}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:2])
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, one in items for place in _places(one, (*path, key)))]


@pytest.mark.parametrize("form", list(_GOOD))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_frame_with_any_value_is_applied_or_rejected_with_one_line(
    form: str, data: st.DataObject
) -> None:
    # GIVEN a valid frame with one value replaced
    frame: Any = copy.deepcopy(_GOOD[form])
    path = data.draw(st.sampled_from(_places(frame)[1:]))
    anything = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
        st.just([]), st.just({}), st.just([[]]), st.just([{}]), st.just({"": ""}),
        st.just("\ud800\x1b[2J"), st.just(1 << 64), st.just(-1), st.just("::%eth0"),
    )  # fmt: skip
    here = frame
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = data.draw(anything)
    held = fed(namespace(made.CLIENT))
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
    assert not said or held.namespace(ROUTER) is None
    # AND the state can be queried
    for one in held.namespaces():
        held.usable(one.netns, "10.0.0.2", "lan0")
    for view in held.tables():
        assert view.level in ("ok", "warn", "full")


def test_names_are_clean_and_equal_those_in_rows() -> None:
    evil = b"v\xff\x1b[2J".decode("utf-8", "surrogateescape")
    held = fed(namespace(name="\x1b]0;pwned\x07", devices=[made.device(2, evil)]))
    known = held.namespace(ROUTER)
    assert known is not None
    assert known.name == "\\x1b]0;pwned\\x07"
    assert known.device(2) == "v\\xff\\x1b[2J"
    assert held.usable(ROUTER, "10.0.0.2", "v\\xff\\x1b[2J").state == "REACHABLE"


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"mono": -1},
        {"mono": 1 << 63},
        {"mono": 1.5},
        {"mono": True},
        {"mono": 1, "gone": 7},
        {"mono": 1, "gone": ["x"]},
        {"mono": 1, "netns": "router"},
        {"mono": 1, "tables": [table()] * 9000},
        {"mono": 1, "netns": 1, "neighbours_gone": [[4, "10.0.0.1", 1]]},
        {"mono": 1, "netns": 1, "neighbours_gone": [[5, "10.0.0.1", 1, False]]},
        {"mono": 1, "netns": 1, "routes": [made.route("10.0.0.0/33", (1, None))]},
        {"mono": 1, "netns": 1, "routes": [{**made.route("10.0.0.0/8", (1, None)), "family": 6}]},
    ],
)
def test_a_malformed_frame_is_rejected(frame: dict[str, Any]) -> None:
    with pytest.raises(StreamError, match="malformed neighbours in the stream"):
        Neighbours().feed(frame)


def test_endless_namespaces_neighbours_and_tables_use_bounded_memory() -> None:
    held = Neighbours()
    for netns in range(1024):
        held.feed({"mono": 1, "netns": netns})
    with pytest.raises(StreamError, match="too many namespaces"):
        held.feed({"mono": 1, "netns": 1024})
    some = [neighbour(f"10.0.{n >> 8}.{n & 255}", FAILED) for n in range(8000)]
    held.feed(news(netns=1, neighbours_changed=some))
    held.feed(news(netns=1, neighbours_changed=[{**one, "dev": 3} for one in some]))
    with pytest.raises(StreamError, match="too many neighbours"):
        held.feed(news(netns=1, neighbours_changed=[{**one, "dev": 4} for one in some]))
    for n in range(100):
        held.feed(made.tables(n, {**table(), "name": f"table{n}"}))
    assert len(held.tables()) == 16
