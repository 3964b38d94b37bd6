# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace config`: prints the default config file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ipttrace.cli.options import Parser
from ipttrace.cli.outcome import DONE


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    return Parser(
        prog="ipttrace config",
        description="Prints the default config file: the screen's columns, theme, keys, colours.",
        epilog="The screen reads ~/.config/ipttrace/config.toml, or $XDG_CONFIG_HOME/ipttrace/"
        "config.toml; under sudo, the file of the user who called it.",
    )


def run(argv: Sequence[str]) -> int:
    """Prints the file; returns the exit status."""
    build_parser().parse_args(argv)
    from ipttrace.tui.app.configuration import default_text

    try:
        sys.stdout.buffer.write(default_text().encode())  # TOML is UTF-8 in every locale
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # by | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return DONE
