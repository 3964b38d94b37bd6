# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace doctor`: what this machine can do and what it lacks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipttrace.cli.options import Parser


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    return Parser(
        prog="ipttrace doctor", description="Checks what this machine can do and what it lacks."
    )


def run(argv: Sequence[str]) -> int:
    """Prints the checks; returns the exit status."""
    build_parser().parse_args(argv)
    from ipttrace.capture import doctor

    return doctor.run()
