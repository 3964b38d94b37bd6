# SPDX-License-Identifier: GPL-2.0-only
"""Switching views, the keys of each view, help and palette."""

from __future__ import annotations

import io
import re
from functools import partial
from typing import Any

import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.trace.tally.listing import POLICY, RuleKey
from ipttrace.tui.app import TraceApp, help_words
from ipttrace.tui.app.keys import key_sections
from ipttrace.tui.key_words import key_names
from tests.data import messages, neighbours, streams
from tests.data.neighbours import FAILED, REACHABLE
from tests.paths import DATA, PROJECT
from tests.tui.harness import live, more, screen_text, shown, until
from tests.tui.replayed import LAB, SIZES, all_rows, listed, replayed, seq_of, settled, write

SCREENS = DATA / "screens.iptr"  # has rules and neighbours
VIEWS = {"1": "trace", "2": "rules-view", "3": "flows-view", "4": "totals-view", "5": "neighbours"}
VIEWS["6"] = "drops-view"
# A text that each view must show.
LINES = {
    "1": "source → destination",
    "2": "PREROUTING",
    "3": "last verdict",
    "4": "✓ ACCEPT",
    "5": "arp_cache",
    "6": "place or rule",
}


def text(app: TraceApp) -> str:
    return "\n".join(screen_text(app))


@pytest.mark.parametrize("size", SIZES)
async def test_each_view_has_a_key_and_gets_the_focus(size: tuple[int, int]) -> None:
    async with replayed(SCREENS, size) as (app, pilot):

        def shows(line: str) -> bool:
            return line in text(app)

        for key in "23456123451":
            await pilot.press(key)
            assert app.switcher.current == VIEWS[key]
            await until(pilot, partial(shows, LINES[key]), f"{VIEWS[key]}: {LINES[key]}")
            focused = app.focused
            assert focused is not None
            assert focused is (app.rows if key == "1" else app.switcher.visible_content)
            # AND the bars are where they were
            lines = screen_text(app)
            assert "missed 0" in lines[-2]
            assert "Quit" in lines[-1] or size[0] < 100


@pytest.mark.parametrize("key", "2345")
async def test_a_view_adapts_to_another_size(key: str) -> None:
    async with replayed(SCREENS) as (app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: LINES[key] in text(app))
        for size in ((200, 50), (60, 20), (80, 24)):
            await pilot.resize_terminal(*size)
            view = app.switcher.visible_content
            assert view is not None
            await until(pilot, lambda: len(screen_text(app)[0]) == size[0])  # noqa: B023
            assert all(len(line) >= size[0] - 5 for line in screen_text(app))
            await until(pilot, lambda: LINES[key][:9] in text(app))


@pytest.mark.parametrize("key", "12345")
@pytest.mark.parametrize("look", ["textual-light", "NO_COLOR"])
async def test_views_are_readable_in_a_light_theme_and_without_colours(
    key: str, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if look == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    async with replayed(SCREENS) as (app, pilot):
        if look != "NO_COLOR":
            app.theme = look
        await pilot.press(key)
        await until(pilot, lambda: LINES[key] in text(app))
        strips = app.screen._compositor.render_strips()
        styles = [one.style for strip in strips for one in strip if one.style is not None]
        if look == "NO_COLOR":
            # No information may depend on colours alone.
            for style in styles:
                for colour in (style.color, style.bgcolor):
                    triplet = None if colour is None else colour.triplet
                    assert triplet is None or len(set(triplet)) == 1, colour
        else:
            ground = app.screen.styles.background
            assert sum(ground.rgb) > 500


async def test_enter_on_a_rule_shows_the_rows_that_hit_it() -> None:
    async with replayed(SCREENS, (120, 40)) as (app, pilot):
        await pilot.press("2")
        rules = app.rules
        await until(pilot, lambda: rules._keys, "rules")

        # WHEN the cursor goes down to a rule that was hit
        def on_a_hit() -> bool:
            key, listing = rules.picked, rules._listing
            assert listing is not None
            if not isinstance(key, RuleKey) or key.kind == POLICY:
                return False
            return listing.figures_of(key).hits > 0

        while not on_a_hit():
            await pilot.press("down")
        key, listing = rules.picked, rules._listing
        assert isinstance(key, RuleKey)
        assert listing is not None
        hits = listing.figures_of(key).hits
        await pilot.press("enter")
        await settled(app, pilot)
        # THEN its rows are shown, and the keys go to them
        assert app.switcher.current == "trace"
        assert app.focused is app.rows
        assert len(listed(app)) == hits
        for seq in listed(app):
            row = app.store.row(seq)
            assert row.table == key.table
            assert (key.chain, key.number) in [(step.chain, step.rulenum) for step in row.path]
        # AND going back shows all rows
        await pilot.press("backspace")
        await settled(app, pilot)
        assert len(listed(app)) == len(app.store)


async def test_the_keys_of_the_rules_view_work() -> None:
    async with replayed(SCREENS, (120, 40)) as (app, pilot):
        await pilot.press("2")
        rules = app.rules
        await until(pilot, lambda: rules._keys)
        before = len(rules._keys)
        await pilot.press("0")
        assert len(rules._keys) < before
        assert "show unhit rules" in screen_text(app)[2]
        await pilot.press("0")
        assert len(rules._keys) == before
        for order in ("hits", "dropped", "p99", "number"):
            await pilot.press("s")
            assert rules.sort == order
        where = rules._namespace
        await pilot.press("right_square_bracket")
        assert rules._namespace != where
        await pilot.press("left_square_bracket")
        assert rules._namespace == where


async def test_enter_on_a_flow_shows_its_rows_and_s_sorts() -> None:
    async with replayed(LAB, (120, 40)) as (app, pilot):
        await pilot.press("3", "s")
        assert app.flows.sort == "drops"
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.switcher.current == "trace"
        rows = [app.store.row(seq) for seq in listed(app)]
        assert len({row.flow for row in rows}) == 1
        assert any(row.verdict == "DROP" for row in rows)


async def test_z_changes_the_span_of_the_plots() -> None:
    async with replayed(LAB) as (app, pilot):
        await pilot.press("4")
        before = app.totals.span
        await pilot.press("z")
        assert app.totals.span != before
        await until(pilot, lambda: "z last" in text(app))


async def test_the_neighbour_pane_handles_its_keys() -> None:
    async with replayed(SCREENS) as (app, pilot):
        await pilot.press("5")
        pane = app.neighbours
        await until(pilot, lambda: "arp_cache" in text(app))
        here = pane.netns
        await pilot.press("right_square_bracket")
        assert pane.netns != here
        await pilot.press("left_square_bracket")
        assert pane.netns == here
        # THEN t shows every field instead of following the list's tail
        await pilot.press("t")
        assert pane.detail
        assert app.rows.follow
        for key in ("j", "k", "G", "g"):
            await pilot.press(key)


async def test_o_shows_and_hides_the_neighbours_beside_the_rows() -> None:
    async with replayed(SCREENS, (140, 40)) as (app, pilot):
        assert not app.side.display
        await pilot.press("o")
        await until(pilot, lambda: "IPv4 arp " in text(app))
        assert "source → destination" in text(app)
        assert app.focused is app.rows
        await pilot.press("o")
        await until(pilot, lambda: "IPv4 arp " not in text(app))
        # WHEN the screen is wide THEN they stay as the user left them
        await pilot.resize_terminal(200, 50)
        await pilot.pause()
        assert not app.side.display


@pytest.mark.parametrize(
    ("state", "size", "opens"),
    [(FAILED, (165, 50), True), (FAILED, (140, 50), False), (REACHABLE, (165, 50), False)],
)
async def test_the_neighbours_open_by_themselves_only_if_one_fails(
    state: int, size: tuple[int, int], opens: bool
) -> None:
    frame = neighbours.namespace(neighbours=[neighbours.neighbour("10.9.9.9", state)])
    sink = io.BytesIO()
    Writer(sink).message(Kind.NEIGHBOURS, messages.message(frame))
    sent = streams.hello(), streams.rows(8), sink.getvalue()
    async with live(*sent, rows=8, size=size) as (_, app, pilot):
        trace = app.feeds[0].trace
        await until(pilot, lambda: trace.neighbours.version, "neighbours")
        app._draw()
        app.refresh_bars()
        await pilot.pause()
        assert app.side.display == opens


async def test_the_neighbours_beside_the_rows_are_of_the_cursors_namespace() -> None:
    async with replayed(SCREENS, (200, 50)) as (app, pilot):
        if not app.side.display:
            await pilot.press("o")
        for netns in {row.netns for row in all_rows(app)}:
            app.rows.move_to(seq_of(app, lambda row: row.netns == netns))  # noqa: B023
            await until(pilot, lambda: app.side.netns == netns)  # noqa: B023


# The detail.


@pytest.mark.parametrize("key", ["enter", "d"])
@pytest.mark.parametrize("size", SIZES)
async def test_the_detail_opens_follows_the_cursor_and_closes(
    key: str, size: tuple[int, int]
) -> None:
    async with replayed(SCREENS, size) as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.chain == "BLOCKLIST"))
        await pilot.press(key)
        await until(pilot, lambda: "--dport 4444 -j DROP" in app.view.detail.text)
        assert "--dport 4444 -j DROP" in text(app)
        # THEN the row is still on the screen, and the detail follows the cursor
        assert any("BLOCKLIST" in line for line in shown(app))
        here = app.view.detail.seq
        await pilot.press("up")
        await until(pilot, lambda: app.view.detail.seq == (here or 0) - 1)
        assert app.focused is app.rows
        # AND z folds the bytes from here too
        assert "  0000  4" in app.view.detail.text
        await pilot.press("z")
        assert "  0000  4" not in app.view.detail.text
        await pilot.press("z")
        # WHEN it has the focus and is closed THEN the list gets the focus
        app.view.detail.focus()
        await pilot.press(key)
        await until(pilot, lambda: app.focused is app.rows)
        assert not app.view.detail.display


async def test_z_without_a_detail_explains_where_it_works() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("z")
        await until(pilot, lambda: "⏎ opens the detail" in app.notice_line.shown[0])


async def test_the_detail_grows_with_the_journey_of_the_last_row() -> None:
    async with live(streams.hello(), streams.rows(6), rows=6, size=(100, 40)) as (a, app, pilot):
        await pilot.press("enter", "t")
        await until(pilot, lambda: "2 tables" in app.view.detail.text)
        await more(a, app, pilot, streams.rows(2, start=6), 8)
        await pilot.press("up", "down")
        await until(pilot, lambda: "4 tables" in app.view.detail.text)


async def test_arrow_keys_reach_all_columns() -> None:
    async with replayed() as (app, pilot):
        assert "cost" not in app.view.titles.render_line(0).text
        seen: set[str] = set()
        for _ in range(13):
            await pilot.press("right")
            await pilot.pause()
            seen.update(app.view.titles.render_line(0).text.split())
        assert {"time", "netns", "process", "table", "chain", "verdict", "cost", "rule"} <= seen
        for _ in range(16):
            await pilot.press("left")
        assert app.rows.left is None


async def test_ctrl_f_and_ctrl_b_move_by_pages() -> None:
    async with replayed(LAB) as (app, pilot):
        page = app.rows.size.height - 1
        await pilot.press("home", "ctrl+f", "ctrl+f", "ctrl+b")
        assert app.rows.cursor == page
        await pilot.press("3", "home", "ctrl+f", "ctrl+b")
        assert app.flows._line == 0


# Help and palette.


async def test_help_has_every_key_of_every_view() -> None:
    async with replayed(size=(120, 50)) as (app, pilot):
        await pilot.press("question_mark")
        await pilot.pause()
        said = str(app.screen.query_one("#help-text", Static).content)
        for title, bindings in key_sections():
            assert title in said
            for binding in bindings:
                assert f"  {key_names(binding.key)} " in said, binding.key
                assert binding.tooltip or binding.description
        for key in ("escape", "question_mark", "f1", "q"):
            if app.screen is app.rows.screen:
                await pilot.press("question_mark")
            await pilot.press(key)
            assert app.screen is app.rows.screen
        assert app.is_running


@pytest.mark.parametrize("key", "12345")
async def test_help_begins_with_the_view_that_is_shown(key: str) -> None:
    async with replayed(SCREENS, (120, 50)) as (app, pilot):
        await pilot.press(key, "question_mark")
        await pilot.pause()
        content = str(app.screen.query_one("#help-text", Static).content)
        keys, columns, _ = help_words.VIEWS[VIEWS[key]]
        assert content.startswith(keys)
        assert content.split("\n\n")[1].startswith(columns)
        # AND the columns of every view are explained, and the query language
        for _, title, some in help_words.VIEWS.values():
            assert title in content
            assert all(f"  {name}" in content for name, _ in some)
        assert "Ctrl-P" in content
        assert "verdict=DROP" in content


async def test_help_can_be_searched() -> None:
    async with replayed(SCREENS, (80, 24)) as (app, pilot):
        await pilot.press("question_mark", "slash")
        await write(app, pilot, "gc_thresh")
        text = app.screen.query_one("#help-text", Static)
        await until(pilot, lambda: str(text.content).startswith("The kernel's tables"))
        assert len(str(text.content).strip().splitlines()) == 3
        await write(app, pilot, " nothing")
        await until(pilot, lambda: "No line of the help" in str(text.content))
        await pilot.press("enter", "escape")
        assert app.screen is app.rows.screen


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("save", "save rows to a file (export)"),
        ("export", "save rows to a file (export)"),
        ("NAT", "this row's flow: both directions"),
        ("drop%", "its share of all drops in the namespace"),
    ],
)
async def test_the_words_that_a_newcomer_searches_for_are_in_the_help(
    word: str, found: str
) -> None:
    async with replayed(SCREENS, (120, 40)) as (app, pilot):
        await pilot.press("question_mark", "slash")
        await write(app, pilot, word)
        text = app.screen.query_one("#help-text", Static)
        await until(pilot, lambda: found in " ".join(str(text.content).split()), found)


async def palette(app: TraceApp, pilot: Pilot[Any], words: str) -> None:
    await pilot.press("ctrl+p")
    await until(pilot, lambda: isinstance(app.screen, CommandPalette))
    await write(app, pilot, words)

    def found() -> bool:
        options = app.screen.query_one(OptionList)
        return (
            options.option_count > 0
            and words.lower() in str(options.get_option_at_index(0).prompt).lower()
        )

    await until(pilot, found, words)
    await pilot.press("enter")
    if isinstance(app.screen, CommandPalette):
        await pilot.press("enter")
    await until(pilot, lambda: not isinstance(app.screen, CommandPalette))


async def test_the_palette_runs_the_commands_of_the_keys() -> None:
    async with replayed(SCREENS, (120, 40)) as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP"))
        await palette(app, pilot, "only this verdict")
        await settled(app, pilot)
        assert app.shown.filters.text == "verdict=DROP"
        await palette(app, pilot, "remove the view's last filter")
        await settled(app, pilot)
        assert app.shown.filters.text == ""
        await palette(app, pilot, "the oldest row held")
        await until(pilot, lambda: app.rows.cursor == 0)
        await palette(app, pilot, "the rules, their hits")
        await until(pilot, lambda: app.switcher.current == "rules-view")
        # THEN the current view's commands are there too, and work on it
        rules = app.rules
        await until(pilot, lambda: rules._keys)
        await palette(app, pilot, "by number, hits, drops or cost")
        await until(pilot, lambda: rules.sort == "hits")
        where = rules._namespace
        await palette(app, pilot, "the next namespace")
        await until(pilot, lambda: rules._namespace != where)


# Every key has a test.


async def test_ctrl_z_suspends_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replayed() as (app, pilot):
        suspended = []
        monkeypatch.setattr(app, "action_suspend_process", lambda: suspended.append(True))
        await pilot.press("ctrl+z")
        assert suspended == [True]


def test_every_key_of_every_view_is_pressed_in_a_test() -> None:
    tests = "\n".join(p.read_text() for p in (PROJECT / "tests" / "tui").rglob("test_*.py"))
    pressed = set(re.findall(r'"([^"\s]+)"', tests))
    # Strings whose characters are keys.
    pressed |= {char for word in re.findall(r' in "(\w+)":', tests) for char in word}
    untested = [
        f"{name}: {binding}"
        for name, bindings in key_sections()
        for one in bindings
        for binding in one.key.split(",")
        if binding not in pressed
    ]
    assert not untested
