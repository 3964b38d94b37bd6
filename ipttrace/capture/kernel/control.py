# SPDX-License-Identifier: GPL-2.0-only
"""Controls the module over generic netlink (kmod/uapi/ipttrace.h)."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_GENERIC,
    NLM_F_ACK,
    NLM_F_REQUEST,
    SOL_NETLINK,
    genlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ipttrace.capture.errors import CaptureError
from ipttrace.netfilter import IP_VERSIONS

FAMILY: Final = "ipttrace"

CMD_ARM: Final = 1
CMD_DISARM: Final = 2
CMD_GET: Final = 3
CMD_FILTER: Final = 4
CMD_CHANGED: Final = 6

GROUP_RULES: Final = "rules"
# Bits of TARGETS: the functions that are probed, and whether rule changes are watched.
_TARGETS: Final = 3
_TARGET_RULES: Final = 4

_RCVBUFFORCE: Final = 33  # SO_RCVBUFFORCE of socket(7)
_ROOM: Final = 1 << 20

STATES: Final = ("idle", "armed", "draining")


class Message(genlmsg):  # type: ignore[misc]
    """A message of the family, as pyroute2 declares them: attributes by number."""

    prefix = "IPTTRACE_A_"
    nla_map = (
        ("IPTTRACE_A_UNSPEC", "none"),
        ("IPTTRACE_A_PAD", "none"),
        ("IPTTRACE_A_PROG_CALL", "asciiz"),
        ("IPTTRACE_A_PROG_RULE", "asciiz"),
        ("IPTTRACE_A_FILTER", "cdata"),
        ("IPTTRACE_A_NETNS", "uint32"),
        ("IPTTRACE_A_MAXACTIVE", "uint32"),
        ("IPTTRACE_A_STATE", "uint32"),
        ("IPTTRACE_A_VERSION", "uint32"),
        ("IPTTRACE_A_OWNER_PID", "uint32"),
        ("IPTTRACE_A_REASON", "uint32"),
        ("IPTTRACE_A_TARGETS", "uint32"),
        ("IPTTRACE_A_CALLS", "uint64"),
        ("IPTTRACE_A_REFUSED", "uint64"),
        ("IPTTRACE_A_MATCHED", "uint64"),
        ("IPTTRACE_A_FOLLOWED", "uint64"),
        ("IPTTRACE_A_FLIPPED", "uint64"),
        ("IPTTRACE_A_SILENCED", "uint64"),
        ("IPTTRACE_A_DUE_ENTRY", "uint64"),
        ("IPTTRACE_A_DUE_RULE", "uint64"),
        ("IPTTRACE_A_DUE_EXIT", "uint64"),
        ("IPTTRACE_A_NMISSED", "uint64"),
        ("IPTTRACE_A_SKIPPED", "uint64"),
        ("IPTTRACE_A_UNFOLLOWED", "uint64"),
        ("IPTTRACE_A_DEPTH", "uint32"),
        ("IPTTRACE_A_RULESET", "uint32"),
        ("IPTTRACE_A_FAMILY", "uint32"),
        ("IPTTRACE_A_TABLE", "asciiz"),
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What GET returns; the counters are those of the newest arming."""

    state: str
    version: int
    owner_pid: int
    targets: int
    calls: int
    refused: int
    matched: int
    followed: int
    flipped: int
    silenced: int
    due: tuple[int, int, int]
    nmissed: int
    skipped: int
    unfollowed: int
    depth: int
    rules_seen: bool  # whether rule changes are watched
    ruleset: int  # generation of all rules; 0: a change is under way, or unknown


@dataclass(frozen=True, slots=True)
class Change:
    """A table has other rules from `generation` on."""

    generation: int
    netns: int  # inode; 0: unknown
    family: int  # 4 or 6; 0: any table may have changed
    table: str


class Control:
    """One socket to the module.  Closing it disarms if it has armed.

    For one thread only: pyroute2 opens a socket of its own for each thread.
    """

    def __init__(self) -> None:
        self._socket = GenericNetlinkSocket(ext_ack=True)
        try:
            self._socket.bind(FAMILY, Message)
        except NetlinkError as error:
            self._socket.close()
            raise CaptureError("the ipttrace module does not answer: it is not loaded") from error

    def close(self) -> None:
        """Closes the socket, which disarms if it has armed."""
        self._socket.close()

    def _request(self, command: int, attrs: list[tuple[str, object]]) -> Any:
        message = Message()
        message["cmd"] = command
        message["version"] = 1
        message["attrs"] = attrs
        flags = NLM_F_REQUEST | NLM_F_ACK
        try:
            answers = self._socket.nlm_request(message, msg_type=self._socket.prid, msg_flags=flags)
            return tuple(answers)
        except NetlinkError as error:
            reason = str(error.args[-1])
            # Without a sentence it is from the kernel, which did not call the module.
            if error.code == errno.EPERM and reason == os.strerror(errno.EPERM):
                reason = "tracing needs root: run with sudo"
            raise CaptureError(reason) from error

    def arm(
        self,
        pins: list[Path],
        program: bytes = b"",
        netns: int | None = None,
        maxactive: int | None = None,
    ) -> None:
        """Starts tracing.  Raises CaptureError.

        `pins`: of the programs for calls and rules; `program`: classic BPF, or b"" for
        every packet; `netns`: an inode, or None for all.
        """
        names = ("IPTTRACE_A_PROG_CALL", "IPTTRACE_A_PROG_RULE")
        attrs: list[tuple[str, object]] = [
            (name, str(pin)) for name, pin in zip(names, pins, strict=True)
        ]
        if program:
            attrs.append(("IPTTRACE_A_FILTER", program))
        if netns is not None:
            attrs.append(("IPTTRACE_A_NETNS", netns))
        if maxactive is not None:
            attrs.append(("IPTTRACE_A_MAXACTIVE", maxactive))
        try:
            self._request(CMD_ARM, attrs)
        except CaptureError as error:
            if "already" in str(error):
                pid = self.status().owner_pid
                raise CaptureError(
                    f"another ipttrace (pid {pid}) is already tracing on this host: stop it first"
                ) from error
            raise

    def filter(self, program: bytes) -> None:
        """Replaces the filter, if this socket has armed.  Raises CaptureError."""
        self._request(CMD_FILTER, [("IPTTRACE_A_FILTER", program)] if program else [])

    def disarm(self) -> None:
        """Ends tracing, if this socket has armed; no record is written afterwards."""
        self._request(CMD_DISARM, [])

    def status(self) -> Status:
        """State and counters."""
        (answer,) = self._request(CMD_GET, [])[:1]

        def value(name: str) -> int:
            return int(answer.get_attr(f"IPTTRACE_A_{name}") or 0)

        state = value("STATE")
        return Status(
            state=STATES[state] if state < len(STATES) else str(state),
            version=value("VERSION"),
            owner_pid=value("OWNER_PID"),
            targets=value("TARGETS") & _TARGETS,
            calls=value("CALLS"),
            refused=value("REFUSED"),
            matched=value("MATCHED"),
            followed=value("FOLLOWED"),
            flipped=value("FLIPPED"),
            silenced=value("SILENCED"),
            due=(value("DUE_ENTRY"), value("DUE_RULE"), value("DUE_EXIT")),
            nmissed=value("NMISSED"),
            skipped=value("SKIPPED"),
            unfollowed=value("UNFOLLOWED"),
            depth=value("DEPTH"),
            rules_seen=bool(value("TARGETS") & _TARGET_RULES),
            ruleset=value("RULESET"),
        )

    def changes(self) -> Changes:
        """A socket that receives the rule changes from now on."""
        return Changes(self._socket.mcast_groups[GROUP_RULES])


class Changes:
    """Receives rule changes.  For one thread, which need not be that of `Control`."""

    def __init__(self, group: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_GENERIC)
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends it."""
        self._socket.close()

    def take(self) -> list[Change]:
        """Those received since the last call; of lost ones, the generations are missing."""
        found: list[Change] = []
        while True:
            try:
                data, sender = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            # Only from the kernel: other processes may send to this socket too.
            if sender[0] == 0 and (change := _change(data)) is not None:
                found.append(change)


def _change(data: bytes) -> Change | None:
    message = Message(data)
    message.decode()
    if message["cmd"] != CMD_CHANGED:
        return None
    return Change(
        generation=int(message.get_attr("IPTTRACE_A_RULESET") or 0),
        netns=int(message.get_attr("IPTTRACE_A_NETNS") or 0),
        family=IP_VERSIONS.get(message.get_attr("IPTTRACE_A_FAMILY"), 0),
        table=str(message.get_attr("IPTTRACE_A_TABLE") or ""),
    )
