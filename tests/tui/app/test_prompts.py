# SPDX-License-Identifier: GPL-2.0-only
"""Long text in a prompt: all of it is shown, with the cursor, in as many lines as it needs."""

from __future__ import annotations

import pytest
from textual.events import Key

from ipttrace.tui.app import TraceApp
from ipttrace.tui.widgets.entry import Entry
from tests.data import streams
from tests.tui.harness import live, screen_text, until
from tests.tui.replayed import replayed, write

EXPR = " or ".join(f"(host 10.1.{one}.2 and tcp port {40_000 + one})" for one in range(5))
QUERY = " or ".join(f"(src=10.1.{one}.2 and dport={40_000 + one})" for one in range(5))
NAMED = {":": "colon", "=": "equals_sign", " ": "space", "\r": "enter"}
SIZES = [(80, 24), (100, 30), (200, 50)]


def text_in(field: Entry, app: TraceApp) -> str:
    """The text of the field as the screen shows it, its lines joined."""
    place = field.content_region
    lines = screen_text(app)[place.y : place.bottom]
    return "".join(line[place.x : place.right] for line in lines)


def at_cursor(app: TraceApp) -> str:
    """The character on the screen where the terminal's cursor is."""
    x, y = app.cursor_position
    return screen_text(app)[y][x]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", ["K", "colon"])
async def test_a_long_text_is_shown_from_its_beginning_to_its_end(
    key: str, size: tuple[int, int]
) -> None:
    async with live(streams.hello(expr=EXPR), streams.rows(8), rows=8, size=size) as (
        _,
        app,
        pilot,
    ):
        if key == "colon":
            app.shown.filter_by(QUERY)
        field = app.prompt._input
        expected = EXPR if key == "K" else QUERY
        # WHEN the prompt opens, for the first time and again
        for _time in range(2):
            await pilot.press(key)
            await until(pilot, lambda: field.size.height == len(expected) // field.size.width + 1)
            # THEN all of its text is there, and the cursor behind it
            await until(pilot, lambda: text_in(field, app).rstrip() == expected)
            assert at_cursor(app) == " "
            # AND the cursor goes to its beginning and stays visible
            await pilot.press("home")
            assert app.cursor_position == field.content_region.offset
            assert at_cursor(app) == "("
            await pilot.press("escape")


async def test_a_click_sets_the_cursor_in_any_line() -> None:
    async with live(streams.hello(expr=EXPR), streams.rows(8), rows=8) as (_, app, pilot):
        field = app.prompt._input
        await pilot.press("K")
        await until(pilot, lambda: text_in(field, app).rstrip() == EXPR)
        for line in (2, 0, 1):
            await pilot.click(field, offset=(7, line))
            await until(pilot, lambda: field.cursor_position == line * field.size.width + 7)  # noqa: B023


async def test_of_a_text_with_more_lines_those_around_the_cursor_are_shown() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8) as (_, app, pilot):
        field = app.prompt._input
        await pilot.press("colon")
        text = " or ".join(f"sport={port}" for port in range(1000, 1100))
        await write(app, pilot, text)
        await until(pilot, lambda: text_in(field, app).rstrip().endswith("sport=1099"))
        assert field.size.height == 5
        await pilot.press("home")
        await until(pilot, lambda: text_in(field, app).startswith("sport=1000 or sport=1001"))
        assert field.size.height == 5
        # WHEN the text is short again THEN so is the field
        await pilot.press("end", "ctrl+u")
        await until(pilot, lambda: field.size.height == 1)


async def test_an_error_in_a_line_further_up_is_quoted() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8, size=(100, 30)) as (_, app, pilot):
        await pilot.press("colon")
        # GIVEN two mistakes: one at the beginning of three lines, then only one at their end
        await write(app, pilot, f"sporrt=7 or {QUERY}")
        await pilot.press("enter")
        assert 'did you mean sport?: "sporrt=7 or (src=10.…"' in app.prompt.hint
        await pilot.press("home", *["delete"] * len("sporrt=7 or "), "end")
        await write(app, pilot, " or sporrt=7")
        await pilot.press("enter")
        line = next(line for line in screen_text(app) if "did you mean sport?" in line)
        y = screen_text(app).index(line)
        caret = line.index("^")
        assert screen_text(app)[y - 1][caret:].startswith("sporrt")


async def test_the_caret_is_in_its_place_however_fast_the_keys_come() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8, size=(100, 30)) as (_, app, pilot):
        # GIVEN keys that a terminal sends at once, before the prompt is on the screen
        for char in ":tcp or x=1\r":
            app.post_message(Key(NAMED.get(char, char), char))
        await until(pilot, lambda: "^ there is no field x" in app.prompt.hint)
        await pilot.pause()
        y, line = next((y, line) for y, line in enumerate(screen_text(app)) if "^ there" in line)
        assert screen_text(app)[y - 1][line.index("^")] == "x"


async def test_the_path_of_an_export_is_shown_in_full() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.focused, Entry))
        field = app.focused
        assert isinstance(field, Entry)
        path = "/tmp/" + "/".join(f"directory-{number}" for number in range(12)) + "/rows.csv"
        await pilot.press("ctrl+u")
        await write(app, pilot, path)
        await until(pilot, lambda: text_in(field, app).rstrip() == path)
