# SPDX-License-Identifier: GPL-2.0-only
"""Cells: text that fills a given number of terminal columns, and the role that colours it.

Holds what every list of the screen draws with: cutting and padding, durations
and verdicts.  Must not import Textual, or anything else from `ipttrace.tui`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.cells import cell_len, set_cell_size

Cell = tuple[str, str]
"""A text and its role; widgets map roles to colours."""

# Marks distinguish verdicts on terminals without colours.
VERDICT_MARKS: Final[Mapping[str, str]] = {
    "ACCEPT": "✓",
    "DROP": "✗",
    "STOLEN": "»",
    "QUEUE": "…",
    "REPEAT": "↻",
    "STOP": "■",
}
VERDICT_ROLES: Final[Mapping[str, str]] = {"ACCEPT": "accept", "DROP": "drop"}


def fit(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` cells; cut at its end with … when it is longer."""
    if text.isascii():
        length = len(text)
        if length > width:
            return text[: width - 1] + "…" if width > 0 else ""
        return text.rjust(width) if right else text.ljust(width)
    # Combining marks take no cell: bound the characters too.
    text = text[: 4 * width]
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    pad = " " * (width - length)
    return pad + text if right else text + pad


def fit_tail(text: str, width: int) -> str:
    """`text` in at most `width` cells; cut at its start with … when it is longer.

    The end of an address tells more than its start.
    """
    if len(text) <= width or width <= 0:
        return text[: max(width, 0)] if text.isascii() else fit(text, width).rstrip()
    if not text.isascii():
        return fit(text, width)
    return "…" + text[len(text) - width + 1 :]


def duration(ns: int | None) -> str:
    """`ns` in at most six cells: 812ns, 1.23µs, 45.6ms, 12.0s."""
    if ns is None:
        return "-"
    if ns < 1000:
        return f"{ns}ns"
    value = float(ns)
    for unit in ("µs", "ms"):
        value /= 1000
        if value < 999.5:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    value /= 1000
    return f"{value:.1f}s" if value < 9999.5 else ">2h"
