# SPDX-License-Identifier: GPL-2.0-only
"""Keys that come all at once, as over a slow link, do what they do one by one."""

from __future__ import annotations

from typing import Any

import pytest
from textual.events import Key, Paste
from textual.pilot import Pilot

from ipttrace.tui.app import TraceApp
from tests.tui.harness import until
from tests.tui.replayed import SIZES, listed, replayed, settled, taken

NAMES = {":": "colon", "/": "slash", "=": "equals_sign", " ": "space", "@": "at"}
CHARACTERS = {name: character for character, name in NAMES.items()}


def at_once(app: TraceApp, *keys: str) -> None:
    """A name of a key is pressed, any other text typed, `paste:` pasted."""
    named = {"enter", "tab", "escape", "backspace", "left", "home", "end", "ctrl+u", "ctrl+w", "up"}
    for key in keys:
        if key in named:
            app.post_message(Key(key, None))
        elif key.startswith("paste:"):
            app.post_message(Paste(key[6:]))
        else:
            for character in key:
                app.post_message(Key(NAMES.get(character, character), character))


async def all_done(app: TraceApp, pilot: Pilot[Any]) -> None:
    """Until the app is through with what was pressed."""
    through: list[bool] = []
    app.call_later(through.append, True)
    await until(pilot, lambda: through, "the last key")
    await pilot.pause()
    await settled(app, pilot)


@pytest.mark.parametrize("size", SIZES)
async def test_a_filter_typed_ahead_is_written_as_it_was_typed(size: tuple[int, int]) -> None:
    async with replayed(size=size) as (app, pilot):
        # WHEN it is opened, typed with slips, taken, and the next key is there already
        at_once(
            app, "home", ":", "fxq", "ctrl+u", "vardict", *["left"] * 5, "backspace", "e", "end"
        )
        at_once(app, "end", "=", "DRP", "backspace", "OP", "enter", "m")
        await all_done(app, pilot)
        # THEN that is the filter, and nothing of it was taken for another key
        assert app.shown.filters.text == "verdict=DROP"
        assert len(app.shown.filters) == 1
        assert listed(app) == taken(app, "verdict=DROP")
        assert not app.prompt.display
        assert app.view._marks == {app.rows.current.index if app.rows.current else -1}


async def test_what_is_completed_pasted_or_left_has_its_place_among_the_keys() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        at_once(app, ":", "verd", "tab", "paste:=DRO\nm", "P", "enter", ":", "vx", "escape")
        at_once(app, "/", "BLOCK", "enter", "n", ":", "ctrl+u", "up", "enter")
        await all_done(app, pilot)
        assert app.shown.filters.text == "verdict=DROP"
        assert app.shown.search_text == "BLOCK"
        assert len(app.shown.filters) == 1
        assert app.focused is app.rows


async def test_a_filter_written_over_another_view_has_its_keys_for_the_rows() -> None:
    async with replayed() as (app, pilot):
        # GIVEN the rules, WHEN a filter is typed there and a row marked
        at_once(app, "home", "2", ":", "verdict=DROP", "enter", "m")
        await all_done(app, pilot)
        assert app.switcher.current == "trace"
        assert len(app.view._marks) == 1
