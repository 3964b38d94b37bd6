# SPDX-License-Identifier: GPL-2.0-only
"""Stations between the rows of tables, in every format."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

from ipttrace.stream import record
from ipttrace.trace.session import Trace
from ipttrace.view.formats import output
from tests.data.stations import PACKET, begun, feed, station


def _trace() -> Trace:
    """PREROUTING accepts a packet, which the reverse path filter drops; a rule drops another."""
    trace = begun()
    feed(trace, 10, 0, station(7, "dropped", 2000, PACKET, reason=12, place=1, netns=7, **_IN))
    feed(trace, 20, 2, station(8, "dropped", 22_000, PACKET, reason=8, place=2), verdict=0)
    return trace


_IN: dict[str, Any] = {"in": b"eth1"}
WHY = "RPF: the reverse path filter on eth1 does not expect 10.1.0.2 from there"


def _written(name: str, columns: int | None = None, *, colour: bool = False) -> str:
    trace = _trace()
    made = output(name, {7: "router"}, columns=columns, colour=colour)
    return (made.begin({}) + made.rows(trace.store, range(trace.store.end))[0]).decode()


def test_a_terminal_shows_the_reason_the_place_and_the_sentence() -> None:
    for columns in (None, 80, 200):
        _, _, line, rule = _written("text", columns).splitlines()
        assert re.search("DROPPED .*IP_RPFILTER at ip_rcv_finish_core[+]0x1d2  " + WHY, line)
        assert "`ip -n router route get 10.1.0.2`" in line
        assert "DROPPED" not in rule
    # The rest of the line is in the columns of the others.
    heading, accepted, line, _ = _written("text").splitlines()
    assert accepted.index("ACCEPT") == line.index("DROPPED") == heading.index("VERDICT")


def test_a_drop_is_red() -> None:
    line = _written("text", 200, colour=True).splitlines()[2]
    assert "\x1b[31mDROPPED\x1b[0m" in line
    assert "\x1b[31mIP_RPFILTER at ip_rcv_finish_core+0x1d2\x1b[0m" in line


def test_csv_and_json_have_the_fields_and_nothing_of_tables() -> None:
    rows = list(csv.DictReader(io.StringIO(_written("csv"), newline="")))
    assert [(row["drop"], row["reason"], row["station"]) for row in rows] == [
        ("no", "", ""),
        ("yes", "IP_RPFILTER", "dropped"),
        ("yes", "NETFILTER_DROP", ""),
    ]
    assert rows[1]["place"] == "ip_rcv_finish_core+0x1d2"
    empty = ("hook", "table", "chain", "rulenum", "match", "path", "rule", "verdict", "cost_ns")
    assert {rows[1][name] for name in (*empty, "tables")} == {""}
    rows = [json.loads(line) for line in _written("jsonl").splitlines()]
    assert [row["drop"] for row in rows] == [False, True, True]
    assert rows[1]["station"] == "dropped"
    assert {name for name in empty if rows[1][name] not in (None, [])} == set()
    assert rows[1]["tables"] is None


def test_wireshark_shows_why_a_packet_was_dropped() -> None:
    trace = _trace()
    made = output("pcapng", {7: "router"})
    data = made.begin({}) + made.rows(trace.store, range(trace.store.end))[0] + made.end()
    text = data.decode("utf-8", "replace")
    assert f"DROPPED IP_RPFILTER at ip_rcv_finish_core+0x1d2: {WHY}" in text
    assert record.STATIONS[record.DROPPED] == "dropped"
