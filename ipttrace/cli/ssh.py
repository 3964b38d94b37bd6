# SPDX-License-Identifier: GPL-2.0-only
"""What the commands have for other hosts: --ssh and what goes with it.

How an agent is started there is in link/ssh.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipttrace.link import AgentLink, LinkError

if TYPE_CHECKING:
    from ipttrace.link.ssh import SshLink
    from ipttrace.tui.feed.source import Source


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of everything that traces other hosts."""
    parser.add_argument(
        "--ssh",
        type=_host,
        action="append",
        metavar="HOST",
        help="trace HOST, over ssh, instead of this host; may be given again, for the screen",
    )
    parser.add_argument(
        "--remote-command",
        type=_words,
        metavar="CMD",
        help="what ipttrace is called on HOST, where it is not in the PATH there",
    )


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, *, several: bool) -> None:
    """Ends with bad usage where the options cannot go together."""
    hosts = options.ssh or []
    if options.remote_command is not None and not hosts:
        parser.error("--remote-command is for other hosts: add --ssh HOST")
    if len(hosts) > 1 and not several:
        parser.error("--ssh: one host at a time here; the screen takes several")
    for number, host in enumerate(hosts):
        if host in hosts[:number]:
            parser.error(f"--ssh: {host} is named twice")


def _host(text: str) -> str:
    from ipttrace.link.ssh import check_host

    try:
        check_host(text)
    except LinkError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}".lower()) from None
    if not words or not words[0]:
        raise argparse.ArgumentTypeError("must name a command")
    return words


@contextmanager
def far_agents(
    options: argparse.Namespace, arguments: Sequence[str], *, quiet: bool
) -> Iterator[list[SshLink]]:
    """The agents on the hosts of --ssh, their streams begun; gone with the context.

    `arguments`: of ``ipttrace agent``; `quiet`: what they say is kept.  Raises
    LinkError.
    """
    from ipttrace.link.ssh import SshLinks

    with SshLinks(options.ssh, options.remote_command or ["ipttrace"], arguments) as links:
        started = links.start(quiet=quiet)
        # A stream begins once its agent is armed.
        if options.ready_file is not None:
            try:
                options.ready_file.write_text(f"{os.getpid()}\n")
            except OSError as error:
                raise LinkError(f"{options.ready_file}: {error.strerror}") from error
        yield started


@contextmanager
def one_agent(
    options: argparse.Namespace, arguments: Sequence[str]
) -> Iterator[AgentLink | SshLink]:
    """The agent of a command that traces one host: this one or another.  Raises LinkError."""
    if not options.ssh:
        yield AgentLink(arguments)
        return
    with far_agents(options, arguments, quiet=False) as links:
        yield links[0]


def sources(links: Sequence[SshLink]) -> list[Source]:
    """What the screen reads of these."""
    from ipttrace.tui.feed.host_source import HostSource

    return [
        HostSource(link.stream, link.control, name=link.host, broke=link.broke) for link in links
    ]
