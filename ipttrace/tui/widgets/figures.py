# SPDX-License-Identifier: GPL-2.0-only
"""Numbers in few cells: counts, rates, shares, durations, bars, plots and sparklines.

Pure: must not know rows, roles or colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan, log2
from typing import Final

from ipttrace.tui.cells import duration

_UNITS: Final = "kMGTPE"
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_LEFT_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def count(number: float) -> str:
    """A count in at most six cells: 99,999 · 123.4k · 1.234M."""
    if number < 99_999.5:
        return f"{number:,.0f}"
    value = float(number)
    for unit in _UNITS:
        value /= 1000
        if value < 999.95:
            digits = 3 if value < 9.9995 else 2 if value < 99.995 else 1
            return f"{value:.{digits}f}{unit}"
    return ">1000E"


def rate(value: float) -> str:
    """A rate per second in at most six cells; below 10 with one decimal."""
    if 0 < value < 9.95:
        return f"{value:.1f}"
    return count(value)


def share(value: float) -> str:
    """0 to 1 as per cent in at most four cells; rounds to neither 0% nor 100%."""
    if value <= 0:
        return "0%"
    if value < 0.01:
        return "<1%"
    return "99%" if 0.99 < value < 1 else f"{value:.0%}"


def cost(ns: float) -> str:
    """A duration in at most six cells; "" for NaN."""
    return "" if isnan(ns) else duration(round(ns))


def span(seconds: float) -> str:
    """A time span in at most four cells: 0s, 89s, 12m, 3h, 12d."""
    for limit, unit, name in ((90, 1, "s"), (3600, 60, "m"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) // unit:.0f}{name}"
    return f"{min(seconds // 86400, 999):.0f}d"


def bar(value: float, width: int) -> str:
    """A bar of `width` cells, filled to `value` (0 to 1); never empty above 0."""
    eighths = round(min(max(value, 0.0), 1.0) * 8 * width)
    if value > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_LEFT_EIGHTHS[rest] if rest else "")
    return text.ljust(width)


def heat(value: float, most: float) -> float:
    """`value` on a logarithmic scale from 0 (for 0) to 1 (for `most`)."""
    if value <= 0 or most <= 0:
        return 0.0
    return min(1.0, log2(1 + value) / log2(1 + most))


def plot(values: Sequence[float], height: int, most: float) -> list[str]:
    """Columns of blocks, one cell wide, as `height` lines from top to bottom.

    `most` is the full height; values above 0 show at least an eighth of a cell.
    """
    levels = []
    for value in values:
        level = round(8 * height * value / most) if most > 0 and isfinite(value) else 0
        levels.append(min(max(level, 1 if value > 0 else 0), 8 * height))
    return [
        "".join(_EIGHTHS[min(max(level - 8 * line, 0), 8)] for level in levels)
        for line in range(height - 1, -1, -1)
    ]


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values, scaled to the highest of them; None is a gap."""
    values = values[-width:] if width > 0 else ()
    top = max((value for value in values if value is not None), default=0)
    marks = (
        " " if value is None else _EIGHTHS[1 + round(7 * value / top)] if top > 0 else _EIGHTHS[1]
        for value in values
    )
    return "".join(marks).rjust(max(width, 0))
