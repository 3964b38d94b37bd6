# SPDX-License-Identifier: GPL-2.0-only
"""A stretch of a perf buffer is taken as an array, whatever lies between the records."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("bcc", reason="python3-bpfcc is not installed")

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.rings import Stretch
from ipttrace.stream import record

LOST = np.frombuffer(b"\x02\0\0\0\0\0\x18\0" + bytes(16), "u1")  # PERF_RECORD_LOST, 24 bytes


def events(stretch: Stretch, count: int) -> np.ndarray:
    """Samples as the kernel writes them: header, size, record, padding."""
    found = np.zeros(count, stretch._event)
    found["type"], found["size"] = 9, stretch._event.itemsize
    found["record"]["call"] = np.arange(count)
    return found.view("u1")


def calls(stretch: Stretch, data: np.ndarray) -> list[int]:
    """The call ids of the records in `data`."""
    return [call for part in stretch.views(data) for call in part["call"].tolist()]


@pytest.mark.parametrize("dtype", record.DTYPES, ids=record.KINDS)
def test_records_come_out_as_they_went_in(dtype: np.dtype[np.void]) -> None:
    stretch = Stretch(dtype)
    (found,) = stretch.views(events(stretch, 1000))
    assert found.dtype == dtype
    assert found["call"].tolist() == list(range(1000))


def test_what_the_kernel_says_of_lost_records_is_passed_over() -> None:
    stretch = Stretch(record.EXIT_DTYPE)
    data = events(stretch, 6)
    size = len(data) // 6
    mixed = np.concatenate((LOST, data[: 2 * size], LOST, LOST, data[2 * size :], LOST))
    assert calls(stretch, mixed) == list(range(6))


@pytest.mark.parametrize("size", [0, 4, 12, 0xFFF8])
def test_an_event_that_lies_about_its_size_ends_in_one_error(size: int) -> None:
    stretch = Stretch(record.EXIT_DTYPE)
    data = events(stretch, 3).copy()
    data[6:8] = np.frombuffer(np.uint16(size).tobytes(), "u1")
    with pytest.raises(CaptureError, match="impossible size"):
        stretch.views(data)
