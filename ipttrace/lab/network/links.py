# SPDX-License-Identifier: GPL-2.0-only
"""Waits until the links of a lab network carry traffic.

Waits for rtnetlink(7) messages, not for a fixed time.  Must not import bcc or
pyroute2.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from ipttrace.lab.network.ns import NetworkError, socket_in
from ipttrace.ready import readable

LINK_WAIT: Final = 60.0  # s; milliseconds suffice, even in a slow guest


def link_events(ns: str) -> socket.socket:
    """Returns an rtnetlink(7) socket that receives the namespace's link messages."""
    events = socket_in(ns, socket.AF_NETLINK, socket.SOCK_RAW, 0)
    events.bind((0, 1))  # RTMGRP_LINK
    return events


def wait_running(events: socket.socket, ns: str, count: int, deadline: float) -> None:
    """Waits until count veth devices carry traffic; deadline as time.monotonic().

    The kernel sends the message (struct ifinfomsg, linux/rtnetlink.h) once the
    device has its queue; packets sent earlier are silently lost.  Raises
    NetworkError after the deadline.
    """
    running: set[int] = set()
    while len(running) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not readable(events, timeout=left):
            raise NetworkError(f"the links of {ns} were not up within {LINK_WAIT:.0f} s")
        data = events.recv(65536)
        while len(data) >= 32:
            size, kind = struct.unpack_from("=IH", data)
            _, device, index, flags = struct.unpack_from("=BxHiI", data, 16)
            # RTM_NEWLINK, not ARPHRD_LOOPBACK, with IFF_LOWER_UP and IFF_RUNNING
            if kind == 16 and device != 772 and flags & 0x10040 == 0x10040:
                running.add(index)
            data = data[max((size + 3) & ~3, 16) :]
