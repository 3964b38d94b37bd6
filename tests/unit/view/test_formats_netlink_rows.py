# SPDX-License-Identifier: GPL-2.0-only
"""Rows of both engines as lines and packets: unknown values stay unknown."""

from __future__ import annotations

import csv
import io
import json
import struct
from functools import cache
from typing import Any

from ipttrace.stream import record
from ipttrace.trace.row import FIELDS, Row
from ipttrace.trace.store import Store
from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.pcapng import Pcapng
from ipttrace.view.text import TextView
from tests.data.netlink_rows import IP, RULE, RecordedCalls, input_from_every_source

KERNEL, LEGACY, NFT, INET_ROW = range(4)
UNKNOWN_TO_NETLINK = ("skb", "cpu", "pid", "comm", "cost_ns")


@cache
def store() -> Store:
    return input_from_every_source().trace().store


def rows() -> list[Row]:
    return store().rows(range(4))


def shown() -> list[str]:
    view = TextView()
    return (view.header() + view.lines(rows())).splitlines()[1:]


def test_text_shows_the_table_s_family_and_marks_unknown_values() -> None:
    kernel, legacy, nft, inet = shown()
    assert " filter INPUT" in kernel
    assert " ip filter INPUT" in nft
    assert " inet t    jail" in inet
    # THEN an unknown verdict or number is not invented
    assert legacy.split()[-3:] == ["?", "-", "-"]
    assert " ? rule   DROP " in inet
    assert inet.endswith("in:2 → jail:?")


def test_unknown_values_are_empty_in_csv() -> None:
    written = CsvView().lines(rows())
    cells = [dict(zip(FIELDS, line, strict=True)) for line in csv.reader(io.StringIO(written))]
    for seq in (LEGACY, NFT, INET_ROW):
        assert [cells[seq][name] for name in UNKNOWN_TO_NETLINK] == [""] * 5
    assert cells[KERNEL]["pid"] == "0"
    assert cells[LEGACY]["verdict"] == ""
    assert (cells[INET_ROW]["rulenum"], cells[INET_ROW]["path"]) == ("", "in:2>jail:")
    assert [line["table"] for line in cells] == ["filter", "filter", "filter", "t"]


def test_unknown_values_are_null_in_jsonl() -> None:
    lines: list[dict[str, Any]] = list(map(json.loads, JsonlView().lines(rows()).splitlines()))
    for seq in (LEGACY, NFT, INET_ROW):
        assert [lines[seq][name] for name in UNKNOWN_TO_NETLINK] == [None] * 5
    assert lines[LEGACY]["verdict"] is None
    assert lines[INET_ROW]["rulenum"] is None
    assert [step["rulenum"] for step in lines[INET_ROW]["path"]] == [2, None]
    assert [line["table"] for line in lines] == ["filter", "filter", "filter", "t"]


def test_an_arp_packet_has_netfilter_s_family_number() -> None:
    made = RecordedCalls()
    made.nft(b"t", 3, [(b"in", 1, RULE)], family=3, first=True)
    made.nft(b"b", 7, [(b"in", 1, RULE)], family=7, first=True, hook=255)
    other = made.trace("netlink").store.rows(range(2))
    lines: list[dict[str, Any]] = list(map(json.loads, JsonlView().lines(other).splitlines()))
    assert [line["family"] for line in lines] == [3, 7]
    assert [line["hook"] for line in lines] == ["INPUT", None]
    assert "arp t" in TextView().lines(other)


def test_a_packet_of_both_engines_is_one_packet_with_the_most_bytes() -> None:
    # GIVEN a packet with 118 bytes from the kernel engine and 60 from the netlink engine
    out = Pcapng()
    data, count = out.rows(store(), [0, 1, 2, 3])
    data += out.end()
    assert count == 4
    text = data.decode("utf-8", "replace")
    # THEN both engines' tables are in its comments
    assert "INPUT filter INPUT:1 ACCEPT" in text
    assert "INPUT filter INPUT:1 (verdict unknown)" in text
    assert "INPUT ip filter INPUT:1 ACCEPT" in text
    assert "INPUT inet t in:2 → jail:? DROP" in text
    assert "trace id 1f2e3d4c" in text
    # AND its bytes are there once, the longer ones
    assert data.count(bytes(90)) == 1
    assert data.count(bytes((10, 0, 0, 1, 10, 0, 0, 2))) == 1


def test_an_unknown_length_is_empty_in_every_format() -> None:
    # GIVEN a packet that a second chain reports without its length and bytes
    made = RecordedCalls()
    made.nft(b"a", IP, [(b"in", 1, RULE)], first=True)
    made.nft(
        b"b", IP, [(b"in", 1, RULE)], flags=record.F_FOLLOWED | record.F_NO_LEN, len=0, caplen=0
    )
    store = made.trace("netlink").store
    both = store.rows(range(2))
    cells = list(csv.reader(io.StringIO(CsvView().lines(both))))
    assert [line[FIELDS.index("len")] for line in cells] == ["118", ""]
    lines = list(map(json.loads, JsonlView().lines(both).splitlines()))
    assert [line["len"] for line in lines] == [118, None]
    # THEN both chains are comments of one packet, with the bytes and length that are known
    out = Pcapng()
    data = out.rows(store, range(2))[0] + out.end()
    assert (data.count(struct.pack("<II", 60, 118)), data.count(b"INPUT ip ")) == (1, 2)
    # AND a packet of which no length is known has that of its bytes
    out = Pcapng()
    data = out.rows(store, [1])[0] + out.end()
    assert data.count(b"INPUT ip b") == 1
