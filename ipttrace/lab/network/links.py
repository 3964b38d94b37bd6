# SPDX-License-Identifier: GPL-2.0-only
"""Waiting until the links of a lab network carry traffic.

By what the kernel says (rtnetlink(7)), not by time.  Must not import bcc,
pyroute2 or a user interface.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Final

from ipttrace.lab.network.ns import NetworkError, socket_in

LINK_WAIT: Final = 60.0  # s; it takes milliseconds, also in a slow guest


def link_events(ns: str) -> socket.socket:
    """rtnetlink(7): link messages of the namespace."""
    events = socket_in(ns, socket.AF_NETLINK, socket.SOCK_RAW, 0)
    events.bind((0, 1))  # RTMGRP_LINK
    return events


def wait_running(events: socket.socket, ns: str, count: int, deadline: float) -> None:
    """Wait until count veth devices carry traffic.

    The kernel sends the message after it has given the device its queue; what
    was sent earlier would be lost without a trace.
    """
    running: set[int] = set()
    while len(running) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([events], [], [], left)[0]:
            raise NetworkError(f"the links of {ns} did not come up in {LINK_WAIT:.0f} s")
        data = events.recv(65536)
        while len(data) >= 32:
            size, kind = struct.unpack_from("=IH", data)
            _, device, index, flags = struct.unpack_from("=BxHiI", data, 16)
            # RTM_NEWLINK; not ARPHRD_LOOPBACK; IFF_LOWER_UP and IFF_RUNNING
            if kind == 16 and device != 772 and flags & 0x10040 == 0x10040:
                running.add(index)
            data = data[max((size + 3) & ~3, 16) :]
