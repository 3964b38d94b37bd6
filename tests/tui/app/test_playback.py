# SPDX-License-Identifier: GPL-2.0-only
"""Going to a time, playing a recording, scrubbing, and the speeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.tui.app import TraceApp, playback
from ipttrace.tui.feed.source import FileSource
from ipttrace.tui.rows.playback import Clock
from tests.data import streams
from tests.tui.harness import live, seqs, shown, until
from tests.tui.replayed import replayed, settled, write

SECOND = 1_000_000_000
BAD = ["soon", "25:00", "12", "2026-13-45", "+" + "9" * 400 + "parsecs"]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes UTC the local time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0

    def clock(self) -> Clock:
        return Clock(lambda: self.now)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr(playback, "Clock", hand.clock)
    return hand


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """40 s: a packet each millisecond at first, four rows each, later one each 10 s."""
    path = tmp_path / "trace.iptr"
    path.write_bytes(streams.complete(16_000))
    return path


# streams.WALL is 2023-11-14 22:13:20 UTC.
@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("22:13:22", 2000),
        ("22:13:21.5", 1500),
        ("2023-11-14T22:13:23+00:00", 3000),
        ("2023-11-14 22:13:23", 3000),
        ("-1s", 1000),
        ("+250ms", 2250),
    ],
)
async def test_going_to_a_time_shows_the_first_row_of_that_moment(
    recording: Path, text: str, milliseconds: int
) -> None:
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(8000)  # 2 s
        await pilot.press("at")
        await write(app, pilot, text)
        await pilot.press("enter")
        await pilot.pause()
        # THEN the first row of that moment is under the cursor and on the screen
        row = app.rows.current
        assert row is not None
        assert row.index == 4 * milliseconds
        assert row.time - streams.WALL == milliseconds * 1_000_000
        assert seqs(app)[0] <= row.index <= seqs(app)[1]
        assert app.focused is app.rows


@pytest.mark.parametrize("text", BAD)
async def test_an_invalid_time_keeps_the_prompt_open_with_an_error(
    recording: Path, text: str
) -> None:
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(8000)
        await pilot.press("at")
        await write(app, pilot, text)
        await pilot.press("enter")
        assert app.prompt.asking
        assert "not a time: write 12:30:05" in app.prompt.hint
        await pilot.press("escape")
        assert app.rows.cursor == 8000


@pytest.mark.parametrize("playing", [False, True])
async def test_times_outside_the_recording_go_to_its_ends(
    recording: Path, playing: bool, hand: Hand
) -> None:
    async with replayed(recording) as (app, pilot):
        if playing:
            await pilot.press("P")
        for text, end in (
            ("-" + "9" * 400, 0),
            ("+" + "9" * 400 + "h", 15_999),
            ("-99999999999h", 0),
            ("9999-12-31", 15_999),
            ("0001-01-01", 0),
            ("1970-01-01", 0),
            ("23:59", 15_999),
        ):
            await pilot.press("at", "ctrl+u")
            await write(app, pilot, text)
            await pilot.press("enter")
            await pilot.pause()
            if app.prompt.asking:  # no year of that number: said, and left
                await pilot.press("escape")
                continue
            assert app.rows.cursor in ((end, 3) if playing else (end,)), text


async def test_going_to_a_time_keeps_the_filter(recording: Path) -> None:
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(27)
        await pilot.press("v")
        await settled(app, pilot)
        await pilot.press("at")
        await write(app, pilot, "+1s")
        await pilot.press("enter")
        await pilot.pause()
        assert app.rows.current is not None
        assert app.rows.current.verdict == "DROP"
        assert 0 <= app.rows.current.time - streams.WALL - SECOND < 0.1 * SECOND


@pytest.mark.parametrize("key", ["full_stop", "comma"])
async def test_scrubbing_moves_five_seconds(recording: Path, key: str) -> None:
    recording.write_bytes(streams.complete(80_000))  # 20 s
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(40_000)
        await pilot.press(key)
        assert app.rows.cursor == (60_000 if key == "full_stop" else 20_000)
        # AND not beyond the ends
        for _ in range(4):
            await pilot.press(key)
        assert app.rows.cursor == (79_999 if key == "full_stop" else 0)


async def test_a_recording_is_played_at_its_own_speed(recording: Path, hand: Hand) -> None:
    async with replayed(recording) as (app, pilot):
        # WHEN it is played from the tail THEN it starts at the beginning
        await pilot.press("P")
        await until(pilot, lambda: seqs(app)[1] < 4)
        assert "▶ 22:13:20 1×" in app.status_bar.text
        # WHEN half a second passes THEN as much is shown, the newest row last
        hand.now += SECOND // 2
        await until(pilot, lambda: 2000 <= app.rows._end <= 2004)
        assert "ACCEPT" in shown(app)[-1]
        # WHEN it is ten times as fast
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: "10×" in app.status_bar.text)
        hand.now += SECOND // 10
        await until(pilot, lambda: 6000 <= app.rows._end <= 6004)
        # WHEN it is stopped
        await pilot.press("P")
        await until(pilot, lambda: "⏸ 22:13:21 10×" in app.status_bar.text)
        hand.now += SECOND
        await pilot.pause(0.2)
        assert 6000 <= app.rows._end <= 6004
        # AND slowed down, and started again
        await pilot.press("less_than_sign", "less_than_sign", "P")
        await until(pilot, lambda: "▶ 22:13:21 0.1×" in app.status_bar.text)
        hand.now += SECOND
        await until(pilot, lambda: 6400 <= app.rows._end <= 6404)
        # WHEN the speed goes beyond the fastest THEN all rows are there
        for _ in range(4):
            await pilot.press("greater_than_sign")
        await until(pilot, lambda: app.rows._end == 16_000)
        assert "×" not in app.status_bar.text


async def test_playback_stops_at_the_end_and_can_start_again(recording: Path, hand: Hand) -> None:
    async with replayed(recording) as (app, pilot):
        await pilot.press("P")
        hand.now += 5 * SECOND
        await until(pilot, lambda: app.rows._end == 16_000)
        await until(pilot, lambda: "⏸" in app.status_bar.text)
        await pilot.press("P")
        await until(pilot, lambda: app.rows._end <= 4)


async def test_playback_starts_at_the_row_under_the_cursor(recording: Path, hand: Hand) -> None:
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(8000)
        await pilot.press("P")
        await until(pilot, lambda: 8001 <= app.rows._end <= 8004)
        # AND scrubbing moves the clock within the recording and keeps following
        await pilot.press("comma")
        await until(pilot, lambda: app.rows._end <= 4)
        assert app.rows.follow
        hand.now += SECOND
        await until(pilot, lambda: 4000 <= app.rows._end <= 4004)
        await pilot.press("full_stop")
        await until(pilot, lambda: app.rows._end == 16_000)


async def test_the_filter_stays_in_force_during_playback(recording: Path, hand: Hand) -> None:
    async with replayed(recording) as (app, pilot):
        app.rows.move_to(27)
        await pilot.press("v", "end", "P")
        hand.now += 2 * SECOND
        await until(pilot, lambda: app.rows._end > 100)
        selection = app.rows.selection
        rows = selection.rows(range(selection.first, selection.end))
        assert {row.verdict for row in rows} == {"DROP"}
        assert rows[-1].time <= streams.WALL + 2 * SECOND


async def test_a_speed_key_starts_playback(recording: Path, hand: Hand) -> None:
    async with replayed(recording) as (app, pilot):
        await pilot.press("less_than_sign")
        await until(pilot, lambda: "▶" in app.status_bar.text)


@pytest.mark.parametrize("key", ["P", "greater_than_sign", "less_than_sign"])
async def test_a_live_stream_cannot_be_played(key: str) -> None:
    async with live(streams.hello(), streams.rows(4), rows=4) as (_, app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: "only a recording can be played" in app.notice_line.shown[0])


async def test_time_keys_without_a_row_give_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "empty.iptr"
    path.write_bytes(streams.hello() + streams.end())
    app = TraceApp(FileSource(path), title="a recording")
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.over)
        await pilot.press("comma", "full_stop", "greater_than_sign", "less_than_sign", "P", "at")
        await write(app, pilot, "+5m")
        await pilot.press("enter")
        await pilot.pause()
        assert "no row" in app.notice_line.shown[0]
        assert app.is_running
        app.exit_now()


async def test_scrubbing_works_on_live_rows() -> None:
    async with live(streams.hello(), streams.rows(40_000), rows=40_000) as (_, app, pilot):
        await pilot.press("comma")
        assert 19_990 <= app.rows.cursor <= 20_000
        assert not app.rows.follow
        await pilot.press("full_stop")
        assert app.rows.cursor >= 39_990
