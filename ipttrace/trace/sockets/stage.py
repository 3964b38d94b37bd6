# SPDX-License-Identifier: GPL-2.0-only
"""One stage of a socket, as views show it.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.stream import record

End = tuple[str, int]
"""An address and a port."""

TCP: Final = 6
UDP: Final = 17
WOULD_DENY: Final = "would deny"
"""The name of a stage of `ipttrace guard --dry-run`."""
PROTOCOLS: Final = {TCP: "TCP", UDP: "UDP"}


@dataclass(frozen=True, slots=True)
class Denial:
    """Which rule of a guard denies a call."""

    call: str  # connect, accept, receive
    rule: int  # from 1
    text: str  # "": unknown
    dry: bool  # it only would be denied


@dataclass(frozen=True, slots=True)
class Process:
    """A process; 0, "" and None: unknown."""

    pid: int = 0  # in the initial pid namespace
    tid: int = 0
    comm: str = ""
    exe: str = ""
    uid: int | None = None
    pids: tuple[int, ...] = ()  # in all pid namespaces that it is in, from the initial one on
    tids: tuple[int, ...] = ()
    runtime: str = ""  # docker, podman …
    container: str = ""  # id
    pod: str = ""  # uid
    unit: str = ""  # of systemd
    others: int = 0  # further processes that have the socket
    denial: Denial | None = None  # by a guard, of the stage that refers to this


@dataclass(frozen=True, slots=True)
class Stage:
    """What happened to a socket, with what earlier stages of its connection have shown."""

    time: int  # ns since the epoch
    stage: int  # record.LISTENING …
    connection: int  # a number, from 1 on; 0: it is of a listener, or of a port
    netns: int  # inode
    family: int  # 4, 6
    protocol: int  # IPPROTO_*
    flags: int  # record.SK_F_*
    local: End
    remote: End | None  # None: it has no peer
    sk: int = 0  # addresses, 0: unknown or none
    listener: int = 0
    request: int = 0
    process: Process | None = None  # that called; else the one that has the listener
    called: bool = False  # whether it is the former
    original: End | None = None  # whom the client has called, before DNAT
    answers: End | None = None  # who answers the client, after DNAT
    queue: int | None = None  # accept queue
    queue_most: int | None = None
    requests: int | None = None
    error: int = 0  # errno
    server: bool | None = None  # whether this end is the one that was called; None: unknown
    since: int | None = None  # ns from the connection's stage before this one
    repeated: int = 0  # how often this stage was there before
    denial: Denial | None = None  # by a guard

    @property
    def name(self) -> str:
        """The stage, as views show it; "unknown" for one that this version does not know."""
        if self.is_allowed:
            return WOULD_DENY
        known = 0 < self.stage < len(record.STAGES)
        return record.STAGES[self.stage] if known else "unknown"

    @property
    def protocol_name(self) -> str:
        """TCP, UDP, or the number."""
        return PROTOCOLS.get(self.protocol, str(self.protocol))

    @property
    def is_allowed(self) -> bool:
        """Whether it is a call that a guard only would deny."""
        return self.denial is not None and self.denial.dry

    def has(self, flag: int) -> bool:
        """Whether a flag of record.SK_F_* is set."""
        return bool(self.flags & flag)
