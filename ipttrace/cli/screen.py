# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace [EXPR]`: the live screen on this host or on others.

`show`, which opens the screen on a source, is also what replay, lab and demo use.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ipttrace import __version__
from ipttrace.cli import commands, options, outcome, ssh
from ipttrace.cli.outcome import BadUsage, Failed
from ipttrace.cli.stdout import has_terminal

if TYPE_CHECKING:
    from ipttrace.trace.query import Query
    from ipttrace.tui.config.settings import Settings
    from ipttrace.tui.feed import Source


_COMMAND_LIKE: Final = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z]+)?")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace",
        description="Shows every iptables rule that every packet hits, live.",
        epilog=commands.epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ipttrace {__version__}")
    options.add_tracing(parser)
    options.add_sockets(parser)
    options.add_until(parser)
    ssh.add_options(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Shows the screen; returns the exit status."""
    parser = build_parser()
    _check_command(parser, argv)
    parsed = parser.parse_intermixed_args(argv)
    ssh.check(parser, parsed, several=True)
    options.compile_query(parsed, "until")
    if not has_terminal():
        raise BadUsage("the screen needs a terminal; use ipttrace print")
    options.check_expr(parsed)
    load_settings()
    if parsed.ssh:
        return _other_hosts(parsed)
    _check_netns(parsed.netns)
    return _this_host(parsed)


def _check_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Raises BadUsage if the first word was meant as a command rather than as part of EXPR."""
    if not argv or argv[0].startswith("-"):
        return
    # The options may be those of the command that was meant.
    parsed, _ = parser.parse_known_intermixed_args(argv)
    wrong = options.problem_of_expr(" ".join(parsed.expr))
    if wrong is None:
        return
    if (meant := commands.similar(argv[0])) is not None:
        raise BadUsage(f'no command "{argv[0]}"; did you mean "{meant}"?')
    message, at = wrong
    if _COMMAND_LIKE.fullmatch(argv[0]) and not at and message.endswith("syntax error"):
        raise BadUsage(
            f'no command "{argv[0]}", and no filter begins with it (see ipttrace --help)'
        )


def _check_netns(name: str | None) -> None:
    """Raises Failed if this host has no network namespace `name`: before the screen opens."""
    from ipttrace.capture import netns

    if name is None or name == netns.ALL:
        return
    if os.geteuid() and (name.isdigit() or "/" in name):
        return  # only the agent may look at the namespace of any process
    if problem := netns.problem(name):
        raise Failed(problem)


def _this_host(parsed: argparse.Namespace) -> int:
    from ipttrace.link.base import STOP
    from ipttrace.link.local import LocalLink
    from ipttrace.tui.feed import StreamSource

    with tempfile.TemporaryFile() as stderr:
        link = LocalLink(["--unchecked", *options.agent_arguments(parsed)], stderr=stderr)
        source = StreamSource(link.stream, link.control, name="this host", farewell=STOP)
        agent = outcome.DONE

        def words() -> int:
            nonlocal agent
            agent = link.close()
            return outcome.print_kept(stderr)

        status = show(source, "this host", until=parsed.until, words=words, here=True)
        return status or max(agent, 0)


def _other_hosts(parsed: argparse.Namespace) -> int:
    with ssh.remote_agents(parsed, options.agent_arguments(parsed), quiet=True) as links:
        title = links[0].host if len(links) == 1 else f"{len(links)} hosts"
        status = show(ssh.sources(links), title, until=parsed.until)
        agents = max([link.close() for link in links])
        printed = [link.print_kept(alone=len(links) == 1) for link in links]
        return status or agents or int(any(printed))


def load_settings() -> Settings:
    """Returns the user's settings.  Raises BadUsage.

    To be called before anything is started, too: a mistake is then found at once.
    """
    from ipttrace.tui.config import file
    from ipttrace.tui.config.settings import Settings
    from ipttrace.tui.config.toml import ConfigError

    path = file.path(os.environ)
    if path is None or not os.path.lexists(path):
        return Settings()  # without the imports below, which take a while
    from ipttrace.tui.app import configuration

    try:
        return configuration.load()
    except ConfigError as error:
        raise BadUsage(str(error)) from None


def show(
    source: Source | Sequence[Source],
    title: str,
    *,
    until: Query | None = None,
    shown: Query | None = None,
    words: Callable[[], int] | None = None,
    here: bool = False,
) -> int:
    """Opens the screen on `source`, then prints the summary; returns the exit status.

    `until`: disarm at the first row that matches; `shown`: the query to begin with;
    `words`: ends the agent, prints what it wrote to stderr, and returns FAILED if that
    was anything; `here`: the stream is of this host, as it is now.
    """
    settings = load_settings()
    from ipttrace.cli.asking import AskHere
    from ipttrace.tui.app import TraceApp
    from ipttrace.view.writer import summary

    app = TraceApp(
        source,
        title=title,
        until=until,
        shown=shown,
        check_expr=options.problem_of_expr,
        settings=settings,
        ask_rules=AskHere() if here else None,
    )
    figures = app.run()
    failed = outcome.DONE if words is None else words()
    if figures is None:
        return failed or app.return_code or outcome.FAILED
    if failed and not figures.get("engine"):
        return failed  # nothing was traced, and the agent has said why
    if figures.get("error"):
        outcome.error(figures["error"])
    print(summary(figures), file=sys.stderr)
    return outcome.FAILED if figures.get("error") else failed
