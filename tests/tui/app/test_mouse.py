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
