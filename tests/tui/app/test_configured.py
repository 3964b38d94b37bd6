# SPDX-License-Identifier: GPL-2.0-only
"""The screen with the user's columns, keys, colours and theme, and the dialog of columns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.color import Color
from textual.pilot import Pilot
from textual.widgets import Static
from textual.widgets._footer import FooterKey

from ipttrace.tui.app import TraceApp, configuration
from ipttrace.tui.app.help import Help
from ipttrace.tui.app.keys import actions
from ipttrace.tui.config.settings import Settings
from ipttrace.tui.feed.source import FileSource
from ipttrace.tui.key_words import DEFAULTS, key_names, textual_key
from ipttrace.tui.rows.columns import COLUMNS
from ipttrace.tui.rows.columns_dialog import ColumnsDialog
from tests.tui.harness import laid_out, screen_text, until
from tests.tui.replayed import LAB, SIZES

Screen = tuple[TraceApp, Pilot[Any]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's config file, which does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "ipttrace" / "config.toml"


@asynccontextmanager
async def configured(
    settings: Settings | None = None, size: tuple[int, int] = (120, 30)
) -> AsyncIterator[Screen]:
    """A screen with the settings, else with those of the config file."""
    settings = configuration.load() if settings is None else settings
    app = TraceApp(FileSource(LAB), title="a recording", settings=settings)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.over, "the end of the recording")
        await until(pilot, lambda: laid_out(app, size[0]), "a size")
        try:
            yield app, pilot
        finally:
            app.exit_now()


def keys(app: TraceApp) -> list[str]:
    """The columns on the screen, from left to right."""
    return [one.column.key for one in app.rows.columns]


async def dialog(app: TraceApp, pilot: Pilot[Any], *pressed: str) -> ColumnsDialog:
    """Opens the dialog, then presses keys."""
    await pilot.press("f2")
    await until(pilot, lambda: isinstance(app.screen, ColumnsDialog), "the dialog")
    asked = app.screen
    assert isinstance(asked, ColumnsDialog)
    await until(pilot, lambda: asked.list.has_focus and asked.list._keys, "its list")
    await pilot.press(*pressed)
    return asked


async def test_the_columns_of_the_file_are_shown_in_its_order_and_width(config: Path) -> None:
    config.parent.mkdir()
    config.write_text(
        '[columns]\nshown = ["verdict", "chain", "rulenum", "time"]\nwidths = { chain = 30 }\n'
    )
    async with configured() as (app, _):
        assert keys(app) == ["verdict", "chain", "rulenum", "time"]
        assert app.rows.columns[1].width == 30
        titles = next(line for line in screen_text(app) if line.startswith("verdict"))
        assert titles.split() == ["verdict", "chain", "#", "time"]


async def test_a_chosen_key_works_and_is_shown_in_the_footer_and_in_the_help() -> None:
    settings = Settings(keys={"help": ("F7",), "pause": ("!",), "detail": ("i",)})
    async with configured(settings) as (app, pilot):
        await pilot.press("space")
        assert not app.rows.paused
        await pilot.press("exclamation_mark")
        assert app.rows.paused
        await pilot.press("i")
        assert app.view.detailed
        shown = {key.description: key.key_display for key in app.screen.query(FooterKey)}
        assert shown["Pause"] == "!"
        assert shown["Help"].upper() == "F7"
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, Help), "the help")
        said = str(app.screen.query_one("#help-text", Static).render())
        assert "  F7 " in said
        assert "  ! " in said
        assert "  ? F1 " not in said


async def test_texts_name_the_keys_that_the_user_has_chosen() -> None:
    # GIVEN other keys for all that texts name
    mine = dict(zip(DEFAULTS, "αβγδεζηθικλνξοπρστυφχψ", strict=False))
    assert mine.keys() == DEFAULTS.keys()
    settings = Settings(keys={name: (key,) for name, key in mine.items()})
    async with configured(settings, (120, 90)) as (app, pilot):

        async def said(action: str) -> str:
            await app.run_action(action)
            await pilot.pause()
            return app.notice_line.shown[0]

        def noticed(text: str) -> bool:
            return text in app.notice_line.shown[0]

        def line(text: str) -> str:
            return next((one for one in screen_text(app) if text in one), "")

        assert f"{mine['flow']}: this flow  {mine['filter']}: type" in line("this flow")
        assert f"{mine['search']}: search" in line("this flow")
        app.rows.focus()
        for act, text in (
            (
                app.view.action_fold,
                f"{mine['detail']} opens the detail, where {mine['fold']} folds",
            ),
            (partial(app.view.action_again, 1), f"{mine['search']} starts a search"),
            (app.view.action_marked, f"{mine['mark']} marks one"),
        ):
            act()
            await until(pilot, partial(noticed, text), text)
        await pilot.press(textual_key(mine["flow"]) or "")
        await until(pilot, lambda: line(f"{mine['back']} back"), "the filter bar")
        assert f"{mine['all_rows']} all rows" in line(f"{mine['back']} back")
        await pilot.press(textual_key(mine["flow"]) or "")
        text = f"{mine['back']} goes back"
        await until(pilot, partial(noticed, text), text)
        await pilot.press("escape", textual_key(mine["detail"]) or "")
        await until(pilot, lambda: line(f"{mine['fold']} folds them"), "the detail")
        for view, text in (
            ("rules-view", f"{mine['sort']} by "),
            ("rules-view", f"{mine['hide_unhit']}: hide unhit rules"),
            ("flows-view", f"{mine['sort']} by "),
            ("totals-view", f"{mine['zoom']} last "),
            ("totals-view", f"{mine['sort']} by "),
            ("totals-view", f"filtered, {mine['all_rows']}: all rows"),
        ):
            app.show_view(view)
            await until(pilot, partial(line, text), text)
        app.show_view("neighbours")
        assert f"{mine['rows']} goes back to the rows" in await said("side")
        await app.run_action("help")
        await until(pilot, lambda: isinstance(app.screen, Help), "the help")
        said_there = str(app.screen.query_one("#help-text", Static).render())
        for text in (
            f"{mine['kernel']} sets it",
            f"{mine['all_rows']} shows all rows",
            f"{mine['back']} brings it back",
        ):
            assert text in said_there
        assert "{" not in said_there
        for name in ("⌫", "  K  "):
            assert name not in said_there


def test_the_default_names_of_keys_are_those_of_the_bindings() -> None:
    for action, name in DEFAULTS.items():
        assert key_names(actions()[action].key).split()[0] == name


async def test_chosen_colours_and_theme_are_those_of_the_screen() -> None:
    settings = Settings(theme="nord", colours={"drop": "#010203", "cursor": "ansi_blue"})
    async with configured(settings) as (app, _):
        assert app.theme == "nord"
        for widget, name in ((app.rows, "rows--drop"), (app.flows, "ledger--drop")):
            assert widget.get_component_styles(name).color == Color(1, 2, 3)
        assert app.rows.get_component_styles("rows--cursor").background == Color.parse("ansi_blue")
        assert app.rows.get_component_styles("rows--accept").color != Color(1, 2, 3)


@pytest.mark.parametrize("size", [*SIZES, (100, 30)])
async def test_the_dialog_shows_every_column_at_every_size(size: tuple[int, int]) -> None:
    async with configured(Settings(), size) as (app, pilot):
        await dialog(app, pilot)
        await pilot.pause()
        text = "\n".join(screen_text(app))
        for column in COLUMNS:
            assert f"[x] {column.key} " in text
        assert "write to the config file" in text
        await pilot.press("escape")
        assert not isinstance(app.screen, ColumnsDialog)


async def test_the_dialog_opens_with_a_letter_where_a_terminal_takes_f2() -> None:
    async with configured(Settings()) as (app, pilot):
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, ColumnsDialog), "the dialog")


async def test_columns_are_hidden_moved_and_sized_in_the_dialog(config: Path) -> None:
    async with configured(size=(160, 30)) as (app, pilot):
        before = keys(app)
        width = {one.column.key: one.width for one in app.rows.columns}
        # WHEN the time is hidden, the rail moved behind it, the verdict made wider
        asked = await dialog(app, pilot, "down", "space", "up", "right_square_bracket")
        await pilot.press(*["down"] * 10, "plus", "plus")
        assert asked.list.picked == "verdict"
        await pilot.press("enter")
        # THEN the list has changed, and no file was written
        await until(pilot, lambda: keys(app) != before, "the columns")
        assert "time" not in keys(app)
        assert {one.column.key: one.width for one in app.rows.columns}["verdict"] == (
            width["verdict"] + 2
        )
        assert not config.exists()
        # AND the dialog opens with them; r and w write the default
        asked = await dialog(app, pilot)
        await pilot.pause()
        assert "[ ] time" in "\n".join(screen_text(app))
        await pilot.press("r", "w")
        await until(pilot, lambda: keys(app) == before, "the columns of the beginning")
        assert config.read_text() == "[columns]\n"


async def test_w_writes_the_columns_that_the_next_screen_has(config: Path) -> None:
    async with configured() as (app, pilot):
        await dialog(app, pilot, "space", "w")
        await until(pilot, lambda: config.exists(), "the file")
        await until(pilot, lambda: "columns were written to" in app.notice_line.shown[0])
        now = keys(app)
        assert "rail" not in now
    async with configured() as (app, _):
        assert keys(app) == now


async def test_a_file_that_cannot_be_changed_is_told_and_kept(config: Path) -> None:
    config.parent.mkdir()
    async with configured() as (app, pilot):
        config.write_text("columns = { }\n")
        await dialog(app, pilot, "space", "w")
        await until(pilot, lambda: "not written" in app.notice_line.shown[0], "the notice")
        assert app.notice_line.shown[1]
        assert config.read_text() == "columns = { }\n"


async def test_a_click_on_a_title_of_the_rows_opens_the_dialog_at_its_column() -> None:
    async with configured() as (app, pilot):
        await until(pilot, lambda: app.view.titles._columns == app.rows.columns)
        line = next(y for y, text in enumerate(screen_text(app)) if "verdict" in text)
        x = screen_text(app)[line].index("verdict") + 2
        await pilot.click(offset=(x, line))
        await until(pilot, lambda: isinstance(app.screen, ColumnsDialog), "the dialog")
        asked = app.screen
        assert isinstance(asked, ColumnsDialog)
        await until(pilot, lambda: asked.list.picked == "verdict", "the column")
        # WHEN a line is clicked twice, its column is hidden
        await pilot.click(asked.list, offset=(5, 1), times=2)
        assert ("time", None) not in asked.list.columns
