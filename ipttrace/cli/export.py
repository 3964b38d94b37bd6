# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace export`: a recording as text, csv, jsonl or pcapng on stdout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipttrace.cli import options
from ipttrace.cli.replay import write_rows


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace export", description="Writes the rows of a recording to stdout."
    )
    options.add_file(parser)
    parser.add_argument(
        "--format", choices=options.FORMATS, default="csv", help="output format (default: csv)"
    )
    options.add_selection(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Writes the rows; returns the exit status."""
    return write_rows(build_parser().parse_args(argv))
