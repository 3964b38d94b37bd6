# SPDX-License-Identifier: GPL-2.0-only
"""Controls the module over generic netlink (kmod/uapi/ipttrace.h)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink import NETLINK_GENERIC, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ipttrace.capture.errors import CaptureError
from ipttrace.netfilter import IP_VERSIONS

FAMILY: Final = "ipttrace"

CMD_ARM: Final = 1
CMD_DISARM: Final = 2
CMD_GET: Final = 3
CMD_FILTER: Final = 4
CMD_WATCH: Final = 5
CMD_CHANGED: Final = 6

PROTOCOL: Final = 3  # IPTTRACE_PROTOCOL

# Bits of TARGETS: the functions that are probed, whether rule changes are watched, and
# whether all kprobes are switched off.
_TARGETS: Final = 3
_TARGET_RULES: Final = 4
_KPROBES_OFF: Final = 8

KPROBES_OFF: Final = "kprobes are switched off: echo 1 > /sys/kernel/debug/kprobes/enabled"

_RCVBUFFORCE: Final = 33  # SO_RCVBUFFORCE of socket(7)
_ROOM: Final = 1 << 20

STATES: Final = ("idle", "armed", "draining")
REASONS: Final = ("owner", "owner gone", "netns gone")


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
        ("IPTTRACE_A_PROTOCOL", "uint32"),
        ("IPTTRACE_A_NETNS_FD", "uint32"),
        ("IPTTRACE_A_NETNS_ID", "uint64"),
        ("IPTTRACE_A_RULESET_FIRST", "uint32"),
        ("IPTTRACE_A_FROM_RULES", "flag"),
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What GET returns; the counters are those of the newest arming."""

    state: str
    reason: str  # why the newest tracing ended, one of REASONS
    protocol: int
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
    kprobes_off: bool  # all kprobes are switched off
    ruleset: int  # generation of rules; 0: unknown, or in one namespace: a change is under way
    netns_id: int  # of the one namespace that is traced, never used again; 0: all


@dataclass(frozen=True, slots=True)
class Change:
    """The rules of a table changed: first in generation `first`, last in `last`.

    Without a table (and `first` 0): all changes up to `last` have been reported.
    """

    first: int
    last: int
    netns: int = 0  # inode; 0: in any namespace
    family: int = 0  # 4 or 6; 0: any table
    table: str = ""


class NotWatched(CaptureError):
    """Changes of rules cannot be seen: no text is certain."""


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
        netns_id: int = 0,
        *,
        from_rules: bool = False,
    ) -> None:
        """Starts tracing.  Raises CaptureError.

        `pins`: of the programs for calls and rules; `program`: classic BPF, or b"" for
        every packet; `netns`: a descriptor of the one namespace, or None for all, which may
        be closed afterwards: tracing ends with the namespace.  `netns_id`: it must be this
        one, from `status`; 0 for any; `from_rules`: only packets that rules mark.
        """
        names = ("IPTTRACE_A_PROG_CALL", "IPTTRACE_A_PROG_RULE")
        attrs: list[tuple[str, object]] = [
            (name, str(pin)) for name, pin in zip(names, pins, strict=True)
        ]
        if program:
            attrs.append(("IPTTRACE_A_FILTER", program))
        if netns is not None:
            attrs.append(("IPTTRACE_A_NETNS_FD", netns))
        if netns_id:
            attrs.append(("IPTTRACE_A_NETNS_ID", netns_id))
        if maxactive is not None:
            attrs.append(("IPTTRACE_A_MAXACTIVE", maxactive))
        if from_rules:
            attrs.append(("IPTTRACE_A_FROM_RULES", True))
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

    def status(self, netns: int | None = None) -> Status:
        """State and counters.

        `netns`: a descriptor of the namespace whose generation `ruleset` is to be; None:
        `ruleset` is that of the newest change of all.
        """
        attrs: list[tuple[str, object]] = []
        if netns is not None:
            attrs.append(("IPTTRACE_A_NETNS_FD", netns))
        (answer,) = self._request(CMD_GET, attrs)[:1]

        def value(name: str) -> int:
            return int(answer.get_attr(f"IPTTRACE_A_{name}") or 0)

        state, reason = value("STATE"), value("REASON")
        return Status(
            state=STATES[state] if state < len(STATES) else str(state),
            reason=REASONS[reason] if reason < len(REASONS) else str(reason),
            protocol=value("PROTOCOL") or 1,
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
            kprobes_off=bool(value("TARGETS") & _KPROBES_OFF),
            ruleset=value("RULESET"),
            netns_id=value("NETNS_ID"),
        )

    def newest_generation(self) -> int | None:
        """The generation of the newest change of rules; None if disarmed.

        Raises NotWatched.
        """
        status = self.status()
        if status.ruleset:
            return status.ruleset
        if status.state != "armed":
            return None
        if status.kprobes_off:
            raise NotWatched(f"{KPROBES_OFF}; meanwhile rows have no rule texts")
        raise NotWatched(
            "this kernel does not allow probes on rule changes: rows have no rule texts"
        )

    def changes(self) -> Changes:
        """A socket that receives the rule changes from now on.  Raises CaptureError."""
        return Changes(self._socket.prid)


class Changes:
    """Receives rule changes.  For one thread, which need not be that of `Control`.

    `lost` is set when some had no room: any table may have changed.
    """

    def __init__(self, family: int) -> None:
        """`family`: the number that generic netlink has given to the module's family."""
        self.lost = False
        self._family = family
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_GENERIC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
            self._socket.bind((0, 0))
            self._subscribe()
        except OSError as error:
            self._socket.close()
            raise CaptureError(f"cannot watch rule changes: {error.strerror}") from error

    def _subscribe(self) -> None:
        """Raises OSError.  The module answers before sendto(2) returns."""
        head = struct.pack("=IHHII", 20, self._family, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
        self._socket.sendto(head + struct.pack("=BBH", CMD_WATCH, 1, 0), (0, 0))
        while True:
            data, sender = self._socket.recvfrom(1 << 16)
            _, kind, _, sequence = struct.unpack_from("=IHHI", data)
            # Changes may come before the answer; they are older than any that are read now.
            if sender[0] == 0 and (kind, sequence) == (NLMSG_ERROR, 1):
                break
        if code := -struct.unpack_from("=i", data, 16)[0]:
            raise OSError(code, os.strerror(code))

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends it."""
        self._socket.close()

    def take(self) -> list[Change]:
        """Those received since the last call; sets `lost` if there were more."""
        found: list[Change] = []
        while True:
            try:
                data, sender = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            # Only from the kernel: other processes may send to this socket too.
            if sender[0] == 0 and (change := _change(data, self._family)) is not None:
                found.append(change)


def _change(data: bytes, family: int) -> Change | None:
    message = Message(data)
    message.decode()
    if message["header"]["type"] != family or message["cmd"] != CMD_CHANGED:
        return None
    last = int(message.get_attr("IPTTRACE_A_RULESET") or 0)
    first = int(message.get_attr("IPTTRACE_A_RULESET_FIRST") or 0)
    if not first:
        return Change(0, last)
    return Change(
        first=first,
        last=last,
        netns=int(message.get_attr("IPTTRACE_A_NETNS") or 0),
        family=IP_VERSIONS.get(message.get_attr("IPTTRACE_A_FAMILY"), 0),
        table=str(message.get_attr("IPTTRACE_A_TABLE") or ""),
    )
