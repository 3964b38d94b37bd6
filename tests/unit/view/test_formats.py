# SPDX-License-Identifier: GPL-2.0-only
"""Rows as text, CSV and JSON lines, including hostile ones."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.trace.row import FIELDS, Row, Step
from ipttrace.view.csv import FORMULA, CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.labels import Labels
from ipttrace.view.output import View
from ipttrace.view.text import TextView, colour_wanted
from tests.data.rows import AFTER, BRIDGED, HOSTILE, IPV6, PLAIN, POLICY, ROWS, UNKNOWN

ANY_TEXT = st.text(st.characters(), max_size=40)  # surrogates included


def hostile(text: str) -> Row:
    return replace(
        PLAIN,
        comm=text,
        in_=text,
        out=text,
        table=text,
        chain=text,
        match=text,
        rule=text,
        verdict=text,
        proto=text,
        path=(Step(text, 1, text), Step("A", 2, "rule")),
    )


def views() -> list[View]:
    return [TextView(), TextView(columns=100), CsvView(), JsonlView()]


@settings(deadline=None)
@given(ANY_TEXT)
def test_names_cannot_control_the_terminal(text: str) -> None:
    # GIVEN a row with any text in its names
    for view in views():
        # WHEN it is written together with an ordinary one
        lines = view.lines([hostile(text), PLAIN]).split("\n")
        # THEN there are two lines of printable characters
        assert len(lines) == 3
        assert lines[2] == ""
        assert all(line.removesuffix("\r").isprintable() for line in lines)


@settings(deadline=None)
@given(ANY_TEXT)
def test_coloured_text_has_no_escapes_except_colours(text: str) -> None:
    line = TextView(colour=True).lines([hostile(text)]).removesuffix("\n")
    assert re.sub(r"\x1b\[(0|1|2|31|32|33)m", "", line).isprintable()


@settings(deadline=None)
@given(ANY_TEXT)
def test_csv_has_no_formulas(text: str) -> None:
    # GIVEN a row with any text in its names, WHEN it is written as CSV
    written = CsvView().lines([hostile(text), hostile("=" + text), hostile(" \t@" + text)])
    # THEN no cell begins like a formula, and there is a cell per column
    for cells in csv.reader(io.StringIO(written, newline="")):
        assert len(cells) == len(FIELDS)
        assert not [cell for cell in cells if cell.lstrip().startswith(FORMULA)]


@settings(deadline=None)
@given(ANY_TEXT)
def test_csv_has_no_formulas_if_semicolons_separate_cells(text: str) -> None:
    # GIVEN rows with semicolons in their names, WHEN they are written as CSV
    names = [f"x;=cmd(){text}", f"{text}; @x", f';"+1{text}', f'"a";""-{text}', text]
    written = CsvView().lines(map(hostile, names))
    # THEN no cell begins like a formula if semicolons separate cells, quoted or not
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        for line in written.splitlines():
            for cells in csv.reader([line], delimiter=";", quoting=quoting):
                assert not [cell for cell in cells if cell.strip(' "').startswith(FORMULA)]


@settings(deadline=None)
@given(ANY_TEXT)
def test_jsonl_preserves_names(text: str) -> None:
    written = JsonlView().lines([hostile(text)])
    assert written.isascii()
    # Half of a surrogate pair is not valid text: it becomes an escape.
    whole = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    value = json.loads(written)
    assert value["chain"] == value["path"][0]["chain"] == value["comm"] == whole


def test_csv_has_every_field_as_a_column_in_the_published_order() -> None:
    view = CsvView()
    table = list(csv.DictReader(io.StringIO(view.header() + view.lines(ROWS), newline="")))
    assert tuple(table[0]) == FIELDS
    assert len(table) == len(ROWS)
    assert table[0]["time"] == "2026-11-21T01:02:03.123456789Z"
    assert table[0]["skb"] == "0xffff888104a3b200"
    assert table[1]["mark"] == "0x1"
    assert table[1]["path"] == "FORWARD:1>DOCKER-USER:3/return>FORWARD:4/policy"
    assert table[5]["comm"] == "'=cmd|' /C calc'!A0"


def test_jsonl_has_every_field_as_a_key_and_null_for_unknown_values() -> None:
    lines = JsonlView().lines(ROWS).splitlines()
    values = [json.loads(line) for line in lines]
    assert all(tuple(value) == FIELDS for value in values)
    unknown = values[ROWS.index(UNKNOWN)]
    assert unknown["skb"] is unknown["cost_ns"] is unknown["rulenum"] is None
    assert unknown["path"] == []
    assert values[1]["path"][1] == {"chain": "DOCKER-USER", "rulenum": 3, "match": "return"}
    assert values[1]["cost_ns"] == 12345
    assert values[1]["mark"] == "0x1"


def test_which_tables_which_packet_and_which_ports_follow_the_published_fields() -> None:
    names = {BRIDGED.netns: "=lan"}
    cells, plain = csv.DictReader(
        io.StringIO(CsvView().header() + CsvView(names).lines([BRIDGED, PLAIN]), newline="")
    )
    assert [cells[name] for name in FIELDS[-15:-7]] == [
        *("ip", "0x64", "001f2e3d", "'=lan", "0xcafe", "7", "'=port1", "port2")
    ]
    assert [plain[name] for name in FIELDS[-15:-7]] == ["legacy", "0x64", *[""] * 6]
    bridged, plain = map(json.loads, JsonlView(names).lines([BRIDGED, PLAIN]).splitlines())
    assert [bridged[name] for name in FIELDS[-15:-7]] == [
        *("ip", "0x64", "001f2e3d", "=lan", "0xcafe", 7, "=port1", "port2")
    ]
    assert [plain[name] for name in FIELDS[-15:-7]] == ["legacy", "0x64", *[None] * 6]


def test_unknown_values_are_empty_in_csv() -> None:
    view = CsvView()
    (cells,) = csv.DictReader(io.StringIO(view.header() + view.lines([UNKNOWN]), newline=""))
    for name in ("skb", "cpu", "pid", "comm", "in", "chain", "rulenum", "cost_ns", "sport"):
        assert cells[name] == ""


def test_no_rows_make_no_lines() -> None:
    assert [view.lines([]) for view in views()] == ["", "", "", ""]


def test_an_impossible_time_is_written_as_unknown() -> None:
    row = replace(PLAIN, time=10**40)
    assert json.loads(JsonlView().lines([row]))["time"] is None
    assert CsvView().lines([row]).startswith(",kernel,")
    assert TextView().lines([row]).startswith("??:??:??.")


def test_columns_grow_for_a_wide_row_and_stay_aligned() -> None:
    # GIVEN a view that has written an IPv6 row
    view = TextView(utc=True)
    view.lines([PLAIN, IPV6])
    # WHEN ordinary rows follow
    first, second = view.lines([PLAIN, AFTER]).splitlines()
    # THEN their columns are aligned at the wider position
    assert first.index("filter") == second.index("filter")
    assert first.index("filter") > TextView(utc=True).lines([PLAIN]).index("filter")


def test_columns_after_wide_characters_are_aligned() -> None:
    # GIVEN a device name of characters that occupy two cells each
    wide, plain = TextView().lines([replace(PLAIN, in_="防火"), PLAIN]).splitlines()
    # THEN the next column is two characters earlier in the text: in the same cell
    assert wide.index("TCP") == plain.index("TCP") - 2


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_names_give_lines_of_bounded_length(row: Row) -> None:
    # Table and chain are whole, up to 1,024 characters each.
    assert len(TextView().lines([row])) < 2 * 1024 + 800


@pytest.mark.parametrize("columns", [120, 160, 200])
def test_lines_fit_the_terminal(columns: int) -> None:
    view = TextView(columns=columns)
    for line in (view.header() + view.lines([PLAIN, POLICY, AFTER])).splitlines():
        assert len(line) <= columns


def test_a_narrow_terminal_still_shows_chain_rule_match_and_verdict() -> None:
    line = TextView(columns=80).lines([POLICY])
    assert re.search(r"filter +FORWARD +4 policy +DROP", line)


def test_a_row_with_lost_records_is_marked() -> None:
    assert "(records lost)" in TextView().lines([replace(PLAIN, partial=True)])


def test_an_ipv6_address_before_a_port_has_brackets() -> None:
    line = TextView().lines([IPV6])
    assert "[2001:db8::1]:53 " in line
    assert " ::1 " in TextView().lines([replace(IPV6, src="::1", sport=None)])


def test_namespaces_show_names_that_became_known_in_time() -> None:
    names: dict[int, str] = {}
    view = TextView(names)
    names[4026531840] = "router\x1b[31m"
    assert "router\\x1b[31m" in view.lines([PLAIN])
    assert "4026532999" in view.lines([UNKNOWN])


def test_colour_is_for_terminals_unless_switched_off() -> None:
    master, terminal = os.openpty()
    reader, pipe = os.pipe()
    try:
        assert colour_wanted(terminal, {"TERM": "xterm"})
        assert not colour_wanted(terminal, {"NO_COLOR": "1", "TERM": "xterm"})
        assert not colour_wanted(terminal, {"TERM": "dumb"})
        assert not colour_wanted(pipe, {"TERM": "xterm"})
    finally:
        for fd in (master, terminal, reader, pipe):
            os.close(fd)


SEVERAL = Labels(("web1", "=web2"), {(0, PLAIN.netns): "lan", (1, PLAIN.netns): "dmz"})


def test_rows_of_several_hosts_show_the_host_and_its_namespace_names() -> None:
    # GIVEN a row of each of two hosts, whose namespaces have the same inode
    rows = [PLAIN, replace(PLAIN, host=1)]
    # WHEN they are written THEN each format has the host last, and CSV guards formulas
    head, one, two = csv.reader(
        io.StringIO(CsvView(SEVERAL).header() + CsvView(SEVERAL).lines(rows))
    )
    assert head == [*FIELDS, "host"]
    assert (one[-1], two[-1]) == ("web1", "'=web2")
    name = FIELDS.index("netns_name")
    assert (one[name], two[name]) == ("lan", "dmz")
    assert [*one[:name], *one[name + 1 : -1]] == [*two[:name], *two[name + 1 : -1]]
    objects = [json.loads(line) for line in JsonlView(SEVERAL).lines(rows).splitlines()]
    assert [list(each) for each in objects] == [[*FIELDS, "host"]] * 2
    assert [each["host"] for each in objects] == ["web1", "=web2"]
    view = TextView(SEVERAL)
    assert view.header().split()[-2:] == ["HOST", "PATH"]
    text = view.lines(rows).splitlines()
    assert [(" lan " in line, " dmz " in line) for line in text] == [(True, False), (False, True)]
    assert ["web1" in line for line in text] == [True, False]
    assert "=web2" in text[1]


def test_a_host_without_a_name_shows_its_number() -> None:
    assert CsvView(SEVERAL).lines([replace(PLAIN, host=5)]).rstrip().endswith(",5")


def test_rows_of_one_host_have_exactly_the_documented_fields() -> None:
    alone = Labels(("web1",), {(0, PLAIN.netns): "lan"})
    assert CsvView(alone).header() == CsvView().header() == ",".join(FIELDS) + "\r\n"
    assert CsvView(alone).lines(ROWS) == CsvView({PLAIN.netns: "lan"}).lines(ROWS)
    assert JsonlView(alone).lines(ROWS) == JsonlView({PLAIN.netns: "lan"}).lines(ROWS)
    assert TextView(alone).lines(ROWS) == TextView({PLAIN.netns: "lan"}).lines(ROWS)


def test_a_wide_terminal_shows_the_rule_at_the_end_of_the_line() -> None:
    rule = '-p tcp -m comment --comment "the one that lets it in" -j ACCEPT'
    row = replace(PLAIN, rule=rule)
    # GIVEN a wide terminal THEN a row ends in its rule, after the path if there is one
    assert TextView(columns=240).header().endswith(" PATH  TEXT\n")
    line = TextView(columns=240).lines([row])
    assert line.endswith(f" {rule}\n")
    line = TextView(columns=240).lines([replace(row, path=(Step("A", 1, "rule"),) * 2)])
    assert line.endswith(f" A:1 → A:1  {rule}\n")
    # a terminal just wide enough cuts it
    line = TextView(columns=160).lines([row]).rstrip("\n")
    assert line.endswith("…")
    assert len(line) == 160
    # AND a narrow terminal and a pipe omit it
    for columns in (159, None):
        assert "-p tcp" not in TextView(columns=columns).lines([row])
    # AND neither colours nor escapes make the line longer
    line = TextView(columns=160, colour=True).lines([replace(row, rule="-A \x1b[2J" + rule * 9)])
    assert "\x1b[2J" not in line
    assert len(re.sub(r"\x1b\[\d*m", "", line).rstrip("\n")) == 160
