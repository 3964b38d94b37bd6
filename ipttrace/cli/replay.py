# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace replay`: a recording on the screen, or as lines.

`write_rows` is also what export does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ipttrace.cli import options, stdin, stdout
from ipttrace.cli.outcome import Failed
from ipttrace.text import escape


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace replay", description="Shows a recording on the screen, or as lines."
    )
    options.add_file(parser)
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
    if parsed.format is not None or not os.isatty(1) or not stdin.has_keys(parsed.file):
        return write_rows(parsed)
    if parsed.count is not None:
        parser.error("--count needs rows as lines; add --format")
    options.compile_query(parsed, "query")
    from ipttrace.cli.screen import show
    from ipttrace.tui.feed import FileSource, StreamSource

    try:
        if parsed.file == stdin.DASH:
            stream = stdin.open_with_keys()
            return show(StreamSource(stream, name="stdin"), "stdin", shown=parsed.query)
        return show(FileSource(parsed.file), Path(parsed.file).name, shown=parsed.query)
    except OSError as reason:
        raise failed(parsed.file, reason) from None


def write_rows(parsed: argparse.Namespace) -> int:
    """Writes the rows of a recording to stdout; returns the exit status."""
    stdout.check_selection(parsed)
    from ipttrace.cli.pump import Pump

    names: dict[int, str] = {}
    output = stdout.open_output(parsed.format or "text", names)
    try:
        with stdin.open_recording(parsed.file) as file:
            pump = Pump(
                output,
                count=parsed.count,
                query=parsed.query,
                names=names,
                file=shown(parsed.file),
            )
            return pump.run(file)
    except OSError as reason:
        raise failed(parsed.file, reason) from None


def failed(file: str, reason: OSError) -> Failed:
    """What says that a recording cannot be read."""
    return Failed(f"{shown(file)}: {reason.strerror}")


def shown(file: str) -> str:
    """A recording's name in an error."""
    return "stdin" if file == stdin.DASH else escape(file)
