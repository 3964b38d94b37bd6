# SPDX-License-Identifier: GPL-2.0-only
"""How a trace ends: keys, signals, streams that end, break off or are invalid."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from ipttrace.tui.app import TraceApp
from ipttrace.tui.feed.source import STOP, FileSource
from tests.data import streams
from tests.paths import PROJECT
from tests.tui.harness import HANG, Agent, live, more, screen_text, seqs, shown, until


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_quit_asks_the_agent_to_end_and_receives_its_last_counts(key: str) -> None:
    # GIVEN a live agent, and the reader blocked waiting for it
    async with live(streams.hello(), streams.rows(8), rows=8) as (agent, app, pilot):
        # WHEN the user quits
        await pilot.press(key)
        assert agent.receive_line() == STOP
        assert app.is_running
        # AND the agent sends its remaining rows
        agent.send(streams.rows(4, start=8), streams.end(lost=[1, 2, 2], missed=3))
        agent.hang_up()
        await until(pilot, lambda: app.return_value is not None)
    # THEN the summary includes them, and no thread or descriptor is left
    assert app.return_value == {
        "rows": 12,
        "records": 36,
        "lost": 5,
        "missed": 3,
        "engine": "kernel",
        "incomplete": 0,
        "error": None,
    }
    assert not app.feeds[0].intake.alive
    assert agent.closed.is_set()
    assert agent.near.fileno() == -1


async def test_quit_does_not_wait_for_an_agent_that_does_not_answer() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8, grace=0.05) as (agent, app, pilot):
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
        assert agent.received() == STOP
    assert app.return_value is not None
    assert app.return_value["rows"] == 8
    assert not app.feeds[0].intake.alive


async def test_pressing_quit_twice_exits_at_once() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8) as (_, app, pilot):
        await pilot.press("q")
        assert app.is_running
        await until(pilot, lambda: "STOPPING" in app.status_bar.text)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: app.return_value is not None)
    assert not app.feeds[0].intake.alive


async def test_ctrl_c_exits_from_the_help_screen_too() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8, grace=0.05) as (_, app, pilot):
        await pilot.press("question_mark", "ctrl+c")
        await until(pilot, lambda: app.return_value is not None)
    assert not app.feeds[0].intake.alive


async def test_quit_works_before_the_first_frame() -> None:
    async with live(grace=0.05) as (agent, app, pilot):
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value["rows"] == 0
    assert agent.closed.is_set()


async def test_quit_works_while_the_reader_waits_for_room() -> None:
    # GIVEN a screen that takes no frames, and a reader that waits for room
    agent = Agent()
    app = TraceApp(agent.source, title="lab", grace=0.05)
    app.feeds[0].intake._limit = 1
    app.feeds[0].intake._notify = lambda: None
    async with app.run_test() as pilot:
        sender = threading.Thread(
            target=agent.send, args=(streams.hello() + streams.rows(8),), daemon=True
        )
        sender.start()
        await until(pilot, lambda: app.feeds[0].intake.waiting)
        # WHEN the user quits THEN it ends
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert not app.feeds[0].intake.alive
    agent.hang_up()


async def test_a_crash_of_the_screen_leaves_no_reader_and_no_agent() -> None:
    agent = Agent()
    app = TraceApp(agent.source, title="lab")

    async def crash() -> None:
        async with app.run_test() as pilot:
            app.call_later(lambda: 1 // 0)
            await until(pilot, lambda: app._exception is not None)

    with pytest.raises(ZeroDivisionError):
        await crash()
    assert agent.closed.is_set()
    assert not app.feeds[0].intake.alive


async def test_the_end_of_the_stream_keeps_the_screen_and_the_rows() -> None:
    async with live(streams.complete(400), rows=400) as (agent, app, pilot):
        agent.hang_up()
        await until(pilot, lambda: "ENDED" in app.status_bar.text)
        await pilot.press("home")
        assert seqs(app)[0] == 0
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value["error"] is None


async def test_a_killed_agent_gives_a_one_line_notice() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        agent.hang_up()
        await until(pilot, lambda: "ENDED" in app.status_bar.text)
        assert any("without sending its last counts" in line for line in screen_text(app))
        assert seqs(app)[1] == 399


async def test_a_stream_cut_within_a_frame_keeps_its_rows() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        agent.send(streams.rows(4, start=400)[:99])
        agent.hang_up()
        await until(pilot, lambda: "ERROR" in app.status_bar.text)
        # THEN a notice reports it, and all rows before it are there
        assert sum("cut off at byte" in line for line in screen_text(app)) == 1
        assert seqs(app)[1] == 399
        assert "ACCEPT" in shown(app)[-1]
        await pilot.press("home")
        assert seqs(app)[0] == 0
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert "cut off" in app.return_value["error"]
    assert app.return_value["rows"] == 400


async def test_a_damaged_stream_is_closed_at_the_damage() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        # WHEN the bytes turn to noise, and the agent keeps the connection open
        agent.send(streams.rows(8, start=400) + b"\xff" * 64)
        await until(pilot, lambda: "ERROR" in app.status_bar.text)
        # THEN the rows before are shown, and the agent is told to stop
        assert seqs(app)[1] == 407
        assert any("no frame starts there" in line for line in screen_text(app))
        assert agent.received() == STOP
        assert agent.closed.is_set()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not an ipttrace stream"),
        (streams.hello(engine="\x1b[2Jmagic"), "unknown engine"),
        (streams.hello() + streams.books(lost="[]"), "books"),
        (streams.hello() + streams.books(missed=-1), "missed"),
    ],
)
async def test_an_invalid_stream_gives_a_one_line_notice(frames: bytes, words: str) -> None:
    async with live(frames) as (_, app, pilot):
        await until(pilot, lambda: "ERROR" in app.status_bar.text)
        assert sum(words in line for line in screen_text(app)) >= 1


async def test_a_recording_is_shown_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.iptr"
    path.write_bytes(streams.complete(4000))
    app = TraceApp(FileSource(path), title="a recording")
    async with app.run_test() as pilot:
        await until(pilot, lambda: "ENDED" in app.status_bar.text)
        assert seqs(app)[1] == 3999
        assert "4,000 rows" in app.status_bar.text
        await pilot.press("q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is not None
    assert app.return_value["rows"] == 4000


async def test_a_recording_that_was_cut_off_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "trace.iptr"
    path.write_bytes(streams.hello() + streams.rows(40))
    app = TraceApp(FileSource(path), title="a recording")
    async with app.run_test() as pilot:
        await until(pilot, lambda: "ENDED" in app.status_bar.text)
        assert any("its end is missing" in line for line in screen_text(app))
        assert seqs(app)[1] == 39
        await pilot.press("q")


async def test_a_flood_of_frames_posts_few_messages() -> None:
    async with live(streams.hello(), streams.rows(4), rows=4) as (agent, app, pilot):
        # GIVEN a count of the reader's notices and of the pictures drawn
        notices = 0
        post = app.feeds[0].intake._notify

        def count() -> None:
            nonlocal notices
            notices += 1
            post()

        app.feeds[0].intake._notify = count
        pictures = 0
        draw = app._draw

        def drawing() -> None:
            nonlocal pictures
            pictures += 1
            draw()

        app._draw = drawing  # type: ignore[method-assign]
        # WHEN 500 small frames come
        frames = b"".join(streams.rows(4, start=4 * at) for at in range(1, 501))
        await more(agent, app, pilot, frames, 2004)
        # THEN no more notices than pictures, except one that waits
        assert notices <= pictures + 1


def _on_a_terminal(
    tmp_path: Path, rows: int, size: tuple[int, int], **more: Any
) -> tuple[int, subprocess.Popen[bytes]]:
    """The test's end of a terminal, and the screen with `rows` rows on it."""
    path = tmp_path / "trace.iptr"
    path.write_bytes(streams.complete(rows))
    ours, theirs = pty.openpty()
    columns, lines = map(str, size)
    child = subprocess.Popen(
        [sys.executable, "-m", "ipttrace.tui", str(path)],
        stdin=theirs,
        stderr=theirs,
        cwd=PROJECT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": columns, "LINES": lines},
        **more,
    )
    os.close(theirs)
    return ours, child


def _in_a_terminal(tmp_path: Path, act: bytes | signal.Signals) -> tuple[int, bytes, bytes]:
    """Run the screen on a terminal; `act` on it once rows are there.

    Returns exit status, what the terminal saw, and what standard output got.
    """
    ours, child = _on_a_terminal(tmp_path, 400, (80, 24), stdout=subprocess.PIPE)
    seen = b""
    acted = False
    try:
        while True:
            ready, _, _ = select.select([ours], [], [], HANG)
            assert ready, f"the screen hung: {seen[-500:]!r}"
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
            if not acted and b"ENDED" in seen:
                acted = True
                if isinstance(act, bytes):
                    os.write(ours, act)
                else:
                    child.send_signal(act)
        assert child.stdout is not None
        return child.wait(HANG), seen, child.stdout.read()
    finally:
        child.kill()
        child.wait()
        os.close(ours)


@pytest.mark.parametrize(
    ("act", "status"),
    [(b"q", 0), (b"\x03", 0), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_the_terminal_is_restored(tmp_path: Path, act: bytes | signal.Signals, status: int) -> None:
    code, seen, output = _in_a_terminal(tmp_path, act)
    assert code == status
    # The alternate screen is off, the cursor is visible.
    assert b"\x1b[?1049l" in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?1049h")
    # After the screen only the summary is printed.
    after = seen[seen.rindex(b"\x1b[?1049l") :]
    assert b"rows=400 records=1200 lost=0 missed=0 engine=kernel\r\n" in after
    assert b"Traceback" not in seen
    assert output == b""


@pytest.mark.parametrize("turn", range(3))
def test_closing_the_terminal_ends_the_process(tmp_path: Path, turn: int) -> None:
    # GIVEN the screen on a terminal of its own, playing, which draws all the time
    ours, child = _on_a_terminal(
        tmp_path,
        4000,
        (120, 40),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        seen = b""
        while b"ENDED" not in seen:
            assert select.select([ours], [], [], HANG)[0], seen[-500:]
            seen += os.read(ours, 65536)
        # WHEN the window is closed while a key is handled
        os.write(ours, b"12345" * 4)
        os.close(ours)
        ours = -1
        # THEN the process ends, in order or not
        child.wait(HANG)
    finally:
        child.kill()
        child.wait()
        if ours >= 0:
            os.close(ours)
