# SPDX-License-Identifier: GPL-2.0-only
"""Searching, marking and copying rows."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ipttrace.trace.row import Row
from ipttrace.tui.app import TraceApp
from tests.data import streams
from tests.tui.harness import live, screen_text, seqs, shown, until
from tests.tui.replayed import SIZES, all_rows, listed, matching, replayed, seq_of, settled, write

CLIENT = ("10.1.0.2", 41404)


def cursor_line(app: TraceApp) -> str:
    return shown(app)[app.rows.cursor - seqs(app)[0]]


@pytest.mark.parametrize("size", SIZES)
async def test_a_search_goes_from_match_to_match_and_wraps_around(size: tuple[int, int]) -> None:
    async with replayed(size=size) as (app, pilot):
        hits = [row.index for row in all_rows(app) if row.verdict == "DROP"]
        assert hits == matching(app, "verdict=DROP")
        await pilot.press("home", "slash")
        await write(app, pilot, "verdict=DROP")
        await pilot.press("enter")
        await pilot.pause()
        # THEN the first match after the cursor is under it, on the screen, and all rows are there
        expected = [seq for seq in hits if seq > 0]
        assert app.rows.cursor == expected[0]
        assert len(listed(app)) == 985
        assert seqs(app)[0] <= app.rows.cursor <= seqs(app)[1]
        # WHEN pressing n THEN each match in turn, wrapping around at the end
        for seq in [*expected[1:], hits[0]]:
            await pilot.press("n")
            assert app.rows.cursor == seq
            assert seqs(app)[0] <= seq <= seqs(app)[1]
        assert "wrapped around" in app.notice_line.shown[0]
        # AND N goes back, wrapping around at the beginning
        for seq in hits[::-1]:
            await pilot.press("N")
            assert app.rows.cursor == seq


async def test_a_search_from_the_newest_row_finds_the_newest_match() -> None:
    async with replayed() as (app, pilot):
        assert app.rows.follow
        await pilot.press("slash")
        await write(app, pilot, "verdict=DROP")
        await pilot.press("enter")
        await pilot.pause()
        hits = matching(app, "verdict=DROP")
        assert app.rows.cursor == hits[-1]
        await pilot.press("N")
        assert app.rows.cursor == hits[-2]


@pytest.mark.parametrize(
    ("word", "query"),
    [
        ("BLOCK", "chain~BLOCK"),
        ("ksoft", "comm~ksoft"),
        ("drop", "verdict=DROP"),
        ("10.2.0.1", "addr=10.2.0.1"),
        ("dport=4444", "dport=4444"),
    ],
)
async def test_a_word_is_searched_in_the_columns_that_show_text(word: str, query: str) -> None:
    async with replayed() as (app, pilot):
        wanted = matching(app, query)
        await pilot.press("home", "slash")
        await write(app, pilot, word)
        await pilot.press("enter")
        await pilot.pause()
        assert app.rows.cursor == next(seq for seq in wanted if seq > 0)


@pytest.mark.parametrize(
    ("text", "shown_in"),
    [
        ("41404", lambda row: row.sport == 41404 or row.dport == 41404),
        ("10.1.0.2:41404", lambda row: CLIENT in ((row.src, row.sport), (row.dst, row.dport))),
        (
            "10.1.0.2:41404→10.2.0.2",
            lambda row: (row.src, row.sport, row.dst) == (*CLIENT, "10.2.0.2"),
        ),
        ("TCP SYN", lambda row: row.proto == "TCP" and (row.flags or "").startswith("SYN")),
        ("lan0→wan0", lambda row: (row.in_, row.out) == ("lan0", "wan0")),
        ("wan0 -> lan0", lambda row: (row.in_, row.out) == ("wan0", "lan0")),
        ("ipt-server", lambda row: row.netns == 4026532278),
        ("✗ drop", lambda row: row.verdict == "DROP"),
    ],
)
async def test_a_search_finds_what_the_rows_show(
    text: str, shown_in: Callable[[Row], bool]
) -> None:
    async with replayed() as (app, pilot):
        wanted = [row.index for row in all_rows(app) if shown_in(row)]
        assert 0 < len(wanted) < 985
        await pilot.press("home", "slash")
        await write(app, pilot, text)
        await pilot.press("enter")
        await pilot.pause()
        found = [app.rows.cursor]
        while len(found) < len(wanted):
            await pilot.press("n")
            found.append(app.rows.cursor)
        assert sorted(found) == wanted


async def test_a_search_finds_a_time_and_a_cost_as_they_are_shown() -> None:
    async with replayed(size=(200, 50)) as (app, pilot):
        app.rows.move_to(500)
        await pilot.pause()
        time, _, rest = cursor_line(app).lstrip("┌│├ ").partition(" ")
        assert re.fullmatch(r"[0-9:]{8}\.[0-9]{3,6}", time)
        cost = re.findall(r"[0-9.]+(?:ns|µs|ms)", rest)
        for text in (time, *cost):
            await pilot.press("home", "slash")
            await write(app, pilot, text)
            await pilot.press("enter")
            await pilot.pause()
            assert text in cursor_line(app)
        assert len(cost) == 1


async def test_a_search_without_a_match_keeps_the_cursor() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(100)
        await pilot.press("slash")
        await write(app, pilot, "no such word")
        await pilot.press("enter")
        await pilot.pause()
        assert app.rows.cursor == 100
        assert "no row here matches: no such word" in app.notice_line.shown[0]
        await pilot.press("n")
        assert app.rows.cursor == 100


async def test_n_before_any_search_explains_how_to_start_one() -> None:
    async with replayed() as (app, pilot):
        for key in "nN":
            await pilot.press(key)
            await until(pilot, lambda: "/ starts a search" in app.notice_line.shown[0])
            await pilot.press("escape")


async def test_an_empty_search_ends_the_search() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("home", "slash")
        await write(app, pilot, "drop")
        await pilot.press("enter", "slash", "enter", "n")
        await until(pilot, lambda: "/ starts a search" in app.notice_line.shown[0])


async def test_escape_keeps_the_previous_search() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(100)
        await pilot.press("slash")
        await write(app, pilot, "drop")
        await pilot.press("escape")
        assert app.rows.cursor == 100
        assert app.shown.search is None
        assert app.focused is app.rows


async def test_a_search_finds_filtered_rows_only() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.chain == "BLOCKLIST"))
        await pilot.press("c")
        await settled(app, pilot)
        held = listed(app)
        await pilot.press("home", "slash")
        await write(app, pilot, "family=4 or family=6")
        await pilot.press("enter")
        await pilot.pause()
        for _ in held:
            await pilot.press("n")
            assert app.rows.current is not None
            assert app.rows.current.index in held


@pytest.mark.parametrize("view", "2345")
async def test_a_search_from_another_view_shows_its_row(view: str) -> None:
    async with replayed() as (app, pilot):
        await pilot.press(view, "slash")
        await write(app, pilot, "verdict=DROP")
        await pilot.press("enter")
        await pilot.pause()
        assert app.switcher.current == "trace"
        assert app.focused is app.rows
        assert app.rows.current is not None
        assert app.rows.current.verdict == "DROP"


@pytest.mark.parametrize(
    "text", ["[red]x[/red]", '"', "\\", "(((", "=cmd()", "~", "漢字", "a" * 3000]
)
async def test_any_text_can_be_searched_for(text: str) -> None:
    kinds = streams.records(8)
    kinds[0]["comm"][4:] = text.encode()[:15]
    async with live(streams.hello(), streams.frames(*kinds), rows=8) as (_, app, pilot):
        await pilot.press("home", "slash")
        await write(app, pilot, text)
        await pilot.press("enter")
        await pilot.pause()
        if len(text) < 15:
            assert app.rows.cursor == 4
        for line in screen_text(app):
            assert line.isprintable()


# Marks.


async def test_marked_rows_are_visible_and_visited_in_turn() -> None:
    async with replayed() as (app, pilot):
        for seq in (300, 100, 500):
            app.rows.move_to(seq)
            await pilot.press("m")
        assert app.view.marks == {100, 300, 500}
        # THEN a marked line looks different
        y = 500 - seqs(app)[0]
        marked = shown(app)[y]
        # AND ' goes to the next, wrapping around
        for seq in (100, 300, 500, 100):
            await pilot.press("apostrophe")
            assert app.rows.cursor == seq
        # WHEN m is pressed again THEN the row is no longer marked
        await pilot.press("m", "apostrophe", "apostrophe")
        assert app.rows.cursor == 500
        await pilot.press("m")
        await pilot.pause()
        assert app.view.marks == {300}
        assert shown(app)[500 - seqs(app)[0]] != marked


async def test_marked_rows_outside_the_filter_are_skipped() -> None:
    async with replayed() as (app, pilot):
        drops = matching(app, "verdict=DROP")
        for seq in (100, drops[3]):
            app.rows.move_to(seq)
            await pilot.press("m")
        await pilot.press("v")
        await settled(app, pilot)
        assert listed(app) == drops
        await pilot.press("home", "apostrophe")
        assert app.rows.current is not None
        assert app.rows.current.index == drops[3]
        await pilot.press("apostrophe")
        assert app.rows.current.index == drops[3]


async def test_without_marks_a_notice_explains_how_to_make_one() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("apostrophe")
        await until(pilot, lambda: "m marks one" in app.notice_line.shown[0])


async def test_marks_of_evicted_rows_are_forgotten() -> None:
    async with live(streams.hello(), streams.rows(160), rows=160, capacity=160) as (a, app, pilot):
        app.rows.move_to(3)
        await pilot.press("m")
        a.send(streams.rows(800, start=160))
        await until(pilot, lambda: app.store.end == 960)
        app.rows.move_to(app.store.end - 1)
        await pilot.press("apostrophe")
        await until(pilot, lambda: "m marks one" in app.notice_line.shown[0])
        await pilot.press("m")
        assert app.view.marks == {app.store.end - 1}


# Copying.


async def test_a_row_is_copied_as_the_line_that_print_writes() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP" and row.dport == 23))
        await pilot.press("y")
        await until(pilot, lambda: "copied" in app.notice_line.shown[0])
        for part in ("10.1.0.2", "23", "POLICY-OUT", "DROP"):
            assert part in app.clipboard
        assert "\n" not in app.clipboard


@pytest.mark.parametrize("text", ["\x1b]52;c;AAAA\x07", "[b]x[/b]", "a\nb"])
async def test_copied_text_is_harmless(text: str) -> None:
    kinds = streams.records(4)
    kinds[0]["comm"] = text.encode()
    kinds[1]["chain"] = text.encode()
    async with live(streams.hello(), streams.frames(*kinds), rows=4) as (_, app, pilot):
        await pilot.press("up", "y")
        await until(pilot, lambda: "copied" in app.notice_line.shown[0])
        assert app.clipboard.isprintable()
        assert app.clipboard
