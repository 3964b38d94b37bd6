# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of a live stream, and pictures of the screen, by key."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from ipttrace.stream.decoder import read_file
from ipttrace.trace.session import Trace
from ipttrace.tui.feed import feed
from tests.data import streams
from tests.tui.app.dialogs import dialog, notice_with
from tests.tui.harness import live, more, until
from tests.tui.replayed import SIZES, listed, replayed, write

# Recordings.

pytestmark = pytest.mark.usefixtures("folder")


def recorded(path: Path) -> Trace:
    trace = Trace()
    for frame in read_file(path):
        trace.feed(frame)
    return trace


async def test_a_recording_has_the_rows_between_two_presses_of_r(folder: Path) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        # GIVEN 40 rows, WHEN R is pressed and a file named
        await pilot.press("R")
        assert app.prompt._input.value.startswith("ipttrace-")
        assert app.prompt._input.value.endswith(".iptr")
        await pilot.press("ctrl+u")
        await write(app, pilot, "some.iptr")
        await pilot.press("enter")
        await notice_with(app, pilot, "recording to some.iptr: R stops it")
        assert " REC " in app.status_bar.text
        await more(agent, app, pilot, streams.rows(400, start=40), 440)
        await pilot.press("R")
        await notice_with(app, pilot, "recording stopped: some.iptr")
        assert "REC" not in app.status_bar.text
        await more(agent, app, pilot, streams.rows(40, start=440), 480)
        # THEN the file is a complete recording of the rows in between
        trace = recorded(folder / "some.iptr")
        assert trace.store.end == 400
        assert trace.ended is not None
        assert trace.hello["host"] == "lab"
        rows = trace.store.rows(range(400))
        assert [(row.time, row.skb, row.verdict) for row in rows] == [
            (row.time, row.skb, row.verdict) for row in app.store.rows(range(40, 440))
        ]
    # AND the screen reads it
    async with replayed(folder / "some.iptr") as (app, pilot):
        assert len(listed(app)) == 400
        assert app.feeds[0].error is None


async def test_quitting_ends_a_recording_properly(folder: Path) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40, grace=0.05) as (agent, app, pilot):
        await pilot.press("R", "ctrl+u")
        await write(app, pilot, "left.iptr")
        await pilot.press("enter")
        await more(agent, app, pilot, streams.rows(40, start=40), 80)
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    trace = recorded(folder / "left.iptr")
    assert trace.store.end == 40
    assert trace.ended is not None


async def test_a_recording_never_replaces_a_file(folder: Path) -> None:
    (folder / "there.iptr").write_text("mine")
    (folder / "dangling.iptr").symlink_to(folder / "nowhere")
    async with live(streams.hello(), streams.rows(40), rows=40) as (_, app, pilot):
        for name in ("there.iptr", "dangling.iptr"):
            await pilot.press("R", "ctrl+u")
            await write(app, pilot, name)
            await pilot.press("enter")
            assert app.prompt.asking
            assert "this file already exists" in app.prompt.hint
            await pilot.press("escape")
        assert (folder / "there.iptr").read_text() == "mine"
        await pilot.press("R", "ctrl+u", "enter")
        assert "enter a file name" in app.prompt.hint


@pytest.mark.parametrize(
    ("path", "words"),
    [("no/such/x.iptr", "No such file"), ("a" * 300, "too long")],
)
async def test_a_recording_that_cannot_start_gives_a_one_line_error(path: str, words: str) -> None:
    async with live(streams.hello(), streams.rows(40), rows=40) as (_, app, pilot):
        await pilot.press("R", "ctrl+u")
        await write(app, pilot, path)
        await pilot.press("enter")
        await notice_with(app, pilot, words)
        assert not app.feeds[0].tap.open
        assert app.is_running


def fill_disk(monkeypatch: pytest.MonkeyPatch, buffering: int) -> None:
    """Recordings go to a full disk, through a buffer of that many bytes."""

    def create(path: object, **_: object) -> int:
        return os.open("/dev/full", os.O_WRONLY)

    def fdopen(fd: int, mode: str) -> IO[bytes]:
        return open(fd, "wb", buffering=buffering)

    monkeypatch.setattr(feed, "create", create)
    monkeypatch.setattr(feed, "os", SimpleNamespace(fdopen=fdopen))


@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_disk_that_fills_during_a_recording_gives_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, buffering: int
) -> None:
    fill_disk(monkeypatch, buffering)
    async with live(streams.hello(), streams.rows(40), rows=40) as (agent, app, pilot):
        await pilot.press("R", "ctrl+u")
        await write(app, pilot, "full.iptr")
        await pilot.press("enter")
        await pilot.pause()
        if buffering:
            # THEN the error comes when the buffer is full
            await more(agent, app, pilot, streams.rows(4000, start=40), 4040)
        await notice_with(app, pilot, "No space left on device")
        assert "full.iptr" in app.notice_line.shown[0]
        # AND rows keep coming
        held = app.store.end
        await more(agent, app, pilot, streams.rows(40, start=held), held + 40)
        assert app.feeds[0].error is None
        # AND a key dismisses the notice
        await pilot.press("escape")
        assert "No space" not in app.notice_line.shown[0]


async def test_a_disk_that_fills_when_the_recording_ends_gives_an_error_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_disk(monkeypatch, 1 << 24)
    async with live(streams.hello(), streams.rows(40), rows=40) as (_, app, pilot):
        await pilot.press("R", "ctrl+u")
        await write(app, pilot, "full.iptr")
        await pilot.press("enter")
        await notice_with(app, pilot, "recording to full.iptr")
        await pilot.press("escape", "R")
        await notice_with(app, pilot, "No space left on device")


async def test_a_stream_that_has_ended_cannot_be_recorded() -> None:
    async with replayed() as (app, pilot):
        await pilot.press("R")
        await notice_with(app, pilot, "e exports the rows that are held")


async def test_a_stream_that_has_not_begun_cannot_be_recorded() -> None:
    async with live() as (_, app, pilot):
        await pilot.press("R")
        await notice_with(app, pilot, "no stream to record")


# Pictures.


@pytest.mark.parametrize("size", SIZES)
async def test_a_picture_of_the_screen_is_written_to_the_current_folder(
    folder: Path, size: tuple[int, int]
) -> None:
    async with replayed(size=size) as (app, pilot):
        await pilot.press("S")
        line = await notice_with(app, pilot, "screenshot: ipttrace-")
        (name,) = os.listdir(folder)
        assert line.endswith(name)
        picture = (folder / name).read_text()
        assert picture.startswith("<svg")
        assert "ACCEPT" in picture


async def test_a_picture_that_cannot_be_written_gives_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    async with replayed() as (app, pilot):
        await pilot.press("S")
        await notice_with(app, pilot, "cannot write the screenshot ipttrace-")
        # AND the other commands give an error too
        await dialog(app, pilot, "x.csv")
        await pilot.press("enter")
        await notice_with(app, pilot, "cannot write x.csv")
    monkeypatch.chdir(folder)
