# SPDX-License-Identifier: GPL-2.0-only
"""Conntrack's counters over netlink (linux/netfilter/nfnetlink_conntrack.h).

For kernels without /proc/net/stat/nf_conntrack.  Must not make the kernel load a module:
the caller asks only where ctnetlink is loaded.
"""

from __future__ import annotations

import socket
from typing import Final

from ipttrace.capture.neighbours.dump import dump
from ipttrace.capture.netlink.nft.wire import attributes

_GET_STATS_CPU: Final = 1 << 8 | 4  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET_STATS_CPU
_REQUEST: Final = bytes(4)  # struct nfgenmsg
_BODY: Final = 16 + 4  # struct nlmsghdr, struct nfgenmsg
# CTA_STATS_*: conntrack(8)'s names.
_COUNTERS: Final = {
    2: "found",
    4: "invalid",
    8: "insert",
    9: "insert_failed",
    10: "drop",
    11: "early_drop",
    12: "error",
    13: "search_restart",
    14: "clash_resolve",
    15: "chaintoolong",
}


def read(sock: socket.socket) -> dict[str, int]:
    """Returns the counters, summed over all CPUs, of the socket's namespace.

    `sock`: of NETLINK_NETFILTER.  Raises OSError.
    """
    found: dict[str, int] = {}
    for message in dump(sock, _GET_STATS_CPU, _REQUEST):
        for kind, value in attributes(message[_BODY:]).items():
            if (name := _COUNTERS.get(kind)) is not None and len(value) == 4:
                found[name] = found.get(name, 0) + int.from_bytes(value, "big")
    return found
