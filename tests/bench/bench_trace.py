# SPDX-License-Identifier: GPL-2.0-only
"""How fast records become rows and rows are read, and how much memory they need.

Run it, or call `run`: ``{name: {"value": number, "unit": text, "goal": number}}``.
Goals are for one core.  Needs no root and no kernel.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from tests.data import synth
from tests.data.traces import seqs_with

Results = dict[str, dict[str, Any]]

ROWS = 1_000_000
BATCHES = (2_000, 10_000, 50_000)

_FRAME_BYTES = 1 << 20


def _frames(records: synth.Records, size: int) -> list[Frame]:
    """Returns frames as a Writer splits them, without checksums."""
    frames: list[Frame] = []
    for batch in records.batches(size):
        for kind, some in zip((Kind.ENTRY, Kind.RULE, Kind.EXIT), batch, strict=True):
            most = _FRAME_BYTES // some.dtype.itemsize
            frames += [
                Frame(kind, some[start : start + most].tobytes())
                for start in range(0, len(some), most)
            ]
    return frames


def _best(work: Callable[[], object], times: int) -> float:
    """Returns the CPU seconds of the fastest run: other processes share this host."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def _rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _rate(records: synth.Records, size: int) -> float:
    frames = _frames(records, size)

    def feed() -> None:
        trace = Trace(ROWS)
        for frame in frames:
            trace.feed(frame)
        if trace.store.end != len(records.entries):
            raise RuntimeError(f"{trace.store.end} rows of {len(records.entries)} calls")

    return len(records) / _best(feed, 3)


def _million() -> Iterator[Frame]:
    """Yields frames of at least a million rows, without holding them all."""
    records = synth.make(4_000, flows=5_000)
    last = int(records.entries["call"].max())
    span = int(records.exits["time"].max()) - synth.MONO + 1
    for turn in range(ROWS // len(records.entries) + 1):
        parts = []
        for kind in (records.entries, records.rules, records.exits):
            some = kind.copy()
            some["call"] += turn * last
            some["time"] += turn * span
            parts.append(some)
        yield from _frames(synth.Records(*parts), 50_000)
        del parts, some


def run() -> Results:
    """Runs all measurements, in about 20 seconds."""
    results: Results = {}
    records = synth.make(60_000)
    rates = {size: _rate(records, size) for size in BATCHES}
    for size, rate in rates.items():
        results[f"trace.records_per_s.batch_{size}"] = {
            "value": round(rate),
            "unit": "records/s",
            "goal": 1_000_000,
        }
    # In a process of its own, as earlier measurements affect memory.
    child = [sys.executable, "-m", "tests.bench.bench_trace", "--rows"]
    found = subprocess.run(child, check=True, capture_output=True, text=True)
    results |= json.loads(found.stdout)
    return results


def _rows() -> Results:
    """Measures the memory of a store of a million rows, and how fast it is read."""
    results: Results = {}
    before = _rss()
    trace = Trace(ROWS)
    for frame in _million():
        trace.feed(frame)
    del frame
    gc.collect()
    store = trace.store
    results["trace.rows_held"] = {"value": len(store), "unit": "rows", "goal": 0.9 * ROWS}
    # The process's complete memory, including remains of what created the rows.
    per_row = (_rss() - before) / len(store)
    results["trace.memory_1m_rows"] = {
        "value": round((before + per_row * ROWS) / 1e6),
        "unit": "MB",
        "goal": 600,
    }
    flow = store.row(store.end - 1).flow
    seconds = _best(lambda: seqs_with(store, "flow", flow), 10)
    results["trace.select_flow_1m_rows"] = {
        "value": round(seconds * 1e3 * ROWS / len(store), 2),
        "unit": "ms",
        "goal": 50,
    }
    seqs = range(store.end - 20_000, store.end)
    results["trace.rows_read"] = {
        "value": round(20_000 / _best(lambda: store.rows(seqs), 3)),
        "unit": "rows/s",
        "goal": 50_000,
    }
    return results


if __name__ == "__main__":
    if sys.argv[1:] == ["--rows"]:
        print(json.dumps(_rows()))
        sys.exit()
    for name, result in run().items():
        print(f"{name:40} {result['value']:>12,} {result['unit']:10} goal {result['goal']:,}")
