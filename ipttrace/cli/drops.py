# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace drops`: packets that die outside the tables as lines, and why; then their sums."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipttrace.cli import lines, options

if TYPE_CHECKING:
    from ipttrace.trace.store import Picked

_MOST: Final = 30  # lines of the sums


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace drops",
        description="Prints packets that are dropped, where in the kernel, and why, as they are;"
        " traces no table. At the end: the drops of each reason and place.",
    )
    lines.add_arguments(parser, ("none",))
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints drops until the end; returns the exit status."""
    sums = Sums()
    return lines.write(build_parser(), argv, drops=True, written=sums.add, before_summary=sums.show)


class Sums:
    """Counts drops by reason and place."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Picked) -> None:
        """Counts these rows."""
        pairs = zip(rows.column("reason").tolist(), rows.column("place").tolist(), strict=True)
        text = rows.names.text
        for (reason, place), count in Counter(pairs).items():
            self._counts[text(reason), text(place)] += count

    def show(self) -> None:
        """Prints the most frequent ones to stderr."""
        listed = self._counts.most_common(_MOST)
        if not listed:
            return
        table = [("DROPS", "REASON", "PLACE")]
        table += [(str(count), reason or "-", place or "-") for (reason, place), count in listed]
        widths = [max(len(line[at]) for line in table) for at in (0, 1)]
        for number, reason, place in table:
            print(f"{number:>{widths[0]}}  {reason:{widths[1]}}  {place}", file=sys.stderr)
        if (more := len(self._counts) - len(listed)) > 0:
            print(f"and {more:,} more reasons and places", file=sys.stderr)
