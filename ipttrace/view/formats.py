# SPDX-License-Identifier: GPL-2.0-only
"""The formats and their file name extensions.  Must not do I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.labels import LabelSource
from ipttrace.view.output import LineOutput, Output, View
from ipttrace.view.pcapng import Pcapng
from ipttrace.view.text import TextView

# File name extension → format.
EXTENSIONS: Final = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".pcapng": "pcapng",
    ".txt": "text",
}
FORMATS: Final = ("text", "csv", "jsonl", "pcapng")


def output(
    name: str,
    names: LabelSource = None,
    *,
    columns: int | None = None,
    colour: bool = False,
    drops: bool = False,
) -> Output:
    """Returns the output of format `name`.  Raises KeyError if there is no such format.

    `columns`: the terminal's width in cells; `colour`: use it; `drops`: there are no rows of
    tables.  All three are for text.
    """
    if name == "text":
        return LineOutput(TextView(names, columns=columns, colour=colour, drops=drops))
    if name == "pcapng":
        return Pcapng(names)
    views: dict[str, Callable[[LabelSource], View]] = {"csv": CsvView, "jsonl": JsonlView}
    return LineOutput(views[name](names))
