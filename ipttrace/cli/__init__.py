# SPDX-License-Identifier: GPL-2.0-only
"""The commands: parse, call, exit status.

What a command does is elsewhere; imports are inside the commands, so that
`agent` pays for no screen and `replay` for no kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

from ipttrace import __version__
from ipttrace.cli import ssh as cli_ssh

if TYPE_CHECKING:
    from ipttrace.lab.demo import Demo
    from ipttrace.trace.query import Query
    from ipttrace.view.output import Output

COMMANDS: Final = ("print", "record", "replay", "export", "agent", "lab", "demo", "doctor")
FORMATS: Final = ("text", "csv", "jsonl", "pcapng")

EPILOG: Final = """commands:
  ipttrace [EXPR]                    the live screen on this host
  ipttrace --ssh HOST [EXPR]         the same of another host, or of several
  ipttrace print [EXPR]              rows as lines
  ipttrace record FILE [EXPR]        the stream to a file
  ipttrace replay FILE               a recorded file on the screen, or as lines
  ipttrace export FILE --format F    a recorded file as text, csv, jsonl or pcapng
  ipttrace lab [-- COMMAND ...]      the screen on a throwaway VM with traffic in it
  ipttrace demo                      the screen on a small network apart from this host's
  ipttrace doctor                    what this machine can do, and what it lacks
  ipttrace agent                     the privileged half: the stream on stdout

EXPR is a pcap-filter(7) expression, evaluated in the kernel: 'tcp port 443'.
`ipttrace COMMAND --help` tells the options of a command."""


class _Parser(argparse.ArgumentParser):
    """One clear line instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"ipttrace: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _size(text: str) -> int:
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    factor = units.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    value = int(digits) * factor
    if value < 65536:
        raise argparse.ArgumentTypeError("must be 64k or more")
    return value


def _traces(parser: argparse.ArgumentParser) -> None:
    """The options of everything that traces."""
    parser.add_argument(
        "expr", nargs="*", default=[], metavar="EXPR", help="pcap-filter expression"
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "kernel", "netlink"),
        default="auto",
        help="kernel: a module, for legacy tables; netlink: none, for all; auto: what can run",
    )
    parser.add_argument(
        "--netns",
        metavar="NAME",
        help="only this network namespace, by name or the pid of a process in it; all: every one",
    )
    parser.add_argument("--duration", type=_positive, metavar="S", help="stop after S seconds")
    parser.add_argument("--ready-file", type=Path, metavar="F", help="written once armed")
    parser.add_argument(
        "--buffer", type=_size, metavar="SIZE", help="buffers in all (64M; netlink: 128M)"
    )
    parser.add_argument(
        "--max-rate",
        type=_count,
        metavar="N",
        help="disarm when more than N rows a second come, averaged over one second",
    )
    parser.add_argument(
        "--stop-after",
        type=_count,
        metavar="N",
        help="disarm once N rows have come; those on their way come too, see --count of print",
    )


def _ends(parser: argparse.ArgumentParser) -> None:
    """The options of everything that traces and sees rows."""
    parser.add_argument(
        "--until", metavar="QUERY", help="end with the first row like this: 'verdict=DROP'"
    )


def _agent_arguments(options: argparse.Namespace) -> list[str]:
    found = ["--engine", options.engine]
    for name in ("netns", "duration", "ready_file", "buffer", "max_rate", "stop_after"):
        value = getattr(options, name)
        if name == "ready_file" and options.ssh:
            continue  # it is meant for whoever waits here
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return [*found, "--", *options.expr]


def _expr_is_good(options: argparse.Namespace) -> bool:
    """Says what is wrong with EXPR before anything is started."""
    from ipttrace.capture.filter import pcap as pcapfilter

    try:
        pcapfilter.compile(" ".join(options.expr))
    except pcapfilter.FilterError as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return False
    return True


def _screen(argv: list[str]) -> int:
    parser = _Parser(
        prog="ipttrace",
        description="Every iptables rule that every packet hits, live.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ipttrace {__version__}")
    _traces(parser)
    _ends(parser)
    cli_ssh.add_options(parser)
    options = parser.parse_intermixed_args(argv)
    cli_ssh.check(parser, options, several=True)
    if not _understood(options, "until"):
        return 2
    # Textual draws on stderr.
    if not (os.isatty(0) and os.isatty(1) and os.isatty(2)):
        print("ipttrace: the screen needs a terminal: use ipttrace print", file=sys.stderr)
        return 2
    if not _expr_is_good(options):
        return 2
    if options.ssh:
        return _screen_of_hosts(options)
    import tempfile

    from ipttrace.link import STOP, AgentLink
    from ipttrace.tui.feed.source import StreamSource

    with tempfile.TemporaryFile() as said:
        link = AgentLink(["--unchecked", *_agent_arguments(options)], stderr=said)
        source = StreamSource(link.stream, link.control, name="this host", farewell=STOP)
        status = _show(source, "this host", until=options.until)
        ended = link.close()
        return _repeat(said) or status or max(ended, 0)


def _screen_of_hosts(options: argparse.Namespace) -> int:
    with cli_ssh.far_agents(options, _agent_arguments(options), quiet=True) as links:
        title = links[0].host if len(links) == 1 else f"{len(links)} hosts"
        status = _show(cli_ssh.sources(links), title, until=options.until)
        ended = max([link.close() for link in links])
        said = [link.repeat(alone=len(links) == 1) for link in links]
        return status or ended or int(any(said))


def _repeat(said: IO[bytes]) -> int:
    """What the agent said while the screen was up; 1 if that was something."""
    said.seek(0)
    text = said.read().decode(errors="replace").strip()
    if text:
        print(text, file=sys.stderr)
    return 1 if text else 0


def _show(
    source: object, title: str, until: Query | None = None, shown: Query | None = None
) -> int:
    from ipttrace.tui.app import TraceApp
    from ipttrace.view.writer import summary

    app = TraceApp(source, title=title, until=until, shown=shown)  # type: ignore[arg-type]
    figures = app.run()
    if figures is None:
        return app.return_code or 1
    if figures.get("error"):
        print(f"ipttrace: {figures['error']}", file=sys.stderr)
    print(summary(figures), file=sys.stderr)
    return 1 if figures.get("error") else 0


def _view(name: str, names: dict[int, str]) -> Output:
    """What writes format `name` to stdout."""
    from ipttrace.view import formats, text

    return formats.output(
        name,
        names,
        columns=shutil.get_terminal_size().columns if os.isatty(1) else None,
        colour=text.colour_wanted(1, os.environ),
    )


def _picks(parser: argparse.ArgumentParser) -> None:
    """The options of everything that writes rows."""
    parser.add_argument("--query", metavar="QUERY", help="only rows like these: 'verdict=DROP'")
    parser.add_argument("--count", type=_count, metavar="N", help="stop after N rows")


def _can_write(options: argparse.Namespace) -> bool:
    """Says why rows cannot be written so; --query is understood after it."""
    if options.format == "pcapng" and os.isatty(1):
        print("ipttrace: packets are nothing for a terminal: redirect them", file=sys.stderr)
        return False
    return _understood(options, "query")


def _understood(options: argparse.Namespace, name: str) -> bool:
    """Compiles the query that is option `name`, or says what is wrong with it."""
    text = getattr(options, name)
    if text is None:
        return True
    from ipttrace.trace import query

    try:
        setattr(options, name, query.compile(text))
    except query.QueryError as error:
        print(f"ipttrace: {error}\n{error.caret()}", file=sys.stderr)
        return False
    return True


def _print(argv: list[str]) -> int:
    parser = _Parser(prog="ipttrace print", description="Rows as lines on stdout, as they come.")
    _traces(parser)
    cli_ssh.add_options(parser)
    _ends(parser)
    parser.add_argument("--format", choices=FORMATS, default="text")
    _picks(parser)
    options = parser.parse_intermixed_args(argv)
    cli_ssh.check(parser, options, several=False)
    if not _can_write(options) or not _understood(options, "until") or not _expr_is_good(options):
        return 2
    names: dict[int, str] = {}
    arguments = [*([] if options.ssh else ["--unchecked"]), *_agent_arguments(options)]
    with cli_ssh.one_agent(options, arguments) as link:
        # Beside the agent's start, which takes longer.
        from ipttrace.cli.pump import Pump

        view = _view(options.format, names)
        pump = Pump(
            view,
            count=options.count,
            query=options.query,
            until=options.until,
            stop=link.stop,
            names=names,
        )
        return _ended(pump.run(link.stream), link.close(), bool(pump.trace.hello))


def _ended(status: int, agent: int, armed: bool) -> int:
    """The exit status of a command from its own and its agent's."""
    if agent < 0:
        print("ipttrace: the agent was killed", file=sys.stderr)
        return 1
    if status == 1 and not armed:
        return agent or 1
    return status or (agent if agent != 130 else 0)


def _record(argv: list[str]) -> int:
    parser = _Parser(prog="ipttrace record", description="The stream to a file.")
    parser.add_argument("file", metavar="FILE", help="- is stdout")
    _traces(parser)
    cli_ssh.add_options(parser)
    _ends(parser)
    options = parser.parse_intermixed_args(argv)
    cli_ssh.check(parser, options, several=False)
    if not _understood(options, "until") or not _expr_is_good(options):
        return 2
    from ipttrace.cli.pump import Pump, Recording

    if options.file == "-" and os.isatty(1):
        print("ipttrace: a stream is nothing for a terminal: name a file", file=sys.stderr)
        return 2
    try:
        file = Recording(options.file)
    except OSError as error:
        print(f"ipttrace: {options.file}: {error.strerror}", file=sys.stderr)
        return 1
    with (
        contextlib.closing(file),
        cli_ssh.one_agent(options, _agent_arguments(options)) as link,
    ):
        pump = Pump(None, copy=file, until=options.until, stop=link.stop, names={})
        status = pump.run(link.stream)
        return _ended(status, link.close(), bool(pump.trace.hello))


def _file(argv: list[str], name: str) -> int:
    """replay and export."""
    parser = _Parser(prog=f"ipttrace {name}", description="A recorded file, as rows.")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--format", choices=FORMATS, default=None if name == "replay" else "csv")
    _picks(parser)
    options = parser.parse_args(argv)
    screen = name == "replay" and options.format is None and os.isatty(1) and os.isatty(0)
    if screen and options.count is not None:
        parser.error("--count is for rows as lines: add --format")
    if not _can_write(options):
        return 2
    try:
        if screen:
            from ipttrace.tui.feed.source import FileSource

            return _show(FileSource(options.file), options.file.name, shown=options.query)
        from ipttrace.cli.pump import Pump

        names: dict[int, str] = {}
        view = _view(options.format or "text", names)
        with open(options.file, "rb", buffering=0) as file:
            pump = Pump(view, count=options.count, query=options.query, names=names)
            return pump.run(file)
    except OSError as error:
        print(f"ipttrace: {options.file}: {error.strerror}", file=sys.stderr)
        return 1


def _agent(argv: list[str]) -> int:
    parser = _Parser(prog="ipttrace agent", description="The stream on stdout.")
    _traces(parser)
    parser.add_argument(
        "--control", action="store_true", help="stdin is the control line; its end ends the agent"
    )
    parser.add_argument("--maxactive", type=_count, metavar="N", help="calls traced at a time")
    # For whoever reads a pipe on this host and keeps nothing of it as it is.
    parser.add_argument("--unchecked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--lab", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not _expr_is_good(options):
        return 2
    from ipttrace.capture.agent import main
    from ipttrace.capture.request import Request

    out, control = 1, 0 if options.control else None
    if options.port:
        from ipttrace.lab.vm.port import open_stream_port

        out = control = open_stream_port()
    elif os.isatty(1):
        print("ipttrace: a stream is nothing for a terminal: redirect it", file=sys.stderr)
        return 2
    request = Request(
        expr=" ".join(options.expr),
        engine=options.engine,
        netns=options.netns,
        buffer=options.buffer,
        maxactive=options.maxactive,
        duration=options.duration,
        ready_file=options.ready_file,
        max_rate=options.max_rate,
        stop_after=options.stop_after,
        checked=not options.unchecked,
    )
    if not options.lab:
        return main(request, out, control)
    from ipttrace.lab.guest import lab_traffic

    with lab_traffic():
        return main(request, out, control)


def _lab(argv: list[str]) -> int:
    parser = _Parser(
        prog="ipttrace lab",
        description="A throwaway VM: the screen on its traffic, or COMMAND as root in it.",
    )
    parser.add_argument("--kernel", default="6.1", metavar="RELEASE", help="6.1, 6.12, …")
    parser.add_argument("--text", action="store_true", help="rows as lines instead of the screen")
    parser.add_argument("--duration", type=_positive, metavar="S", help="stop after S seconds")
    parser.add_argument("--record", metavar="FILE", help="the stream to a file, instead")
    own, dashes, command = argv, "", []
    if "--" in argv:
        at = argv.index("--")
        own, dashes, command = argv[:at], "--", argv[at + 1 :]
    options = parser.parse_args(own)
    if dashes and not command:
        parser.error("-- is followed by the command to run in the guest")
    from ipttrace.lab import guest

    if command:
        return guest.run(options.kernel, command)
    if not (os.isatty(0) and os.isatty(1) and os.isatty(2)):
        options.text = True
    with guest.traced(options.kernel, options.duration) as (machine, said):
        if options.text or options.record:
            from ipttrace.cli.pump import Pump, Recording

            names: dict[int, str] = {}
            view = None if options.record else _view("text", names)
            copy = Recording(options.record) if options.record else None
            pump = Pump(view, copy=copy, stop=machine.ask_stop, names=names)
            status = pump.run(machine.socket) or (0 if pump.rows else 1)
            began = bool(pump.trace.hello) or pump.interrupted
        else:
            from ipttrace.link import STOP
            from ipttrace.tui.feed.source import StreamSource

            source = StreamSource(machine.socket, machine.socket, name="lab", farewell=STOP)
            machine.tell(source)
            status = _show(source, f"lab VM, Linux {machine.release}")
            began = True
        machine.stop()
        said_why = _repeat(said)
        if not began and not said_why:
            print("ipttrace: the VM ended before anything was traced", file=sys.stderr)
        return said_why or status


def _demo(argv: list[str]) -> int:
    parser = _Parser(
        prog="ipttrace demo",
        description="A small network with rules and traffic, apart from this host's, traced live.",
    )
    parser.add_argument(
        "expr", nargs="*", default=[], metavar="EXPR", help="pcap-filter expression"
    )
    parser.add_argument("--text", action="store_true", help="rows as lines instead of the screen")
    parser.add_argument(
        "--duration", type=_positive, metavar="S", help="stop after S seconds (no terminal: 15)"
    )
    parser.add_argument("--record", metavar="FILE", help="the stream to a file, instead")
    options = parser.parse_intermixed_args(argv)
    if options.record == "-" and os.isatty(1):
        parser.error("a stream is nothing for a terminal: name a file")
    if not os.isatty(1) and options.duration is None:
        options.duration = 15.0
    if options.expr and not _expr_is_good(options):
        return 2
    lines = options.text or not (os.isatty(0) and os.isatty(1) and os.isatty(2))
    import tempfile

    from ipttrace.lab import demo

    expr, checked = " ".join(options.expr), bool(options.record)
    with contextlib.ExitStack() as stack:
        said = None if lines or checked else stack.enter_context(tempfile.TemporaryFile())
        # First of all: what it does goes on beside the imports here.
        try:
            running = demo.running(expr, options.duration, checked=checked, said=said)
            here = stack.enter_context(running)
        except demo.SpaceError as error:
            print(f"ipttrace: {error}", file=sys.stderr)
            return 1
        if said is None:
            status = _demo_lines(here, options.record)
        else:
            from ipttrace.link import STOP
            from ipttrace.tui.feed.source import StreamSource

            source = StreamSource(here.stream, here.control, name="demo", farewell=STOP)
            source.progress = "a small network comes up"
            status = _show(source, f"demo: {demo.PUZZLE}")
        ended = here.close()
        return (_repeat(said) if said is not None else 0) or _ended(status, ended, True)


def _demo_lines(demo: Demo, record: str | None) -> int:
    from ipttrace.cli.pump import Pump, Recording

    names: dict[int, str] = {}
    try:
        copy = Recording(record) if record else None
    except OSError as error:
        print(f"ipttrace: {record}: {error.strerror}", file=sys.stderr)
        return 1
    with contextlib.closing(copy) if copy else contextlib.nullcontext():
        view = None if record else _view("text", names)
        pump = Pump(view, copy=copy, stop=demo.stop, names=names)
        return pump.run(demo.stream) or (0 if pump.rows else 1)


def _doctor(argv: list[str]) -> int:
    _Parser(prog="ipttrace doctor", description="What this machine can do.").parse_args(argv)
    from ipttrace.capture import doctor

    return doctor.run()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv and argv[0] in COMMANDS else ""
    rest = argv[1:] if command else argv
    from ipttrace.link import LinkError

    try:
        if command in ("replay", "export"):
            return _file(rest, command)
        run = {
            "": _screen,
            "print": _print,
            "record": _record,
            "agent": _agent,
            "lab": _lab,
            "demo": _demo,
            "doctor": _doctor,
        }[command]
        return run(rest)
    except LinkError as error:
        if not error.said:
            print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
