# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace demo`: a small isolated network with rules and traffic, traced live."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipttrace.cli import options, outcome
from ipttrace.cli.outcome import Failed
from ipttrace.cli.screen import load_settings
from ipttrace.cli.stdout import has_terminal, open_output, refuse_terminal

if TYPE_CHECKING:
    from ipttrace.lab.demo.processes import Demo


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace demo",
        description="Traces a small network with rules and traffic, isolated from this host's.",
    )
    options.add_expr(parser)
    options.add_show(parser, duration="stop after S seconds (15 if stdout is no terminal)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the demo; returns the exit status."""
    parsed = build_parser().parse_intermixed_args(argv)
    if parsed.record == "-":
        refuse_terminal("the stream")
    if not os.isatty(1) and parsed.duration is None:
        parsed.duration = 15.0
    options.check_expr(parsed)
    lines = parsed.text or not has_terminal()
    if not lines and not parsed.record:
        load_settings()
    from ipttrace.lab.demo import processes

    expr, checked = " ".join(parsed.expr), bool(parsed.record)
    with contextlib.ExitStack() as stack:
        stderr = None if lines or checked else stack.enter_context(tempfile.TemporaryFile())
        # Started first: the network comes up during the imports here.
        try:
            running = processes.running(expr, parsed.duration, checked=checked, stderr=stderr)
            here = stack.enter_context(running)
        except processes.DemoError as reason:
            raise Failed(str(reason)) from None
        if stderr is None:
            status = _lines(here, parsed.record)
            return outcome.exit_status(status, here.close(), armed=True)
        status = _screen(here, f"demo: {processes.PUZZLE}")
        agent = here.close()
        failed = outcome.print_kept(stderr)
        return failed or outcome.exit_status(status, agent, armed=True)


def _lines(demo: Demo, record: str | None) -> int:
    from ipttrace.cli.pump import Pump
    from ipttrace.cli.recording import Recording

    names: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(contextlib.closing(Recording(record))) if record else None
        output = None if record else open_output("text", names)
        pump = Pump(output, copy=copy, stop=demo.stop, names=names)
        return pump.run(demo.stream) or (outcome.DONE if pump.rows else outcome.FAILED)


def _screen(demo: Demo, title: str) -> int:
    from ipttrace.cli.screen import show
    from ipttrace.link.base import STOP
    from ipttrace.tui.feed import StreamSource

    source = StreamSource(demo.stream, demo.control, name="demo", farewell=STOP)
    source.progress = "setting up a small network"
    return show(source, title)
