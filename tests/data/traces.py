# SPDX-License-Identifier: GPL-2.0-only
"""Traces filled from recordings, synthetic records or single records, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.stream.decoder import Decoder, read_file
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from tests.data.records import entry, joined, leave, rule, udp, v4
from tests.data.synth import Records

Array = npt.NDArray[Any]

KINDS = (Kind.ENTRY, Kind.RULE, Kind.EXIT)


def replay(path: Path, capacity: int = 1_000_000) -> Trace:
    """A trace of a recording."""
    trace = Trace(capacity)
    for frame in read_file(path):
        trace.feed(frame)
    return trace


def feed_stream(trace: Trace, data: bytes) -> None:
    """Feeds the frames in `data`."""
    for frame in Decoder().feed(data):
        trace.feed(frame)


def feed_synthetic(trace: Trace, records: Records, size: int = 700) -> None:
    """Feeds records of `synth.make` in batches of `size` calls."""
    for batch in records.batches(size):
        feed_records(trace, *batch)


def feed_records(trace: Trace, *kinds: Array | Sequence[Array]) -> None:
    """Feeds entries, rules and exits, each as an array or as a list of arrays (1,)."""
    for kind, some in zip(KINDS, kinds, strict=True):
        if isinstance(some, np.ndarray):
            trace.feed(Frame(kind, some.tobytes()))
        elif some:
            trace.feed(Frame(kind, joined(*some).tobytes()))


def synthetic(records: Records, capacity: int = 1_000_000, size: int = 700) -> Trace:
    """A trace of records of `synth.make`."""
    trace = Trace(capacity)
    feed_synthetic(trace, records, size)
    return trace


def seqs_with(
    store: Store, column: str, value: int, first: int | None = None, end: int | None = None
) -> Array:
    """Sequence numbers, int64 and ascending, of the held rows with `value` in `column`."""
    found = [
        np.flatnonzero(part.columns[column] == value) + part.first
        for part in store.parts(first, end)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def one_row(name: bytes = b"x", table: bytes = b"filter", **fields: Any) -> Trace:
    """A trace of one row whose names are `name`."""
    trace = Trace(100)
    data = v4(17, "10.0.0.1", "10.0.0.2", udp(53, 1000))
    given: dict[str, Any]
    given = {"packet": data, "comm": name[:15], "in": name[:15], "out": name[:15], "table": table}
    feed_records(trace, entry(1, **(given | fields)), rule(1, 0, name, 7), leave(1, 1))
    trace.finish()
    assert len(trace.store) == 1
    return trace
