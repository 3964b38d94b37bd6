# SPDX-License-Identifier: GPL-2.0-only
"""How fast records become rows and rows are read, and how much memory they need.

Run it, or call `run`: ``{name: {"value": number, "unit": text, "goal": number}}``.
Goals are for one core.  Needs no root and no kernel.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from ipttrace.view.formats import output
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


def _written(records: synth.Records, size: int, format: str, times: int) -> float:
    """Returns the CPU seconds a row takes from frames to the bytes of a format."""
    frames = _frames(records, size)

    def write() -> None:
        trace, out, done = Trace(ROWS), output(format), 0
        for frame in frames:
            trace.feed(frame)
            if trace.store.end > done:
                out.rows(trace.store, range(done, trace.store.end))
                done = trace.store.end

    return _best(write, times) / len(records.entries)


def _instructions(rows: int) -> float:
    """Returns the instructions a row takes from frames to text, `rows` at a time.

    Of packets in 1,000 flows, all of which have been printed before; independent of what
    else this host does.
    """
    calls = 5_000
    counts = []
    for turns in (1, 2):
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no"]
        command += ["--cachegrind-out-file=/dev/null", sys.executable, "-m"]
        command += ["tests.bench.bench_trace", "--print", str(calls), str(rows), str(turns)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = re.search(r"I +refs: +([\d,]+)", done.stderr)
        assert found is not None
        counts.append((int(found[1].replace(",", "")), int(done.stdout)))
    return (counts[1][0] - counts[0][0]) / (counts[1][1] - counts[0][1])


def _print(calls: int, rows: int, turns: int) -> int:
    """Prints the same packets so many times; returns the number of rows."""
    records = synth.make(calls)
    last = int(records.entries["call"].max())
    span = int(records.exits["time"].max()) - synth.MONO + 1
    trace, out, done = Trace(ROWS), output("text"), 0
    for turn in range(turns):
        for kind in (records.entries, records.rules, records.exits) if turn else ():
            kind["call"] += last
            kind["time"] += span
        for frame in _frames(records, rows * len(records) // len(records.entries)):
            trace.feed(frame)
            if trace.store.end > done:
                out.rows(trace.store, range(done, trace.store.end))
                done = trace.store.end
    return done


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
    """Runs all measurements, in about 30 seconds."""
    results: Results = {}
    records = synth.make(60_000)
    rates = {size: _rate(records, size) for size in BATCHES}
    for size, rate in rates.items():
        results[f"trace.records_per_s.batch_{size}"] = {
            "value": round(rate),
            "unit": "records/s",
            "goal": 1_000_000,
        }
    for format in ("csv", "text", "jsonl"):
        results[f"trace.rows_written.{format}"] = {
            "value": round(1 / _written(records, 18_000, format, 3)),
            "unit": "rows/s",
            "goal": 200_000,
        }
    # What `print` does with the records of 50 ms, which it takes together, at 20,000 rows/s.
    results["trace.row_printed.batch_1000"] = {
        "value": round(1e6 * _written(synth.make(10_000), 3500, "text", 3), 1),
        "unit": "µs a row",
        "goal": 20,
    }
    for rows in (50, 1000):
        if shutil.which("valgrind") is not None:
            results[f"trace.row_printed_instructions.batch_{rows}"] = {
                "value": round(_instructions(rows)),
                "unit": "a row",
                "goal": 60_000 if rows == 1000 else "",
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
    if sys.argv[1:2] == ["--print"]:
        print(_print(*map(int, sys.argv[2:])))
        sys.exit()
    for name, result in run().items():
        print(f"{name:40} {result['value']:>12,} {result['unit']:10} goal {result['goal']:,}")
