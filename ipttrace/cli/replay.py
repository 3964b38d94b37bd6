# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace replay`: a recording on the screen, or as lines.

`write_rows` is also what export does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ipttrace.cli import options, stdout
from ipttrace.cli.outcome import Failed


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace replay", description="Shows a recording on the screen, or as lines."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="recording")
    parser.add_argument(
        "--format",
        choices=options.FORMATS,
        help="write rows in this format instead of opening the screen",
    )
    options.add_selection(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Shows the recording; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_args(argv)
    if parsed.format is not None or not (os.isatty(1) and os.isatty(0)):
        return write_rows(parsed)
    if parsed.count is not None:
        parser.error("--count needs rows as lines; add --format")
    options.compile_query(parsed, "query")
    from ipttrace.cli.screen import show
    from ipttrace.tui.feed import FileSource

    try:
        return show(FileSource(parsed.file), parsed.file.name, shown=parsed.query)
    except OSError as reason:
        raise Failed(f"{parsed.file}: {reason.strerror}") from None


def write_rows(parsed: argparse.Namespace) -> int:
    """Writes the rows of a recording to stdout; returns the exit status."""
    stdout.check_selection(parsed)
    from ipttrace.cli.pump import Pump

    names: dict[int, str] = {}
    output = stdout.open_output(parsed.format or "text", names)
    try:
        with open(parsed.file, "rb", buffering=0) as file:
            pump = Pump(output, count=parsed.count, query=parsed.query, names=names)
            return pump.run(file)
    except OSError as reason:
        raise Failed(f"{parsed.file}: {reason.strerror}") from None
