# SPDX-License-Identifier: GPL-2.0-only
"""The formats by name: which output writes which.  Must not do I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ipttrace.view.csv import CsvView
from ipttrace.view.jsonl import JsonlView
from ipttrace.view.lines import Lines, Output, View
from ipttrace.view.pcapng import Pcapng
from ipttrace.view.places import Named
from ipttrace.view.text import TextView

# The ending of a file's name → its format.
ENDINGS: Final = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".pcapng": "pcapng",
    ".txt": "text",
}
FORMATS: Final = ("text", "csv", "jsonl", "pcapng")


def output(
    name: str,
    names: Named = None,
    *,
    columns: int | None = None,
    colour: bool = False,
) -> Output:
    """The output of format `name`.  Raises KeyError.

    `names`: of namespaces by inode, or Places where there are several hosts;
    `columns` and `colour`: of the terminal, for text.
    """
    if name == "text":
        return Lines(TextView(names, columns=columns, colour=colour))
    if name == "pcapng":
        return Pcapng(names)
    views: dict[str, Callable[[Named], View]] = {"csv": CsvView, "jsonl": JsonlView}
    return Lines(views[name](names))
