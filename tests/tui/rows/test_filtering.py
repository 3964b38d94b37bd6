# SPDX-License-Identifier: GPL-2.0-only
"""Filters of the view: by keys on a row, typed, stacked, and removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipttrace.trace.row import Row
from tests.data import streams
from tests.tui.harness import live, more, screen_text, shown, until
from tests.tui.replayed import (
    SIZES,
    all_rows,
    listed,
    matching,
    replayed,
    seq_of,
    settled,
    write,
)

Alike = Callable[[Row, Row], bool]

# What a row must have in common with the one under the cursor, stated independently of queries.
KEYS: dict[str, Alike] = {
    "f": lambda row, here: row.flow == here.flow,
    "r": lambda row, here: (
        (row.table, row.chain, row.rulenum, row.family, row.netns)
        == (here.table, here.chain, here.rulenum, here.family, here.netns)
    ),
    "c": lambda row, here: (row.table, row.chain) == (here.table, here.chain),
    "v": lambda row, here: row.verdict == here.verdict,
    "p": lambda row, here: (row.comm, row.pid) == (here.comm, here.pid),
    "w": lambda row, here: row.netns == here.netns,
    "h": lambda row, here: here.src in (row.src, row.dst, row.ct_orig_src, row.ct_orig_dst),
    "x": lambda row, here: row.flow != here.flow,
}
ROWS: dict[str, Callable[[Row], object]] = {
    "a drop": lambda row: row.verdict == "DROP",
    "after NAT": lambda row: row.dport == 80 and row.ct_orig_dport == 8080,
    "an ICMP error": lambda row: row.icmp == "3/3" and row.hook == "FORWARD",
    "a fragment": lambda row: row.frag and row.frag.endswith(":1480+"),
    "IPv6": lambda row: row.family == 6,
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("key", KEYS)
async def test_a_key_narrows_the_view_to_rows_like_the_current_one(key: str, row: str) -> None:
    # GIVEN a recording and the cursor on a row
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, ROWS[row]))
        here = app.rows.current
        assert here is not None
        # WHEN the key is pressed
        await pilot.press(key)
        await settled(app, pilot)
        # THEN exactly the rows that are equal in this are there
        text = app.shown.filters.text
        assert listed(app) == matching(app, text)
        assert listed(app) == [one.index for one in all_rows(app) if KEYS[key](one, here)]
        # AND the cursor is still on the row, and the bar shows the filter and its count
        if key != "x":
            assert app.rows.current == here
        await until(pilot, lambda: f"{len(listed(app)):,} of 985" in app.filter_bar.text)
        assert f"▼ {app.shown.filters.words[-1]}"[:40] in app.filter_bar.text
        # WHEN going back THEN all rows are there again, with the cursor where it was
        await pilot.press("backspace")
        await settled(app, pilot)
        assert len(listed(app)) == 985
        assert "all rows" in app.filter_bar.text
        if key != "x":
            assert app.rows.current == here


@pytest.mark.parametrize("size", SIZES)
async def test_a_flow_is_both_directions_across_nat(size: tuple[int, int]) -> None:
    async with replayed(size=size) as (app, pilot):
        app.rows.move_to(seq_of(app, ROWS["after NAT"]))
        await pilot.press("f")
        await settled(app, pilot)
        rows = [app.store.row(seq) for seq in listed(app)]
        # THEN the packet is there before and after DNAT, and so are the replies
        assert {row.dport for row in rows if row.dport and row.dport < 10000} >= {8080, 80}
        assert {row.sport for row in rows if row.sport and row.sport < 10000} >= {8080, 80}
        # AND all lines on the screen belong to it
        text = "\n".join(shown(app))
        assert "ACCEPT" in text
        assert sum("ACCEPT" in line or "DROP" in line for line in shown(app)) == min(
            len(rows), app.rows.size.height
        )


async def test_an_icmp_error_belongs_to_the_flow_that_it_reports_on() -> None:
    async with replayed() as (app, pilot):
        # GIVEN an error, whose flow is UDP
        app.rows.move_to(seq_of(app, ROWS["an ICMP error"]))
        await pilot.press("f")
        await settled(app, pilot)
        rows = [app.store.row(seq) for seq in listed(app)]
        assert {row.proto for row in rows} == {"UDP", "ICMP"}
        # WHEN the filter is made from the packet itself, THEN its error is there
        udp = next(row for row in rows if row.proto == "UDP")
        before = listed(app)
        await pilot.press("backspace")
        await settled(app, pilot)
        app.rows.move_to(udp.index)
        await pilot.press("f")
        await settled(app, pilot)
        assert listed(app) == before


async def test_fragments_stay_with_their_packet() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.frag and row.frag.endswith(":2960")))
        await pilot.press("f")
        await settled(app, pilot)
        frags = {str(app.store.row(seq).frag).split(":")[-1] for seq in listed(app)}
        assert {"0+", "1480+", "2960"} <= frags


async def test_filters_stack_up_and_are_removed_one_by_one() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        app.rows.move_to(seq_of(app, ROWS["a drop"]))
        counts = [len(listed(app))]
        trails: list[tuple[str, ...]] = [()]
        for key in "wvc":
            await pilot.press(key)
            await settled(app, pilot)
            counts.append(len(listed(app)))
            trails.append(app.shown.filters.words)
        assert trails[-1] == ("netns ipt-client", "DROP", "chain filter POLICY-OUT")
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] > 0
        await until(
            pilot,
            lambda: "netns ipt-client › DROP › chain filter POLICY-OUT" in app.filter_bar.text,
        )
        # WHEN going back step by step THEN each filter is in force again
        for count, trail in zip(counts[-2::-1], trails[-2::-1], strict=True):
            await pilot.press("backspace")
            await settled(app, pilot)
            assert len(listed(app)) == count
            assert app.shown.filters.words == trail
        await pilot.press("backspace")
        assert "no filter is active" in app.notice_line.shown[0]


async def test_f_on_a_dropped_packet_shows_its_complete_flow() -> None:
    async with replayed() as (app, pilot):
        # GIVEN only drops
        app.rows.move_to(seq_of(app, ROWS["a drop"]))
        here = app.rows.current
        assert here is not None
        await pilot.press("v")
        await settled(app, pilot)
        drops = listed(app)
        # WHEN f is pressed on one THEN the rows before the drop are there too
        await pilot.press("f")
        await settled(app, pilot)
        assert app.rows.current == here
        assert listed(app) == [one.index for one in all_rows(app) if one.flow == here.flow]
        assert {app.store.row(seq).verdict for seq in listed(app)} > {"DROP"}
        # AND going back shows the drops
        await pilot.press("backspace")
        await settled(app, pilot)
        assert listed(app) == drops


async def test_the_same_filter_twice_is_one_filter() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(3)
        await pilot.press("v", "v")
        await settled(app, pilot)
        assert "this filter is already active" in app.notice_line.shown[0]
        await pilot.press("backspace")
        await settled(app, pilot)
        assert len(listed(app)) == 985


async def test_new_rows_are_filtered_too() -> None:
    async with live(streams.hello(), streams.rows(280), rows=280) as (agent, app, pilot):
        app.rows.move_to(27)
        await pilot.press("v")
        await settled(app, pilot)
        assert len(listed(app)) == 10
        await more(agent, app, pilot, streams.rows(280, start=280), 560)
        await settled(app, pilot)
        assert listed(app) == matching(app, "verdict=DROP") == list(range(27, 560, 28))
        await until(pilot, lambda: "20 of 560" in app.filter_bar.text)
        # AND the tail follows the rows that match
        await pilot.press("end")
        await more(agent, app, pilot, streams.rows(28, start=560), 588)
        await settled(app, pilot)
        assert app.rows.current is not None
        assert app.rows.current.index == 587


async def test_a_filter_key_before_the_first_row_gives_a_notice() -> None:
    async with live(streams.hello()) as (_, app, pilot):
        for key in "frcvpwhx":
            await pilot.press(key)
            await until(pilot, lambda: "no row under the cursor" in app.notice_line.shown[0])
            await pilot.press("escape")


async def test_filter_keys_on_a_row_without_ports_or_process_match_or_explain() -> None:
    kinds = streams.records(4)
    kinds[0]["packet"] = 0xFF
    kinds[0]["comm"] = b""
    kinds[0]["pid"] = 0
    async with live(streams.hello(), streams.frames(*kinds), rows=4) as (_, app, pilot):
        app.rows.move_to(1)
        for key in "frcvpwhx":
            await pilot.press(key)
            await settled(app, pilot)
            # THEN the row matches, or is hidden, or a notice gives the reason
            text = app.shown.filters.text
            assert (1 in listed(app)) == (key != "x"), text
            while app.shown.filters.text:
                await pilot.press("backspace")
                await settled(app, pilot)


# The typed filter.


async def test_a_typed_filter_shows_the_rows_that_the_query_matches() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        await pilot.press("colon")
        await write(app, pilot, "verdict=DROP and src in 10.0.0.0/8")
        await pilot.press("enter")
        await settled(app, pilot)
        expected = [
            row.index
            for row in all_rows(app)
            if row.verdict == "DROP" and str(row.src).startswith("10.")
        ]
        assert expected
        assert listed(app) == expected == matching(app, "verdict=DROP and src in 10.0.0.0/8")
        assert app.focused is app.rows
        await until(pilot, lambda: "verdict=DROP and src in 10.0.0.0/8" in app.filter_bar.text)
        # WHEN the prompt is opened again THEN it contains the filter
        await pilot.press("colon")
        assert app.prompt._input.value == "verdict=DROP and src in 10.0.0.0/8"
        await pilot.press(*["backspace"] * len(" and src in 10.0.0.0/8"), "enter")
        await settled(app, pilot)
        assert listed(app) == matching(app, "verdict=DROP")
        # WHEN it is emptied THEN all rows are there
        await pilot.press("colon", "ctrl+u", "enter")
        await settled(app, pilot)
        assert len(listed(app)) == 985


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("verdict=DROP and colour=red", "colour"),
        ("verdict=DROP and (src in 10.0.0.0/8", None),
        ("cost>50parsecs", "parsecs"),
        ("src in 10.0.0.0/99", "10.0.0.0/99"),
        ("verdict==DROP or or", None),
    ],
)
@pytest.mark.parametrize("size", SIZES)
async def test_an_error_points_at_the_character_and_the_filter_stays(
    text: str, at: str | None, size: tuple[int, int]
) -> None:
    async with replayed(size=size) as (app, pilot):
        # GIVEN a filter
        app.rows.move_to(seq_of(app, ROWS["a drop"]))
        await pilot.press("v")
        await settled(app, pilot)
        before = listed(app)
        # WHEN an invalid one is typed
        await pilot.press("colon", "ctrl+u")
        await write(app, pilot, text)
        await pilot.press("enter")
        await pilot.pause()
        # THEN the prompt stays open, with the error below it
        assert app.prompt.asking
        wrong = app.shown.check(text)
        assert wrong is not None
        assert wrong[0][:20] in app.prompt.hint
        lines = screen_text(app)
        y = next(y for y, line in enumerate(lines) if text in line)
        x = lines[y + 1].index("^")
        assert x == lines[y].index(text) + min(wrong[1], len(text))
        if at is not None:
            assert lines[y][x:].startswith(at)
        # AND the old filter is in force
        assert listed(app) == before
        assert app.shown.filters.text == "verdict=DROP"
        await pilot.press("escape")
        assert not app.prompt.asking
        assert app.focused is app.rows
        assert app.is_running
        assert listed(app) == before


async def test_leading_spaces_do_not_shift_the_position_of_an_error() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("colon")
        await write(app, pilot, "    colour=red")
        await pilot.press("enter")
        await pilot.pause()
        lines = screen_text(app)
        y = next(y for y, line in enumerate(lines) if "colour=red" in line)
        assert lines[y + 1].index("^") == lines[y].index("colour")


async def test_tab_completes_fields_values_and_words() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        await pilot.press("colon")
        await write(app, pilot, "verd")
        assert "verdict" in app.prompt.hint
        await pilot.press("tab")
        assert app.prompt._input.value.startswith("verdict")
        if "=" not in app.prompt._input.value:
            await pilot.press("equals_sign")
        await pilot.press("D")
        assert app.prompt.hint.startswith("Tab DROP")
        await pilot.press("tab")
        assert app.prompt._input.value.strip() == "verdict=DROP"
        await pilot.press("enter")
        await settled(app, pilot)
        assert listed(app) == matching(app, "verdict=DROP")
        # WHEN the start of a chain's name is typed THEN it is offered
        await pilot.press("colon", "ctrl+u")
        await write(app, pilot, "chain=BL")
        assert "BLOCKLIST" in app.prompt.hint
        await pilot.press("tab", "enter")
        await settled(app, pilot)
        assert listed(app) == matching(app, "chain=BLOCKLIST") != []


async def test_tab_stays_in_the_prompt_if_nothing_can_be_completed() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("colon", "z", "q", "q", "tab", "tab")
        assert app.prompt._input.has_focus


async def test_the_arrow_keys_recall_earlier_filters() -> None:
    async with replayed() as (app, pilot):
        for text in ("verdict=DROP", "proto=UDP"):
            await pilot.press("colon", "ctrl+u")
            await write(app, pilot, text)
            await pilot.press("enter")
            await settled(app, pilot)
        await pilot.press("colon", "ctrl+u", "up")
        assert app.prompt._input.value == "proto=UDP"
        await pilot.press("up")
        assert app.prompt._input.value == "verdict=DROP"
        await pilot.press("up", "down")
        assert app.prompt._input.value == "proto=UDP"
        await pilot.press("up", "enter")
        await settled(app, pilot)
        assert listed(app) == matching(app, "verdict=DROP")


async def test_a_filter_that_matches_no_row_can_be_removed() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        await pilot.press("colon")
        await write(app, pilot, "dport=1")
        await pilot.press("enter")
        await settled(app, pilot)
        assert listed(app) == []
        await until(pilot, lambda: "0 of 985" in app.filter_bar.text)
        # WHEN keys that need a row are pressed THEN the screen stays
        for key in ("enter", "f", "m", "apostrophe", "y", "n", "up", "end", "home", "d", "at"):
            await pilot.press(key)
            await pilot.press("escape")
        await pilot.press("backspace")
        await settled(app, pilot)
        assert len(listed(app)) == 985
        assert app.rows.current is not None


@pytest.mark.parametrize("view", "2345")
async def test_a_filter_typed_in_another_view_shows_the_rows(view: str) -> None:
    async with replayed() as (app, pilot):
        await pilot.press(view, "colon")
        await write(app, pilot, "verdict=DROP")
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.switcher.current == "trace"
        assert app.focused is app.rows
        assert any("DROP" in line for line in shown(app))


@pytest.mark.parametrize(
    "text",
    ["[red]x[/red]", "\x1b[2Jx", "=1+1", 'a"b\\', "a b", "’‮x", "and", "(", "漢字"],
)
async def test_hostile_names_make_filters_that_match_the_row(text: str) -> None:
    raw = text.encode()
    kinds = streams.records(8)
    kinds[0]["comm"] = raw[:15]
    kinds[0]["table"] = kinds[1]["table"] = kinds[1]["chain"] = raw[:31]
    async with live(
        streams.hello(netns={"4026532456": text}),
        streams.frames(*kinds),
        streams.rows(8, start=8),
        rows=16,
        size=(120, 24),
    ) as (_, app, pilot):
        for key in "rcpw":
            app.rows.move_to(2)
            await pilot.press(key)
            await settled(app, pilot)
            query = app.shown.filters.text
            assert 2 in listed(app), query
            if key in "cp":
                assert listed(app) == list(range(8)), query
            # THEN the prompt can be opened and entered unchanged
            await pilot.press("colon", "enter")
            assert not app.prompt.asking, app.prompt.hint
            assert app.shown.filters.text == query
            for line in screen_text(app):
                assert line.isprintable()
            await pilot.press("backspace")
            await settled(app, pilot)
        # AND completion offers it, made harmless
        await pilot.press("colon")
        await write(app, pilot, "comm=")
        assert app.prompt.hint.isprintable()
        await pilot.press("tab", "enter")
        await pilot.pause()
        for line in screen_text(app):
            assert line.isprintable()


async def test_a_query_of_thousands_of_characters_is_applied_or_gives_an_error() -> None:
    async with replayed() as (app, pilot):
        text = "(" * 1500 + "verdict=DROP" + ")" * 1500
        await pilot.press("colon")
        app.prompt._input.value = text
        app.prompt._input.cursor_position = len(text)
        await pilot.press("enter")
        await settled(app, pilot)
        # THEN it is applied, or a notice gives the reason
        assert listed(app) == matching(app, "verdict=DROP") or app.prompt.asking
        assert len(screen_text(app)) == 24


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;t\x07", "a\u202eb\0c", "\x9b31m", "\x1b[201~"])
@pytest.mark.parametrize("key", ["colon", "slash", "at"])
async def test_pasted_escape_sequences_do_not_reach_the_terminal(key: str, text: str) -> None:
    async with replayed() as (app, pilot):
        await pilot.press(key)
        await write(app, pilot, text + "x")
        for line in screen_text(app):
            assert line.isprintable()
        await pilot.press("enter")
        await pilot.pause()
        for line in screen_text(app):
            assert line.isprintable()


async def test_a_flow_is_named_by_its_ends_and_the_last_filter_is_never_cut() -> None:
    async with replayed() as (app, pilot):
        # GIVEN several filters of which only the last fits the bar
        app.rows.move_to(seq_of(app, lambda row: (row.src, row.sport) == ("10.1.0.2", 41404)))
        await pilot.press("w")
        await settled(app, pilot)
        await pilot.press("r")
        await settled(app, pilot)
        await pilot.press("f")
        await settled(app, pilot)
        # THEN a flow stands in place of them, by its two ends
        row = app.view.row
        assert row is not None
        name = f"flow {row.src}:{row.sport} ⇄ {row.dst}:{row.dport}"
        await until(pilot, lambda: f"▼ {name} " in app.filter_bar.text)
        await pilot.press("w")
        await settled(app, pilot)
        await pilot.press("x")
        await settled(app, pilot)
        await until(pilot, lambda: f"… › without {name}" in app.filter_bar.text)
        await until(pilot, lambda: "0 of 985" in app.filter_bar.text)


async def test_escape_closes_one_thing_after_the_other_and_c_shows_all_rows() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, ROWS["a drop"]))
        for key in ("v", "c"):
            await pilot.press(key)
            await settled(app, pilot)
        filtered = app.shown.filters.text
        await pilot.press("enter", "2")
        assert app.view.detailed
        # WHEN Esc is pressed again and again THEN view, detail and filters close in turn
        await pilot.press("escape")
        assert app.switcher.current == "trace"
        assert app.view.detailed
        await pilot.press("escape")
        assert not app.view.detailed
        assert app.shown.filters.text == filtered
        await pilot.press("escape")
        await settled(app, pilot)
        assert app.shown.filters.words == ("DROP",)
        # AND C removes all filters at once, and ⌫ brings them back
        await pilot.press("C")
        await settled(app, pilot)
        assert len(listed(app)) == 985
        await pilot.press("backspace")
        await settled(app, pilot)
        assert app.shown.filters.words == ("DROP",)
