# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace record`: the stream to a file."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from ipttrace.cli import options, ssh
from ipttrace.cli.outcome import exit_status
from ipttrace.cli.stdout import refuse_terminal


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(prog="ipttrace record", description="Records the stream to a file.")
    parser.add_argument("file", metavar="FILE", help="output file; - is stdout")
    options.add_tracing(parser)
    options.add_sockets(parser)
    ssh.add_options(parser)
    options.add_until(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Records until the end; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(argv)
    ssh.check(parser, parsed, several=False)
    options.compile_query(parsed, "until")
    options.check_expr(parsed)
    if parsed.file == "-":
        refuse_terminal("the stream")
    from ipttrace.cli.pump import Pump
    from ipttrace.cli.recording import Recording

    with (
        contextlib.closing(Recording(parsed.file)) as file,
        ssh.one_agent(parsed, options.agent_arguments(parsed)) as link,
    ):
        pump = Pump(None, copy=file, until=parsed.until, stop=link.stop, names={})
        status = pump.run(link.stream)
        return exit_status(status, link.close(), armed=bool(pump.trace.hello))
