# SPDX-License-Identifier: GPL-2.0-only
"""Keys that arrive all at once, as over a slow link, act as if pressed one by one."""

from __future__ import annotations

from typing import Any

import pytest
from textual.events import Key, Paste
from textual.pilot import Pilot

from ipttrace.tui.app import TraceApp
from tests.tui.harness import until
from tests.tui.replayed import SIZES, listed, matching, replayed, settled

NAMES = {":": "colon", "/": "slash", "=": "equals_sign", " ": "space", "@": "at"}
CHARACTERS = {name: character for character, name in NAMES.items()}


def at_once(app: TraceApp, *keys: str) -> None:
    """Presses names of keys, types any other text, pastes text after `paste:`."""
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
    """Waits until the app has handled all keys."""
    through: list[bool] = []
    app.call_later(through.append, True)
    await until(pilot, lambda: through, "the last key")
    await pilot.pause()
    await settled(app, pilot)


@pytest.mark.parametrize("size", SIZES)
async def test_a_filter_typed_ahead_arrives_as_typed(size: tuple[int, int]) -> None:
    async with replayed(size=size) as (app, pilot):
        # WHEN the prompt is opened, filled with corrections and entered, and the next key waits
        at_once(
            app, "home", ":", "fxq", "ctrl+u", "vardict", *["left"] * 5, "backspace", "e", "end"
        )
        at_once(app, "end", "=", "DRP", "backspace", "OP", "enter", "m")
        await all_done(app, pilot)
        # THEN that is the filter, and no character acted as another key
        assert app.shown.filters.text == "verdict=DROP"
        assert len(app.shown.filters) == 1
        assert listed(app) == matching(app, "verdict=DROP")
        assert not app.prompt.display
        assert app.view._marks == {app.rows.current.index if app.rows.current else -1}


async def test_completing_pasting_and_cancelling_keep_their_order_among_keys() -> None:
    async with replayed(size=(120, 24)) as (app, pilot):
        at_once(app, ":", "verd", "tab", "paste:=DRO\nm", "P", "enter", ":", "vx", "escape")
        at_once(app, "/", "BLOCK", "enter", "n", ":", "ctrl+u", "up", "enter")
        await all_done(app, pilot)
        assert app.shown.filters.text == "verdict=DROP"
        assert app.shown.search_text == "BLOCK"
        assert len(app.shown.filters) == 1
        assert app.focused is app.rows


async def test_keys_after_a_filter_typed_in_another_view_act_on_the_rows() -> None:
    async with replayed() as (app, pilot):
        # GIVEN the rules, WHEN a filter is typed there and a row marked
        at_once(app, "home", "2", ":", "verdict=DROP", "enter", "m")
        await all_done(app, pilot)
        assert app.switcher.current == "trace"
        assert len(app.view._marks) == 1
