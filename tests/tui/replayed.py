# SPDX-License-Identifier: GPL-2.0-only
"""A screen on a recording that has been read to its end, and helpers to query it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from textual.events import Paste
from textual.pilot import Pilot

from ipttrace.trace import query
from ipttrace.trace.row import Row
from ipttrace.tui.app import TraceApp
from ipttrace.tui.feed.source import FileSource
from tests.paths import DATA
from tests.tui.harness import laid_out, until

LAB = DATA / "lab.iptr"
SIZES = [(80, 24), (200, 50)]

NAMES = {" ": "space", "=": "equals_sign", ")": "right_parenthesis", "]": "right_square_bracket"}

Screen = tuple[TraceApp, Pilot[Any]]


@asynccontextmanager
async def replayed(path: Path = LAB, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Screen]:
    """The screen on a file that has been read and tallied."""
    app = TraceApp(FileSource(path), title="a recording")
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.over, "the end of the recording")
        await until(pilot, lambda: not app.counting.behind(), "what it adds up to")
        if app.store.end:
            await until(pilot, lambda: laid_out(app, size[0]), "a size")
        try:
            yield app, pilot
        finally:
            app.exit_now()


async def settled(app: TraceApp, pilot: Pilot[Any]) -> None:
    """Waits until the list shows the filter in force."""
    shown = app.shown
    await until(
        pilot,
        lambda: shown.progress is None and app.rows.selection is shown.selection,
        "the filter",
    )
    await until(pilot, lambda: shown.selection.behind == 0 and app.rows._end == shown.selection.end)


def all_rows(app: TraceApp) -> list[Row]:
    store = app.store
    return store.rows(range(store.first, store.end))


def seq_of(app: TraceApp, wanted: Callable[[Row], object]) -> int:
    """The sequence number of the first row for which `wanted` is true."""
    return next(row.index for row in all_rows(app) if wanted(row))


def listed(app: TraceApp) -> list[int]:
    """The sequence numbers of the list's rows, on the screen or not."""
    selection = app.rows.selection
    seqs: list[int] = selection.seqs(selection.first, selection.end).tolist()
    return seqs


def matching(app: TraceApp, text: str) -> list[int]:
    """The sequence numbers of the rows that a query matches."""
    asked, context = query.compile(text), app.query_context()
    parts = [np.flatnonzero(asked.mask(part, context)) + part.first for part in app.store.parts()]
    seqs: list[int] = np.concatenate(parts).tolist()
    return seqs


async def write(app: TraceApp, pilot: Pilot[Any], text: str) -> None:
    """Types into the focused widget: pasted for speed, except the last character."""
    app.post_message(Paste(text[:-1]))
    await pilot.press(NAMES.get(text[-1], text[-1]))
