# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace print`: rows as lines on stdout, as they come."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipttrace.cli import lines, options


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace print", description="Prints rows as lines on stdout, as they come."
    )
    lines.add_arguments(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints rows until the end; returns the exit status."""
    return lines.write(build_parser(), argv)
