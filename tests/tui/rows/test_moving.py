# SPDX-License-Identifier: GPL-2.0-only
"""Movement by keys and mouse, following, pausing, and eviction of rows on the screen."""

from __future__ import annotations

import pytest
from textual.widgets import Static

from tests.data import streams
from tests.tui.harness import laid_out, live, more, screen_text, seqs, shown, until


async def test_the_list_follows_new_rows() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        assert seqs(app)[1] == 399
        assert app.rows.cursor == 399
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        assert seqs(app)[1] == 799
        assert app.rows.cursor == 799


@pytest.mark.parametrize(
    ("keys", "cursor"),
    [
        (["up"], 398),
        (["k", "k"], 397),
        (["up", "up", "down"], 398),
        (["k", "k", "j"], 398),
        (["home"], 0),
        (["g"], 0),
        (["g", "pagedown"], None),
        (["pageup"], None),
        (["home", "up"], 0),
        (["up", "down", "down", "down"], 399),
    ],
)
async def test_a_movement_key_stops_following(keys: list[str], cursor: int | None) -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        page = app.rows.size.height - 1
        await pilot.press(*keys)
        expected = {"pagedown": page, "pageup": 399 - page}.get(keys[-1], cursor)
        # THEN the cursor is there, on the screen, and following is off
        assert app.rows.cursor == expected
        assert not app.rows.follow
        first, last = seqs(app)
        assert first <= app.rows.cursor <= last
        assert "SCROLLED" in app.status_bar.text
        # AND new rows do not move the lines on the screen
        before = shown(app)
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        assert shown(app) == before
        assert seqs(app) == (first, last)


@pytest.mark.parametrize("key", ["end", "G", "t"])
async def test_one_key_resumes_following(key: str) -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        await pilot.press("home")
        assert seqs(app)[0] == 0
        await pilot.press(key)
        await pilot.pause()
        assert app.rows.follow
        assert seqs(app)[1] == 399
        await more(agent, app, pilot, streams.rows(4, start=400), 404)
        assert seqs(app)[1] == 403


async def test_t_stops_following_at_the_tail() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        await pilot.press("t")
        await more(agent, app, pilot, streams.rows(4, start=400), 404)
        assert seqs(app)[1] == 399
        await until(pilot, lambda: "SCROLLED +4" in app.status_bar.text)


@pytest.mark.parametrize("key", ["space"])
async def test_pausing_freezes_the_picture_but_rows_keep_coming(key: str) -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        # WHEN paused, and 400 rows come
        await pilot.press(key)
        before = shown(app)
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        # THEN the lines are the same and the bar counts the new rows
        await until(pilot, lambda: "PAUSED +400" in app.status_bar.text)
        assert shown(app) == before
        # AND scrolling within the picture works, to its own end
        await pilot.press("home")
        assert seqs(app)[0] == 0
        await pilot.press("end")
        assert seqs(app)[1] == 399
        # WHEN going on THEN the newest row is there
        await pilot.press(key)
        await pilot.pause()
        assert seqs(app)[1] == 799
        assert "PAUSED" not in app.status_bar.text


async def test_pausing_while_scrolled_keeps_the_position() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        await pilot.press("home", "pagedown", "space")
        place = seqs(app)
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        assert seqs(app) == place
        await pilot.press("space")
        await pilot.pause()
        assert seqs(app) == place
        assert not app.rows.follow


async def test_a_paused_picture_outlives_its_rows() -> None:
    # GIVEN a store of 160 rows and a paused picture of its newest
    async with live(streams.hello(), streams.rows(160), rows=160, capacity=160) as (a, app, pilot):
        await pilot.press("space")
        before = shown(app)
        # WHEN a thousand more come and all its rows are evicted
        await more(a, app, pilot, streams.rows(1000, start=160), 1160)
        assert app.feeds.trace.store.first > 160
        # THEN the lines stay, also at another width, and a notice explains it
        assert shown(app) == before
        await until(pilot, lambda: "no longer held" in app.notice_line.shown[0])
        await pilot.resize_terminal(100, 24)
        await until(pilot, lambda: laid_out(app, 100))
        assert all("ACCEPT" in line or "DROP" in line for line in shown(app)[:10])
        # AND going on catches up
        await pilot.press("space")
        await until(pilot, lambda: seqs(app)[1] == 1159)
        assert "no longer held" not in app.notice_line.shown[0]


async def test_eviction_does_not_shift_the_picture() -> None:
    async with live(streams.hello(), streams.rows(160), rows=160, capacity=160) as (a, app, pilot):
        await pilot.press("up", "pageup")
        place, before = seqs(app), shown(app)
        # WHEN rows further up are evicted
        await more(a, app, pilot, streams.rows(20, start=160), 180)
        assert app.feeds.trace.store.first > 0
        # THEN the same rows stay on the same lines
        assert (seqs(app), shown(app)) == (place, before)
        # WHEN those on the screen are evicted too
        await more(a, app, pilot, streams.rows(400, start=180), 580)
        # THEN the oldest rows held take their place, and a notice explains it
        first = app.feeds.trace.store.first
        assert seqs(app)[0] == first
        assert app.rows.cursor >= first
        await until(pilot, lambda: "no longer held" in "\n".join(screen_text(app)))
        assert all("ACCEPT" in line or "DROP" in line for line in shown(app))


async def test_the_wheel_stops_following_and_a_click_selects_a_row() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        first, _ = seqs(app)
        await pilot._post_mouse_events([_up(app)], "#rows", offset=(5, 5))
        await pilot.pause()
        assert not app.rows.follow
        assert seqs(app)[0] < first
        top = seqs(app)[0]
        await pilot.click("#rows", offset=(10, 3))
        assert app.rows.cursor == top + 3
        await more(agent, app, pilot, streams.rows(40, start=400), 440)
        assert seqs(app)[0] == top


def _up(app: object) -> type:
    from textual.events import MouseScrollUp

    return MouseScrollUp


@pytest.mark.parametrize("key", ["question_mark", "f1"])
async def test_help_lists_keys_and_columns_and_closes(key: str) -> None:
    async with live(streams.hello(), streams.rows(400), rows=400, size=(120, 60)) as (
        _,
        app,
        pilot,
    ):
        await pilot.press(key)
        await until(pilot, lambda: "Keys" in "\n".join(screen_text(app)))
        text = str(app.screen.query_one("#help-text", Static).content)
        for part in ("Space  ", "PgUp", "Keys", "Columns", "verdict", "✗ DROP", "missed"):
            assert part in text
        await pilot.press("q")
        assert app.screen is app.rows.screen
        assert app.is_running
        assert app.focused is app.rows


async def test_movement_keys_before_the_first_row_do_nothing() -> None:
    async with live(streams.hello()) as (agent, app, pilot):
        await pilot.press(
            "up", "down", "pageup", "pagedown", "home", "end", "t", "t", "space", "space", "g"
        )
        await more(agent, app, pilot, streams.rows(4), 4)
        await pilot.press("end")
        assert seqs(app)[1] == 3
