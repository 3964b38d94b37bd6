# SPDX-License-Identifier: GPL-2.0-only
"""A live screen on a socket; the test has the other end."""

from __future__ import annotations

import faulthandler
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from textual.pilot import Pilot

from ipttrace.tui.app import TraceApp
from ipttrace.tui.feed.source import StreamSource

# Limits a hang; no test depends on how long something takes.
HANG = 60.0


class Agent:
    """The far end of the socket, in place of a live agent."""

    def __init__(self) -> None:
        self.near, self._far = socket.socketpair()
        self.closed = threading.Event()
        self.source = StreamSource(self.near, control=self.near, on_close=self.closed.set)

    def send(self, *parts: bytes) -> None:
        self._far.sendall(b"".join(parts))

    def received(self) -> bytes:
        """All bytes of the control line, up to its end."""
        self._far.settimeout(HANG)
        data = b""
        while more := self._far.recv(4096):
            data += more
        return data

    def receive_line(self) -> bytes:
        """One command of the control line."""
        self._far.settimeout(HANG)
        data = b""
        while not data.endswith(b"\n"):
            data += self._far.recv(1)
        return data

    def hang_up(self) -> None:
        self._far.close()


async def until(pilot: Pilot[Any], condition: Callable[[], object], what: str = "") -> None:
    """Lets the screen work until `condition` holds."""
    deadline = monotonic() + HANG
    while not condition():
        if monotonic() >= deadline:
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(sys.__stderr__)  # who waits for what
            died = pilot.app._exception
            raise AssertionError(f"never happened: {what or condition}") from died
        await pilot.pause(0.005)
    await pilot.pause()


def laid_out(app: TraceApp, width: int) -> bool:
    """Whether the list has adapted to its size on a screen of `width` cells."""
    rows = app.rows
    beside = app.side.outer_size.width if app.side.display else 0
    return (
        rows.size.width == width - beside
        and rows.width == rows.size.width - 1
        and app.view.titles._columns == rows.columns
    )


def shown(app: TraceApp) -> list[str]:
    """The list's lines as drawn."""
    return [app.rows.render_line(y).text for y in range(app.rows.size.height)]


def screen_text(app: TraceApp) -> list[str]:
    """Every line of the screen."""
    lines = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in line) for line in lines]


def seqs(app: TraceApp) -> tuple[int, int]:
    """First and last sequence number on the screen."""
    rows = app.rows
    top = rows._base + rows._top
    return top, min(top + rows.size.height, rows._end) - 1


@asynccontextmanager
async def live(
    *first: bytes,
    size: tuple[int, int] = (80, 24),
    rows: int = 0,
    capacity: int = 1_000_000,
    grace: float = HANG,
    title: str = "lab",
) -> AsyncIterator[tuple[Agent, TraceApp, Pilot[Any]]]:
    """A screen that was sent `first` and holds `rows` rows."""
    agent = Agent()
    app = TraceApp(agent.source, title=title, capacity=capacity, grace=grace)
    async with app.run_test(size=size) as pilot:
        sender = threading.Thread(target=agent.send, args=first)
        sender.start()
        await until(pilot, lambda: app.feeds.trace.store.end >= rows, f"{rows} rows")
        await until(pilot, lambda: app.rows._end >= rows, f"{rows} rows on the screen")
        sender.join()
        # The list has no size while the empty screen stands in its place.
        await until(pilot, lambda: not rows or laid_out(app, size[0]), "a size")
        try:
            yield agent, app, pilot
        finally:
            app.exit_now()
            agent.hang_up()


async def more(agent: Agent, app: TraceApp, pilot: Pilot[Any], frames: bytes, rows: int) -> None:
    """Sends `frames` and waits until the store has had `rows` rows in all."""
    sender = threading.Thread(target=agent.send, args=(frames,))
    sender.start()
    await until(pilot, lambda: app.feeds.trace.store.end >= rows, f"{rows} rows")
    await until(pilot, lambda: not app._stale, "a picture of them")
    sender.join()
