# SPDX-License-Identifier: GPL-2.0-only
"""Making a lab network forget its connections, so that the next packet is a first one again.

Quicker than another network where what was sent before must not matter.  Must
not import bcc, pyroute2 or a user interface.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from ipttrace.lab.network import ROLES, Network
from ipttrace.lab.network.ns import NetworkError, socket_in

_NETLINK_NETFILTER: Final = 12
_DELETE: Final = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_ACK: Final = 0x5
_ERROR: Final = 2  # NLMSG_ERROR; the number 0 in it says that all went well


def forget(network: Network) -> None:
    """Empty the connection tables of all roles, of both families.

    Raises NetworkError where the kernel has no ctnetlink.
    """
    for role in ROLES:
        _forget(network.ns(role))


def _forget(ns: str) -> None:
    with socket_in(ns, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        # A deletion that names no tuple, of family AF_UNSPEC, is of everything.
        sock.send(struct.pack("=IHHIIBBH", 20, _DELETE, _REQUEST_ACK, 1, 0, 0, 0, 0))
        answer = sock.recv(4096)
    kind, error = struct.unpack_from("=4xH10xi", answer) if len(answer) >= 20 else (0, 0)
    if kind != _ERROR or error:
        reason = os.strerror(-error) if error else "no answer"
        raise NetworkError(f"the connections of {ns} cannot be forgotten: {reason}")
