# SPDX-License-Identifier: GPL-2.0-only
"""Many lines at once, by one %-format that takes numbers as they are.

A text for each number would cost more than the rest of a line.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.view.values import SECOND


@dataclass(frozen=True, slots=True)
class Part:
    """A part of n lines: a %-format, and n values for each place in it."""

    form: str
    values: Sequence[list[Any]]


def escaped(text: str) -> str:
    """Returns a %-format that makes this text."""
    return text.replace("%", "%%")


def format_lines(parts: Sequence[Part], between: str, count: int) -> Iterable[str]:
    """Returns `count` lines, each of these parts with `between` them."""
    form = escaped(between).join([part.form for part in parts])
    columns = [column for part in parts for column in part.values]
    return map(form.__mod__, zip(*columns, strict=True)) if columns else [form % ()] * count


def times(form: str, column: Array, second: Callable[[int], str | None], unit: int = 1) -> Part:
    """Returns times, int64 (n,) in ns, by a format for the text of a second and what is behind.

    `unit`: ns of which the format has a number.  Raises ValueError if a second has no text.
    """
    whole, behind = np.divmod(column, SECOND)
    texts = list(map(second, whole.tolist()))
    if None in texts:
        raise ValueError("a time that has no text")
    return Part(form, [texts, (behind // unit).tolist()])
