# SPDX-License-Identifier: GPL-2.0-only
"""Options that several commands share: their parser, their types, and their checks.

Must not import, at the top, anything that `--help` does not need.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final, NoReturn

from ipttrace.cli.outcome import BAD_USAGE, BadUsage, error
from ipttrace.text import escape

FORMATS: Final = ("text", "csv", "jsonl", "pcapng")
ENGINES: Final = ("auto", "kernel", "netlink", "bpf")


class Parser(argparse.ArgumentParser):
    """A parser that reports bad usage in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        # Python's "argument --format: invalid choice: 'x' (choose from 'text', 'csv')".
        message = message.removeprefix("argument ").replace("invalid choice:", "no such choice:")
        error(f"{message} (see {self.prog} --help)")
        sys.exit(BAD_USAGE)


def positive(text: str) -> float:
    """An argument type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not a positive number of seconds")
    return value


def count(text: str) -> int:
    """An argument type: an integer from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not a whole number of 1 or more")
    return value


def size(text: str) -> int:
    """An argument type: bytes, with k, m or g for powers of 1024."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    factor = units.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        value = int(digits) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{_quoted(text)} is not a size; write bytes, or a number with k, m or g"
        ) from None
    if value < 65536:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is too small; the minimum is 64k")
    return value


def _quoted(text: str) -> str:
    return f'"{escape(text[:40])}"'


def add_file(parser: argparse.ArgumentParser) -> None:
    """The recording that a command reads."""
    parser.add_argument("file", metavar="FILE", help="recording; - is stdin")


def add_expr(parser: argparse.ArgumentParser) -> None:
    """EXPR, as any number of words."""
    parser.add_argument(
        "expr", nargs="*", default=[], metavar="EXPR", help="pcap-filter expression"
    )


def add_tracing(parser: argparse.ArgumentParser, engines: tuple[str, ...] = ENGINES) -> None:
    """EXPR and the options of every command that starts an agent on a real host.

    `engines`: those to choose from; a single one is no choice.
    """
    add_expr(parser)
    if len(engines) > 1:
        parser.add_argument(
            "--engine",
            choices=engines,
            default="auto",
            help="kernel: a module, legacy tables only; netlink: no module, all tables;"
            " bpf: no module, all tables, with processes and costs;"
            " auto: kernel and bpf, else bpf; netlink in place of bpf if that is refused",
        )
    else:
        parser.set_defaults(engine=engines[0])
    add_scope(parser)
    parser.add_argument(
        "--from-rules",
        action="store_true",
        help="trace only packets that rules mark, from that rule on: -j IPTTRACE, -j TRACE,"
        " nft's meta nftrace set 1; without EXPR",
    )
    parser.add_argument(
        "--buffer",
        type=size,
        metavar="SIZE",
        help="total size of the buffers (default: 64M; netlink: 128M; bpf: 32M)",
    )
    parser.add_argument(
        "--max-rate",
        type=count,
        metavar="N",
        help="disarm if more than N rows arrive per second, averaged over one second",
    )
    parser.add_argument(
        "--stop-after",
        type=count,
        metavar="N",
        help="disarm after N rows; rows already on their way still arrive,"
        " unlike with print --count",
    )
    if len(engines) > 1:
        parser.add_argument(
            "--no-drops",
            action="store_true",
            help="do not record packets dropped outside the tables",
        )
    else:
        parser.set_defaults(no_drops=False)
    parser.add_argument(
        "--stations",
        action="store_true",
        help="also record where packets are between the tables: devices, routes, sockets",
    )


def add_scope(parser: argparse.ArgumentParser) -> None:
    """What everything that traces has: where, how long, and how it shows addresses."""
    parser.add_argument(
        "--netns",
        metavar="NAME",
        help="trace only this network namespace, by name or by the pid of a process in it;"
        " all: every namespace",
    )
    parser.add_argument("--duration", type=positive, metavar="S", help="stop after S seconds")
    parser.add_argument("--ready-file", type=Path, metavar="F", help="write F once armed")
    parser.add_argument(
        "--raw-addresses",
        action="store_true",
        help="show the kernel's addresses instead of hashes of them",
    )


def add_sockets(parser: argparse.ArgumentParser) -> None:
    """The option of commands whose stream is kept."""
    parser.add_argument(
        "--sockets",
        action="store_true",
        help="also record stages of sockets: the screen's view 7 and"
        " `ipttrace sockets --file` show them",
    )


def add_until(parser: argparse.ArgumentParser) -> None:
    """The option of commands that trace and see rows."""
    parser.add_argument(
        "--until", metavar="QUERY", help="end with the first row that matches: 'verdict=DROP'"
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options of commands that write rows."""
    parser.add_argument("--query", metavar="QUERY", help="only rows that match: 'verdict=DROP'")
    parser.add_argument("--count", type=count, metavar="N", help="stop after N rows")


def add_show(parser: argparse.ArgumentParser, duration: str = "stop after S seconds") -> None:
    """The options of commands that bring their own network: lab and demo."""
    parser.add_argument(
        "--text", action="store_true", help="print rows as lines instead of opening the screen"
    )
    parser.add_argument("--duration", type=positive, metavar="S", help=duration)
    parser.add_argument(
        "--record", metavar="FILE", help="record the stream to FILE instead of showing it"
    )


def agent_arguments(options: argparse.Namespace) -> list[str]:
    """Returns the arguments of ``ipttrace agent`` that `options` amount to."""
    found = ["--engine", options.engine]
    for name in ("netns", "duration", "ready_file", "buffer", "max_rate", "stop_after"):
        value = getattr(options, name, None)
        if name == "ready_file" and options.ssh:
            continue  # the file is to be written on this host
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("from_rules", "raw_addresses", "no_drops", "stations", "sockets"):
        if getattr(options, name, False):
            found.append(f"--{name.replace('_', '-')}")
    return [*found, "--", *options.expr]


def check_expr(options: argparse.Namespace) -> None:
    """Raises BadUsage if libpcap rejects EXPR, or EXPR comes with --from-rules."""
    if not options.expr:
        return
    if getattr(options, "from_rules", False):  # the demo has its own rules
        raise BadUsage("--from-rules traces what rules mark: give no EXPR with it")
    from ipttrace.capture.filter import pcap

    try:
        pcap.compile(" ".join(options.expr))
    except pcap.FilterError as reason:
        raise BadUsage(str(reason)) from None


def problem_of_expr(expr: str) -> tuple[str, int] | None:
    """Returns what libpcap says against `expr`, and at which character; None if nothing."""
    from ipttrace.capture.filter import pcap

    try:
        pcap.compile(expr)
    except pcap.FilterError as reason:
        if reason.position is None and "libpcap is missing" in reason.message:
            return None  # the agent's host may have it
        return reason.message.removeprefix("filter: "), reason.position or 0
    return None


def compile_query(options: argparse.Namespace, name: str) -> None:
    """Replaces the text of option `name` by the compiled query.  Raises BadUsage."""
    text = getattr(options, name)
    if text is None:
        return
    from ipttrace.trace import query

    try:
        setattr(options, name, query.compile(text))
    except query.QueryError as reason:
        raise BadUsage(f"{reason}\n{reason.caret()}") from None
