# SPDX-License-Identifier: GPL-2.0-only
"""The cost of a frame of the live screen, with a full store.

A million rows, 2,000 new ones a tick of 50 ms, 200 by 50 cells.  CPU time of the
complete process: reading, decoding, feeding, drawing, and encoding for the terminal
(which the headless driver omits, so it is done here).  No terminal and no sleep is
included.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Generator
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

from textual import events

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.writer import Writer
from ipttrace.tui.app import TraceApp
from tests.data import synth

HELD: Final = 1_000_000
ROWS: Final = 2_000
TICKS: Final = 60
KEYS: Final = 20
BATCH: Final = 50_000
SIZE: Final = (200, 50)


class _FakeSource:
    """A live source that yields the chunks passed to give()."""

    live, name, progress = True, "bench", ""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._ready = threading.Semaphore(0)
        self._closed = False

    def give(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._ready.release()

    def chunks(self) -> Generator[bytes, None, None]:
        while True:
            self._ready.acquire()
            if self._closed:
                return
            yield self._chunks.popleft()

    def stop(self) -> bool:
        return False

    def close(self) -> None:
        self._closed = True
        self._ready.release()


class _RenderedApp(TraceApp):
    """The screen, which also encodes for a terminal."""

    def _display(self, screen: Any, renderable: Any) -> None:
        if hasattr(renderable, "render_segments"):
            renderable.render_segments(self.console)


def _hello() -> bytes:
    sink = io.BytesIO()
    Writer(sink).hello(synth.hello())
    return sink.getvalue()


def _frames(records: Any, calls: int, times: int) -> bytes:
    """Returns the records as frames, shifted by `calls` and by `times` ns."""
    sink = io.BytesIO()
    writer = Writer(sink)
    for kind, some in enumerate((records.entries, records.rules, records.exits)):
        moved = some.copy()
        moved["call"] += calls
        moved["time"] += times
        if kind == 0:
            moved["parent"][moved["parent"] != 0] += calls
        writer.records(kind, moved)
    return sink.getvalue()


async def _key(app: TraceApp, source: _FakeSource, chunk: bytes) -> float:
    """Returns the s from a key press, while 2,000 rows arrive, to the frame that shows it."""
    drawn = asyncio.Event()
    source.give(chunk)
    await asyncio.sleep(0.01)
    began = perf_counter()
    app.post_message(events.Key("k", "k"))
    while app.rows.follow:  # a step up leaves the tail
        await asyncio.sleep(0.0005)
    app.rows.call_after_refresh(drawn.set)
    await drawn.wait()
    elapsed = perf_counter() - began
    app.rows.action_newest()
    await asyncio.sleep(0.05)
    return elapsed


async def _run() -> dict[str, dict[str, Any]]:
    source = _FakeSource()
    app = _RenderedApp(source, title="bench", capacity=HELD)
    trace = app.feeds.trace
    decoder = Decoder()
    for frame in decoder.feed(_hello()):
        trace.feed(frame)
    batch = synth.make(BATCH)
    span = int(batch.exits["time"].max() - batch.entries["time"].min()) + 1_000_000
    done = 0
    # Overfilled: the store evicts in chunks, so that it ends at its capacity.
    while trace.store.end < HELD * 1.1:
        for frame in decoder.feed(_frames(batch, done * len(batch.entries), done * span)):
            trace.feed(frame)
        done += 1
    small = synth.make(ROWS)
    start = done * len(batch.entries), done * span
    step = len(small.entries), span // BATCH * ROWS
    chunks = [
        _frames(small, start[0] + tick * step[0], start[1] + tick * step[1])
        for tick in range(TICKS + 5 + KEYS)
    ]
    chunks, late = chunks[: TICKS + 5], chunks[TICKS + 5 :]
    while app.counting.all.pull(app.store, BATCH):
        pass
    async with app.run_test(size=SIZE):
        source.give(_hello())

        async def tick(chunk: bytes) -> None:
            before = trace.store.end
            source.give(chunk)
            while app.rows.cursor + 1 < before + step[0] - 50:
                await asyncio.sleep(0.002)
            # For the frame that the screen's timer draws afterwards.
            await asyncio.sleep(0.05)

        for chunk in chunks[:5]:
            await tick(chunk)
        began = process_time()
        for chunk in chunks[5:]:
            await tick(chunk)
        drawing = (process_time() - began) / TICKS
        keys = [await _key(app, source, chunk) for chunk in late]
        flood = app.shown.filter_by("verdict=DROP and src in 10.0.0.0/8 and cost>2us")
        assert flood
        began = perf_counter()
        app.apply_filter()
        while app.shown.progress is not None:
            await asyncio.sleep(0.001)
        filtered = perf_counter() - began
        app.action_unfilter()
        began = process_time()
        await asyncio.sleep(2)
        idle = (process_time() - began) / 2
        held = len(trace.store)
        await app.action_quit()
    return {
        "tui_frame": {"value": round(drawing * 1e3, 2), "unit": "ms CPU", "goal": "<= 25"},
        "tui_key": {"value": round(median(keys) * 1e3, 1), "unit": "ms", "goal": "<= 100"},
        "tui_key_worst": {"value": round(max(keys) * 1e3, 1), "unit": "ms", "goal": "<= 100"},
        "tui_filter": {"value": round(filtered * 1e3, 1), "unit": "ms", "goal": "<= 100"},
        "tui_idle": {"value": round(idle * 100, 2), "unit": "% CPU", "goal": ""},
        "tui_held": {"value": held, "unit": "rows", "goal": ""},
    }


def run() -> dict[str, dict[str, Any]]:
    """Returns the figures by name: value, unit, goal."""
    return asyncio.run(_run())


if __name__ == "__main__":
    for name, figure in run().items():
        print(name, figure["value"], figure["unit"], figure["goal"])
