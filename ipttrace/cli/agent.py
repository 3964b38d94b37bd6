# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace agent`: the privileged half, which writes the stream to stdout.

Must not import a view or the screen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipttrace.cli import options
from ipttrace.cli.descriptors import check_stdout
from ipttrace.cli.stdout import refuse_terminal


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(prog="ipttrace agent", description="Writes the stream to stdout.")
    # none: drops or sockets alone, without rows.
    options.add_tracing(parser, (*options.ENGINES, "none"))
    options.add_sockets(parser)
    parser.add_argument(
        "--control",
        action="store_true",
        help="read control lines from stdin; the agent ends when stdin does",
    )
    parser.add_argument(
        "--maxactive",
        type=options.count,
        metavar="N",
        help="maximum number of calls traced at the same time",
    )
    # For a reader on this host that does not keep the stream: omits checksums.
    parser.add_argument("--unchecked", action="store_true", help=argparse.SUPPRESS)
    # In the lab's VM: the stream goes to a virtio port, and the lab's traffic is started.
    parser.add_argument("--port", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--lab", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fault", help=argparse.SUPPRESS)
    return parser


def run(argv: Sequence[str]) -> int:
    """Traces until the end; returns the exit status."""
    parsed = build_parser().parse_args(argv)
    options.check_expr(parsed)
    from ipttrace.capture.agent import main
    from ipttrace.capture.request import Request

    out, control = 1, 0 if parsed.control else None
    if parsed.port:
        from ipttrace.lab.vm.port import open_stream_port

        out = control = open_stream_port()
    else:
        check_stdout()
        refuse_terminal("the stream")
    request = Request(
        expr=" ".join(parsed.expr),
        engine=parsed.engine,
        netns=parsed.netns,
        buffer=parsed.buffer,
        maxactive=parsed.maxactive,
        duration=parsed.duration,
        ready_file=parsed.ready_file,
        max_rate=parsed.max_rate,
        stop_after=parsed.stop_after,
        from_rules=parsed.from_rules,
        raw_addresses=parsed.raw_addresses,
        drops=not parsed.no_drops,
        stations=parsed.stations,
        sockets=parsed.sockets,
        checked=not parsed.unchecked,
    )
    if not parsed.lab:
        return main(request, out, control)
    from ipttrace.lab.guest import lab_traffic

    with lab_traffic(parsed.fault):
        return main(request, out, control)
