# SPDX-License-Identifier: GPL-2.0-only
"""What print and drops have in common: an agent's rows as lines on stdout."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ipttrace.cli import options, ssh, stdout
from ipttrace.cli.outcome import exit_status

if TYPE_CHECKING:
    from ipttrace.trace.store import Picked


def add_arguments(
    parser: argparse.ArgumentParser, engines: tuple[str, ...] = options.ENGINES
) -> None:
    """Adds the arguments that both have; `engines`: those to choose from."""
    options.add_tracing(parser, engines)
    ssh.add_options(parser)
    options.add_until(parser)
    parser.add_argument(
        "--format", choices=options.FORMATS, default="text", help="output format (default: text)"
    )
    options.add_selection(parser)


def write(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    *,
    drops: bool = False,
    written: Callable[[Picked], None] | None = None,
    before_summary: Callable[[], None] | None = None,
) -> int:
    """Prints rows until the end, only drops if `drops`; returns the exit status.

    `written` is called with rows that were printed, `before_summary` after all of them.
    """
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
            stdout.open_output(parsed.format, names, drops=drops),
            count=parsed.count,
            query=parsed.query,
            until=parsed.until,
            stop=link.stop,
            names=names,
            written=written,
            before_summary=before_summary,
        )
        return exit_status(pump.run(link.stream), link.close(), armed=bool(pump.trace.hello))
