# SPDX-License-Identifier: GPL-2.0-only
"""Figures over time as lines of block characters.

A plotting library takes about a hundred times as long.  Must not count.
"""

from __future__ import annotations

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.tally.totals import Seconds
from ipttrace.tui.cells import Cells, spread
from ipttrace.tui.widgets import figures


def mean_cost(seconds: Seconds) -> Array:
    """The mean cost of a row in each second, ns, shape (n,); 0 if none is known."""
    mean: Array = seconds.series["cost_ns"] / np.maximum(seconds.series["costed"], 1)
    return mean


def _binned(values: Array, width: int, mean_of_some: bool) -> Array:
    """`values` per second, shape (n,), as at most `width` means of several seconds each.

    `mean_of_some`: seconds with the value 0 are left out, as rows without a cost are.
    """
    if len(values) <= width:
        return values
    each = -(-len(values) // width)
    padded = np.concatenate([np.zeros(-len(values) % each), values]).reshape(-1, each)
    if not mean_of_some:
        binned: Array = padded.mean(axis=1)
        return binned
    some = np.count_nonzero(padded, axis=1)
    mean: Array = padded.sum(axis=1) / np.maximum(some, 1)
    return mean


def plot(title: str, role: str, values: Array, is_cost: bool, width: int, tall: int) -> list[Cells]:
    """A title and `tall` lines of `width` cells; `values`: per second, costs in ns, shape (n,)."""
    # The last second is incomplete; show it only if there are few others.
    values = values[:-1] if np.count_nonzero(values) > 5 else values[1:]
    most = float(values.max(initial=0.0))
    now = float(values[-1]) if len(values) else 0.0
    if is_cost:
        right = f"now {figures.cost(now) if now else '-':>6}  peak {figures.cost(most)}"
    else:
        right = f"now {figures.rate(now):>6}/s  peak {figures.rate(most)}/s"
    bins = _binned(values, width, is_cost)
    wide = np.repeat(bins, max(1, width // max(len(bins), 1)))[-width:]
    lines: list[Cells] = [[(spread(title, right, width)[:width], role)]]
    drawn = figures.plot(wide.tolist(), tall, float(bins.max(initial=0.0)))
    return lines + [[(line.rjust(width), role)] for line in drawn]


def axis(width: int, span: int) -> str:
    """The time axis below the plots, for `span` seconds."""
    begin, half = f"-{figures.span(span)}", f"-{figures.span(span / 2)}"
    cells = min(width, max(1, width // span) * span) if span < width else width
    line = begin + half.center(cells - len(begin) - 3) + "now"
    return line.rjust(width)
