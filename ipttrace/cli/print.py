# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace print`: rows as lines on stdout, as they come."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipttrace.cli import options, ssh, stdout
from ipttrace.cli.outcome import exit_status


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace print", description="Prints rows as lines on stdout, as they come."
    )
    options.add_tracing(parser)
    ssh.add_options(parser)
    options.add_until(parser)
    parser.add_argument(
        "--format", choices=options.FORMATS, default="text", help="output format (default: text)"
    )
    options.add_selection(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints rows until the end; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(argv)
    ssh.check(parser, parsed, several=False)
    stdout.check_selection(parsed)
    options.compile_query(parsed, "until")
    options.check_expr(parsed)
    names: dict[int, str] = {}
    arguments = [*([] if parsed.ssh else ["--unchecked"]), *options.agent_arguments(parsed)]
    with ssh.one_agent(parsed, arguments) as link:
        # Imported while the agent starts, which takes longer.
        from ipttrace.cli.pump import Pump

        pump = Pump(
            stdout.open_output(parsed.format, names),
            count=parsed.count,
            query=parsed.query,
            until=parsed.until,
            stop=link.stop,
            names=names,
        )
        return exit_status(pump.run(link.stream), link.close(), armed=bool(pump.trace.hello))
