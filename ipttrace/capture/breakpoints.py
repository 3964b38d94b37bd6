# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints: rules with the module's target IPTTRACE (kmod/target.c).

They mark packets as long as a process wants that.  The kernel engine says so when it arms; for
engines without the module's records it is done here.  Must not import an engine.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ipttrace.capture import netns
from ipttrace.capture.errors import CaptureError
from ipttrace.netfilter import IP_VERSIONS
from ipttrace.text import clean

FAMILY: Final = "ipttrace"
_CMD_BREAK: Final = 7
_CMD_BREAKS: Final = 8
_MOST_NAMED: Final = 3  # tables in a message
_OWN_NETNS: Final = "/proc/self/ns/net"


class _Message(genlmsg):  # type: ignore[misc]
    """Those attributes of kmod/uapi/ipttrace.h that are used here, by number."""

    prefix = "IPTTRACE_A_"
    nla_map = (
        (5, "IPTTRACE_A_NETNS", "uint32"),
        (26, "IPTTRACE_A_FAMILY", "uint32"),
        (27, "IPTTRACE_A_TABLE", "asciiz"),
        (29, "IPTTRACE_A_NETNS_FD", "uint32"),
        (33, "IPTTRACE_A_RULES", "uint32"),
        (34, "IPTTRACE_A_NFT", "flag"),
    )


@dataclass(frozen=True, slots=True)
class BreakTable:
    """A table with `rules` rules that have the target IPTTRACE.

    `netns`: inode; `family`: 4 or 6; `nft`: of iptables-nft.
    """

    netns: int
    family: int
    table: str
    rules: int
    nft: bool


def _socket() -> GenericNetlinkSocket:
    """A socket to the module.  Raises CaptureError if it is not loaded, or too old."""
    one = GenericNetlinkSocket(ext_ack=True)
    try:
        one.bind(FAMILY, _Message)
    except NetlinkError as error:
        one.close()
        raise CaptureError("the ipttrace module is not loaded") from error
    return one


def _request(one: GenericNetlinkSocket, command: int, flags: int, **attrs: int) -> tuple[Any, ...]:
    message = _Message()
    message["cmd"] = command
    message["version"] = 1
    message["attrs"] = [(f"IPTTRACE_A_{name}", value) for name, value in attrs.items()]
    try:
        return tuple(one.nlm_request(message, msg_type=one.prid, msg_flags=NLM_F_REQUEST | flags))
    except NetlinkError as error:
        raise CaptureError(str(error.args[-1])) from error


def tables() -> list[BreakTable]:
    """The tables that have breakpoints, of all network namespaces.

    Empty if there is no module, or this process must not ask it.
    """
    with contextlib.suppress(CaptureError), contextlib.closing(_socket()) as one:
        return [_table(answer) for answer in _request(one, _CMD_BREAKS, NLM_F_DUMP)]
    return []


def _table(answer: Any) -> BreakTable:
    def value(name: str) -> Any:
        return answer.get_attr(f"IPTTRACE_A_{name}")

    return BreakTable(
        netns=int(value("NETNS") or 0),
        family=IP_VERSIONS.get(value("FAMILY"), 0),
        table=clean(str(value("TABLE") or ""), 32),
        rules=int(value("RULES") or 0),
        nft=value("NFT") is not None,
    )


def described(found: list[BreakTable]) -> str:
    """Where rules have the target IPTTRACE, in one line."""
    count = sum(one.rules for one in found)
    names = {inode: name for inode, name in netns.names().items() if name}
    own = netns.inode(_OWN_NETNS)
    places = []
    for one in found[:_MOST_NAMED]:
        command = ("ip6tables" if one.family == 6 else "iptables") + ("-nft" if one.nft else "")
        where = f"{command} -t {one.table}"
        if one.netns != own:
            where += f" of network namespace {clean(names.get(one.netns, str(one.netns)), 64)}"
        places.append(where)
    if len(found) > _MOST_NAMED:
        places.append(f"and {len(found) - _MOST_NAMED} more tables")
    return f"{count} rule{'s'[: count != 1]} with -j IPTTRACE ({', '.join(places)})"


class Wanted:
    """Lets breakpoints mark packets from `open` to `close`.  For one thread."""

    def __init__(self, netns: str | None) -> None:
        """`netns`: the one namespace, as `netns.opened` takes it; netns.ALL: every one."""
        self._netns = netns
        self._socket: GenericNetlinkSocket | None = None

    def open(self) -> bool:
        """Returns whether breakpoints mark packets: the module may be loaded later.

        Raises CaptureError if it is loaded and refuses that.
        """
        if self._socket is not None:
            return True
        try:
            one = _socket()
        except CaptureError:
            return False
        try:
            if self._netns == netns.ALL:
                _request(one, _CMD_BREAK, NLM_F_ACK)
            else:
                with netns.opened(self._netns or _OWN_NETNS) as fd:
                    _request(one, _CMD_BREAK, NLM_F_ACK, NETNS_FD=fd)
        except CaptureError:
            one.close()
            raise
        self._socket = one
        return True

    def close(self) -> None:
        """They do nothing any more."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
