# SPDX-License-Identifier: GPL-2.0-only
"""The ssh connection through which the command was given, and the rules that would cut it off.

sudo removes SSH_CONNECTION from the environment; the shell above it still has it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

from ipttrace.capture.containers import Container, identify
from ipttrace.guard import conditions, layout
from ipttrace.guard.policy import Call, first_rule
from ipttrace.guard.rules import Rule

_NAME: Final = b"SSH_CONNECTION="
_MOST_PARENTS: Final = 64
_SERVERS: Final = ("sshd", "sshd-session", "sshd-auth")


@dataclass(frozen=True, slots=True)
class Session:
    """The ends of the connection, and what may be asked of the server's processes.

    Addresses are numbers of 128 bits.
    """

    client: int
    client_port: int
    server: int
    server_port: int
    uids: tuple[int, ...] = (0,)
    containers: tuple[Container, ...] = ()


def find(pid: int | None = None, proc: Path = Path("/proc")) -> Session | None:
    """The connection of this process, by its environment or one of those above it."""
    at = os.getpid() if pid is None else pid
    found: Session | None = None
    uids = {0}
    containers = set()
    for _ in range(_MOST_PARENTS):
        folder = proc / str(at)
        try:
            environment = (folder / "environ").read_bytes()
            status = (folder / "stat").read_bytes()
            uids.add(folder.stat().st_uid)
        except OSError:
            break
        with contextlib.suppress(OSError):
            path = (folder / "cgroup").read_text(errors="replace").strip()
            containers.add(identify(path.rpartition(":")[2]))
        for one in environment.split(b"\0"):
            if found is None and one.startswith(_NAME):
                found = _read(one[len(_NAME) :])
        # Behind the name, which may contain anything: the state, and the parent.
        at = int(status.rpartition(b")")[2].split()[1])
        if at <= 1:
            break
    if found is None:
        return None
    return replace(found, uids=tuple(sorted(uids)), containers=tuple(containers))


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
    named = {one for rule in rules for one in rule.containers or ()}
    containers = tuple(
        one for one in named if any(each.is_named(one) for each in session.containers)
    )
    calls = (layout.RECEIVE, layout.ARRIVAL, layout.ACCEPT)
    # A listening socket has often no address of its own.
    ends = (session.server, 0)
    for call, comm, local, uid in product(calls, _SERVERS, ends, session.uids):
        asked = Call(
            call=call,
            remote=0 if call == layout.ACCEPT else session.client,
            remote_port=0 if call == layout.ACCEPT else session.client_port,
            local=local,
            local_port=session.server_port,
            uid=uid,
            comm=conditions.comm(comm)[0][0],
            containers=containers,
        )
        found = first_rule(rules, asked)
        if found is not None and rules[found].denies:
            return rules[found]
    return None
