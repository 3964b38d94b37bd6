# SPDX-License-Identifier: GPL-2.0-only
"""The line views against golden files, which a person has reviewed.

After an intended change: IPTTRACE_WRITE_GOLDEN=1 pytest tests/golden, then review the
diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.output import View
from ipttrace.view.text import TextView
from tests.data.rows import ROWS

NAMES = {4026531840: "host", 4026532999: "client"}

VIEWS: dict[str, View] = {
    "rows.txt": TextView(NAMES, utc=True),
    "rows-160.txt": TextView(NAMES, utc=True, columns=160),
    "rows-80.txt": TextView(NAMES, utc=True, columns=80),
    "rows-colour.txt": TextView(NAMES, utc=True, colour=True),
    "rows.csv": CsvView(NAMES),
    "rows.jsonl": JsonlView(NAMES),
}


@pytest.mark.parametrize("name", VIEWS)
def test_rows_are_written_as_in_the_golden_file(name: str) -> None:
    # GIVEN a view and rows of every kind, including hostile ones
    view, golden = VIEWS[name], Path(__file__).with_name(name)
    # WHEN they are written in two batches, as from a stream
    written = (view.header() + view.lines(ROWS[:4]) + view.lines(ROWS[4:])).encode()
    # THEN each byte is as in the golden file
    if os.environ.get("IPTTRACE_WRITE_GOLDEN"):
        golden.write_bytes(written)
    assert written == golden.read_bytes()
