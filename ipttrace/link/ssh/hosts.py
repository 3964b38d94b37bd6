# SPDX-License-Identifier: GPL-2.0-only
"""Agents on several hosts, started together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from ipttrace.link.base import LinkError
from ipttrace.link.ssh.command import check_host
from ipttrace.link.ssh.passwords import Passwords
from ipttrace.link.ssh.session import SshLink
from ipttrace.text import clean


class SshLinks:
    """A context that ends all its agents."""

    def __init__(
        self, hosts: Sequence[str], program: Sequence[str], arguments: Sequence[str]
    ) -> None:
        """Checks the hosts; starts nothing.  For the arguments see `ssh_command`.

        Raises LinkError if a host is not valid or is given twice.
        """
        for host in hosts:
            check_host(host)
        twice = [host for number, host in enumerate(hosts) if host in hosts[:number]]
        if twice:
            raise LinkError(f"--ssh {clean(twice[0])}: this host is given twice")
        self._hosts = hosts
        self._program = program
        self._arguments = arguments
        self._links: list[SshLink] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.abort()
        for link in self._links:
            link.close()

    def __iter__(self) -> Iterator[SshLink]:
        return iter(self._links)

    def start(self, *, quiet: bool) -> list[SshLink]:
        """Brings all agents to the beginning of their streams; asks for passwords.

        `quiet`: see `SshLink.begin`.  Raises LinkError if one of them fails.
        """
        for host in self._hosts:
            link = SshLink(host, self._program, self._arguments)
            self._links.append(link)
            link.log_in()
        with_sudo = [link for link in self._links if link.needs_sudo]
        for link in with_sudo:
            link.start_agent()
        passwords = Passwords()
        answers = [(link, passwords.ask(link.host)) for link in with_sudo if link.wants_password()]
        for link, password in answers:
            link.send_password(password)
        # Agents that need no sudo trace from here on; typing takes time, so they come last.
        for link in self._links:
            if not link.needs_sudo:
                link.start_agent()
        for link in self._links:
            while link.wants_password():
                link.send_password(passwords.ask(link.host))
        for link in self._links:
            link.begin(quiet=quiet)
        return self._links
