# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace sockets`: handshakes, accept queues, processes and original destinations as lines."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipttrace.cli import options, ssh, stdin
from ipttrace.cli.descriptors import check_stdout
from ipttrace.cli.outcome import exit_status
from ipttrace.cli.replay import failed, shown

if TYPE_CHECKING:
    from ipttrace.view.sockets import StageView

_FORMATS: Final = ("text", "csv", "jsonl")
_OF_TRACING: Final = ("expr", "netns", "duration", "ready_file", "raw_addresses", "ssh")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace sockets",
        description="Prints the stages of sockets as they are reached: who listens, connects,"
        " accepts and reads, how long each stage took, and why a handshake came to nothing;"
        " traces no table.",
    )
    options.add_expr(parser)
    options.add_scope(parser)
    ssh.add_options(parser)
    parser.add_argument("--file", metavar="FILE", help="print those of a recording; - is stdin")
    parser.add_argument("--count", type=options.count, metavar="N", help="stop after N lines")
    parser.add_argument(
        "--format", choices=_FORMATS, default="text", help="output format (default: text)"
    )
    parser.set_defaults(engine="none", no_drops=True, sockets=True)
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints stages until the end; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(argv)
    ssh.check(parser, parsed, several=False)
    names: dict[int, str] = {}
    if parsed.file is not None:
        if any(getattr(parsed, name) for name in _OF_TRACING):
            parser.error("--file prints what was recorded: give no EXPR and no tracing options")
        return _of_file(parsed, names)
    options.check_expr(parsed)
    arguments = [*([] if parsed.ssh else ["--unchecked"]), *options.agent_arguments(parsed)]
    with ssh.one_agent(parsed, arguments) as link:
        # Imported while the agent starts, which takes longer.
        from ipttrace.cli.pump import Pump

        stages = _view(parsed, names)
        pump = Pump(None, count=parsed.count, stop=link.stop, names=names, stages=stages)
        return exit_status(pump.run(link.stream), link.close(), armed=bool(pump.trace.hello))


def _of_file(parsed: argparse.Namespace, names: dict[int, str]) -> int:
    from ipttrace.cli.pump import Pump

    try:
        with stdin.open_recording(parsed.file) as file:
            stages, name = _view(parsed, names), shown(parsed.file)
            pump = Pump(None, count=parsed.count, names=names, file=name, stages=stages)
            return pump.run(file)
    except OSError as reason:
        raise failed(parsed.file, reason) from None


def _view(parsed: argparse.Namespace, names: dict[int, str]) -> StageView:
    from ipttrace.view.sockets import StageView
    from ipttrace.view.text import colour_wanted

    check_stdout()
    return StageView(parsed.format, names, colour=colour_wanted(1, os.environ))
