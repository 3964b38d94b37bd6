# SPDX-License-Identifier: GPL-2.0-only
"""Rows on stdout: the output for a format, and what must not go to a terminal."""

from __future__ import annotations

import argparse
import os
import shutil
from typing import TYPE_CHECKING

from ipttrace.cli.descriptors import check_stdout
from ipttrace.cli.options import compile_query
from ipttrace.cli.outcome import BadUsage

if TYPE_CHECKING:
    from ipttrace.view.output import Output


def open_output(format: str, names: dict[int, str], *, drops: bool = False) -> Output:
    """Returns what turns rows into `format` for this stdout.

    `names`: the names of the network namespaces by inode; may be filled later; `drops`:
    there are no rows of tables.  Raises Failed if stdout is closed.
    """
    check_stdout()
    from ipttrace.view import formats, text

    return formats.output(
        format,
        names,
        columns=shutil.get_terminal_size().columns if os.isatty(1) else None,
        colour=text.colour_wanted(1, os.environ),
        drops=drops,
    )


def refuse_terminal(what: str) -> None:
    """Raises BadUsage if stdout is a terminal."""
    if os.isatty(1):
        raise BadUsage(f"refusing to write {what} to a terminal; redirect stdout")


def check_selection(options: argparse.Namespace) -> None:
    """Checks the format against stdout and compiles --query.  Raises BadUsage."""
    if options.format == "pcapng":
        refuse_terminal("pcapng")
    compile_query(options, "query")


def has_terminal() -> bool:
    """Whether the screen can be shown: it reads stdin, and Textual draws on stderr."""
    return all(os.isatty(fd) for fd in (0, 1, 2))
