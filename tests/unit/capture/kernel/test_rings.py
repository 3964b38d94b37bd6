# SPDX-License-Identifier: GPL-2.0-only
"""The records in a perf ring are read as arrays, whatever else is between them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("bcc", reason="python3-bpfcc is not installed")

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.rings import SampleReader
from ipttrace.stream import record

LOST = np.frombuffer(b"\x02\0\0\0\0\0\x18\0" + bytes(16), "u1")  # PERF_RECORD_LOST, 24 bytes


def events(reader: SampleReader, count: int) -> np.ndarray:
    """Events as the kernel writes them: header, size, record, padding."""
    found = np.zeros(count, reader._event)
    found["type"], found["size"] = 9, reader._event.itemsize
    found["record"]["call"] = np.arange(count)
    return found.view("u1")


def calls(reader: SampleReader, data: np.ndarray) -> list[int]:
    """The call ids of the records in `data`."""
    return [call for part in reader.views(data) for call in part["call"].tolist()]


@pytest.mark.parametrize("dtype", record.DTYPES, ids=record.KINDS)
def test_records_are_read_as_they_were_written(dtype: np.dtype[np.void]) -> None:
    reader = SampleReader(dtype)
    (found,) = reader.views(events(reader, 1000))
    assert found.dtype == dtype
    assert found["call"].tolist() == list(range(1000))


def test_events_about_lost_records_are_skipped() -> None:
    reader = SampleReader(record.EXIT_DTYPE)
    data = events(reader, 6)
    size = len(data) // 6
    mixed = np.concatenate((LOST, data[: 2 * size], LOST, LOST, data[2 * size :], LOST))
    assert calls(reader, mixed) == list(range(6))


@pytest.mark.parametrize("size", [0, 4, 12, 0xFFF8])
def test_an_event_of_an_impossible_size_is_an_error(size: int) -> None:
    reader = SampleReader(record.EXIT_DTYPE)
    data = events(reader, 3).copy()
    data[6:8] = np.frombuffer(np.uint16(size).tobytes(), "u1")
    with pytest.raises(CaptureError, match="impossible size"):
        reader.views(data)
