# SPDX-License-Identifier: GPL-2.0-only
"""The mouse: the keys in the footer, the rows, the titles."""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets._footer import FooterKey

from ipttrace.tui.app import TraceApp
from ipttrace.tui.app.help import Help
from tests.tui.harness import screen_text, until
from tests.tui.replayed import SIZES, replayed, seq_of


async def click_key(app: TraceApp, pilot: Pilot[Any], description: str) -> None:
    """Clicks on a key in the footer, where the user sees it."""

    def keys() -> list[FooterKey]:
        return [key for key in app.screen.query(FooterKey) if key.description == description]

    await until(pilot, lambda: keys() and keys()[0].region.width, description)
    region = keys()[0].region
    assert description in screen_text(app)[region.y]
    assert await pilot.click(offset=(region.x + 1, region.y))


@pytest.mark.parametrize("size", [*SIZES, (100, 30)])
async def test_a_click_on_a_key_in_the_footer_does_what_the_key_does(size: tuple[int, int]) -> None:
    async with replayed(size=size) as (app, pilot):
        await click_key(app, pilot, "Detail")
        await until(pilot, lambda: app.view.detailed, "the detail")
        await click_key(app, pilot, "Detail")
        await until(pilot, lambda: not app.view.detailed, "no detail")
        app.rows.move_to(3)
        await click_key(app, pilot, "Flow")
        await until(pilot, lambda: app.shown.filters.text, "a filter")
        await click_key(app, pilot, "Back")
        await until(pilot, lambda: not app.shown.filters.text, "no filter")
        await click_key(app, pilot, "Filter")
        await until(pilot, lambda: app.prompt.display, "the prompt")
        await pilot.press("escape")
        await click_key(app, pilot, "Help")
        await until(pilot, lambda: isinstance(app.screen, Help), "help")


@pytest.mark.parametrize("width", [40, 80, 81, 90, 100, 101, 102, 103, 120, 200])
@pytest.mark.parametrize("view", ["1", "2"])
async def test_no_key_in_the_footer_is_cut(view: str, width: int) -> None:
    async with replayed(size=(width, 24)) as (app, pilot):
        await pilot.press(view)
        entries = [f"{key.key_display} {key.description}" for key in app.screen.query(FooterKey)]

        def whole() -> bool:
            left = screen_text(app)[-1].strip()
            for entry in entries:
                if not left:
                    return True
                if not left.startswith(entry):
                    return False
                left = left.removeprefix(entry).strip()
            return not left

        await until(pilot, whole, "keys shown in full")
        # AND none after the terminal has become narrow and wide again
        await pilot.resize_terminal(30, 24)
        await pilot.resize_terminal(width, 24)
        await until(pilot, whole, "keys shown in full")
        # AND a wider terminal shows more of them
        few = screen_text(app)[-1].split()
        await pilot.resize_terminal(220, 24)
        await until(pilot, lambda: entries[-1] in screen_text(app)[-1], "all keys")
        assert screen_text(app)[-1].split()[: len(few)] == few


async def test_80_columns_show_the_keys_of_a_first_session() -> None:
    async with replayed(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: "f Flow " in screen_text(app)[-1], "the keys")
        for key in ("? Help ", "q Quit ", ": Filter ", "2 Rules "):
            assert key in screen_text(app)[-1]


async def test_a_click_selects_a_row_and_a_double_click_opens_its_detail() -> None:
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP"))
        first = app.rows._base + app.rows._top
        await pilot.click("#rows", offset=(10, 5))
        assert app.rows.cursor == first + 5
        assert not app.view.detailed
        await pilot.click("#rows", offset=(10, 7), times=2)
        assert app.rows.cursor == first + 7
        assert app.view.detailed
        # THEN a further double click moves to another row and leaves the detail open
        await until(pilot, lambda: app.view.detail.seq == app.rows.cursor, "the detail's row")
        await pilot.click("#rows", offset=(10, 2), times=2)
        assert app.view.detailed
