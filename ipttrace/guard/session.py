# SPDX-License-Identifier: GPL-2.0-only
"""The ssh connection through which the command was given, and the rules that would cut it off.

sudo removes SSH_CONNECTION from the environment; the shell above it still has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipttrace.guard import conditions, layout
from ipttrace.guard.policy import Call, first_rule
from ipttrace.guard.rules import Rule

_NAME: Final = b"SSH_CONNECTION="
_MOST_PARENTS: Final = 64
_SERVERS: Final = ("sshd", "sshd-session", "sshd-auth")


@dataclass(frozen=True, slots=True)
class Session:
    """Addresses as numbers of 128 bits."""

    client: int
    client_port: int
    server: int
    server_port: int


def find(pid: int | None = None, proc: Path = Path("/proc")) -> Session | None:
    """The connection of this process, by its environment or one of those above it."""
    at = os.getpid() if pid is None else pid
    for _ in range(_MOST_PARENTS):
        if at <= 1:
            return None
        try:
            environment = (proc / str(at) / "environ").read_bytes()
            status = (proc / str(at) / "stat").read_bytes()
        except OSError:
            return None
        for one in environment.split(b"\0"):
            if one.startswith(_NAME) and (found := _read(one[len(_NAME) :])):
                return found
        # Behind the name, which may contain anything: the state, and the parent.
        at = int(status.rpartition(b")")[2].split()[1])
    return None


def _read(value: bytes) -> Session | None:
    try:
        client, client_port, server, server_port = value.decode().split()
        return Session(
            conditions.number_of(client.partition("%")[0]),
            int(client_port),
            conditions.number_of(server.partition("%")[0]),
            int(server_port),
        )
    except ValueError:
        return None


def cut_off_by(rules: Sequence[Rule], session: Session) -> Rule | None:
    """The rule that would deny what the server does for this session, or its next connection."""
    for call in (layout.RECEIVE, layout.ARRIVAL, layout.ACCEPT):
        for comm in _SERVERS:
            # A listening socket has often no address of its own.
            for local in (session.server, 0):
                asked = Call(
                    call=call,
                    remote=0 if call == layout.ACCEPT else session.client,
                    remote_port=0 if call == layout.ACCEPT else session.client_port,
                    local=local,
                    local_port=session.server_port,
                    comm=conditions.comm(comm)[0][0],
                )
                found = first_rule(rules, asked)
                if found is not None and rules[found].denies:
                    return rules[found]
    return None
