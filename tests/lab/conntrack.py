# SPDX-License-Identifier: GPL-2.0-only
"""Empties a lab network's conntrack tables, so that the next packet is new again.

Faster than another network for tests that must not depend on earlier traffic.
Must not import bcc, pyroute2, tui or view.
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
_ERROR: Final = 2  # NLMSG_ERROR; error 0 means success


def flush(network: Network) -> None:
    """Empties the conntrack tables of all roles, for both families.

    Raises NetworkError if the kernel has no ctnetlink.
    """
    for role in ROLES:
        flush_namespace(network.ns(role))


def flush_namespace(ns: str) -> None:
    """Empties the conntrack tables of one namespace.  Raises NetworkError likewise."""
    with socket_in(ns, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        # A deletion without a tuple, for AF_UNSPEC, deletes everything.
        sock.send(struct.pack("=IHHIIBBH", 20, _DELETE, _REQUEST_ACK, 1, 0, 0, 0, 0))
        answer = sock.recv(4096)
    kind, error = struct.unpack_from("=4xH10xi", answer) if len(answer) >= 20 else (0, 0)
    if kind != _ERROR or error:
        reason = os.strerror(-error) if error else "no answer"
        raise NetworkError(f"cannot flush conntrack in {ns}: {reason}")
