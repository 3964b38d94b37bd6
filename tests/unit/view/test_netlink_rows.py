# SPDX-License-Identifier: GPL-2.0-only
"""Rows of both engines as lines and packets: what nobody knows is not made up."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from typing import Any

from ipttrace.trace.row import FIELDS, Row
from ipttrace.trace.store import Store
from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.pcapng import Pcapng
from ipttrace.view.text import TextView
from tests.data.netlink_rows import RULE, RecordedCalls, input_from_every_source

KERNEL, LEGACY, NFT, INET_ROW = range(4)
NOBODY_KNOWS = ("skb", "cpu", "pid", "comm", "cost_ns")


@cache
def store() -> Store:
    return input_from_every_source().trace().store


def rows() -> list[Row]:
    return store().rows(range(4))


def told() -> list[str]:
    view = TextView()
    return (view.header() + view.lines(rows())).splitlines()[1:]


def test_text_says_whose_table_it_was_and_marks_what_was_not_told() -> None:
    kernel, legacy, nft, inet = told()
    assert " filter INPUT" in kernel
    assert " ip filter INPUT" in nft
    assert " inet t    jail" in inet
    # THEN neither a verdict nor a number is made up
    assert legacy.split()[-3:] == ["?", "-", "-"]
    assert " ? rule   DROP " in inet
    assert inet.endswith("in:2 → jail:?")


def test_csv_has_empty_cells_where_nobody_knows() -> None:
    written = CsvView().lines(rows())
    cells = [dict(zip(FIELDS, line, strict=True)) for line in csv.reader(io.StringIO(written))]
    for seq in (LEGACY, NFT, INET_ROW):
        assert [cells[seq][name] for name in NOBODY_KNOWS] == [""] * 5
    assert cells[KERNEL]["pid"] == "0"
    assert cells[LEGACY]["verdict"] == ""
    assert (cells[INET_ROW]["rulenum"], cells[INET_ROW]["path"]) == ("", "in:2>jail:")
    assert [line["table"] for line in cells] == ["filter", "filter", "filter", "t"]


def test_jsonl_has_null_where_nobody_knows() -> None:
    lines: list[dict[str, Any]] = list(map(json.loads, JsonlView().lines(rows()).splitlines()))
    for seq in (LEGACY, NFT, INET_ROW):
        assert [lines[seq][name] for name in NOBODY_KNOWS] == [None] * 5
    assert lines[LEGACY]["verdict"] is None
    assert lines[INET_ROW]["rulenum"] is None
    assert [step["rulenum"] for step in lines[INET_ROW]["path"]] == [2, None]
    assert [line["table"] for line in lines] == ["filter", "filter", "filter", "t"]


def test_an_arp_packet_keeps_netfilters_number_of_its_family() -> None:
    made = RecordedCalls()
    made.nft(b"t", 3, [(b"in", 1, RULE)], family=3, first=True)
    made.nft(b"b", 7, [(b"in", 1, RULE)], family=7, first=True, hook=255)
    other = made.trace("netlink").store.rows(range(2))
    lines: list[dict[str, Any]] = list(map(json.loads, JsonlView().lines(other).splitlines()))
    assert [line["family"] for line in lines] == [3, 7]
    assert [line["hook"] for line in lines] == ["INPUT", None]
    assert "arp t" in TextView().lines(other)


def test_a_packet_that_both_engines_saw_is_one_packet_with_all_of_its_bytes() -> None:
    # GIVEN the kernel engine caught 118 bytes, the netlink engine 60 of the same
    out = Pcapng()
    data, count = out.rows(store(), [0, 1, 2, 3])
    data += out.end()
    assert count == 4
    text = data.decode("utf-8", "replace")
    # THEN each engine's tables are in its comments
    assert "INPUT filter INPUT:1 ACCEPT" in text
    assert "INPUT filter INPUT:1 (verdict unknown)" in text
    assert "INPUT ip filter INPUT:1 ACCEPT" in text
    assert "INPUT inet t in:2 → jail:? DROP" in text
    assert "trace id 1f2e3d4c" in text
    # AND the bytes are there once, the longer of the two
    assert data.count(bytes(90)) == 1
    assert data.count(bytes((10, 0, 0, 1, 10, 0, 0, 2))) == 1
