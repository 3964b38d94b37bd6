# SPDX-License-Identifier: GPL-2.0-only
"""The options for other hosts, and the agents that a command has there or here.

How an agent is started on another host is in link/ssh/.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipttrace import files
from ipttrace.cli import interrupts
from ipttrace.link.base import LinkError

if TYPE_CHECKING:
    from ipttrace.link.base import Link
    from ipttrace.link.ssh.session import SshLink
    from ipttrace.tui.feed import Source


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that can trace other hosts."""
    parser.add_argument(
        "--ssh",
        type=_host,
        action="append",
        metavar="HOST",
        help="trace HOST over ssh instead of this host; the screen accepts several",
    )
    parser.add_argument(
        "--remote-command",
        type=_words,
        metavar="CMD",
        help="the ipttrace command on HOST, if it is not in the PATH there",
    )


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, *, several: bool) -> None:
    """Exits with bad usage if the options contradict each other."""
    hosts = options.ssh or []
    if options.remote_command is not None and not hosts:
        parser.error("--remote-command is for other hosts; add --ssh HOST")
    if len(hosts) > 1 and not several:
        parser.error("--ssh: one host at a time; only the screen accepts several")
    for number, host in enumerate(hosts):
        if host in hosts[:number]:
            parser.error(f"--ssh: {host} is given twice")


def _host(text: str) -> str:
    from ipttrace.link.ssh.command import check_host

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
def remote_agents(
    options: argparse.Namespace, arguments: Sequence[str], *, quiet: bool
) -> Iterator[list[SshLink]]:
    """The agents on the hosts of --ssh, their streams begun; ended with the context.

    `arguments`: those of ``ipttrace agent``; `quiet`: their stderr is kept, not
    printed.  Raises LinkError.
    """
    from ipttrace.link.ssh.hosts import SshLinks

    with SshLinks(options.ssh, options.remote_command or ["ipttrace"], arguments) as links:
        started = links.start(quiet=quiet)
        # A stream begins once its agent is armed.
        if options.ready_file is not None:
            try:
                files.write(options.ready_file, b"%d\n" % os.getpid())
            except OSError as error:
                raise LinkError(f"{options.ready_file}: {error.strerror}") from error
        yield started


@contextmanager
def one_agent(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Link]:
    """The agent of a command that traces one host, this one or another.  Raises LinkError."""
    if not options.ssh:
        from ipttrace.link.local import LocalLink

        link = LocalLink(arguments)
        with interrupts.held():
            yield link
        return
    with remote_agents(options, arguments, quiet=False) as links, interrupts.held():
        yield links[0]


def sources(links: Sequence[SshLink]) -> list[Source]:
    """Returns the sources of the screen for `links`."""
    from ipttrace.tui.feed.host_source import HostSource

    return [
        HostSource(link.stream, link.control, name=link.host, broke=link.failure) for link in links
    ]
