# SPDX-License-Identifier: GPL-2.0-only
"""What a stream starts with: the host, the engine, the filter, both clocks."""

from __future__ import annotations

import platform
import socket
import time

from ipttrace import __version__
from ipttrace.capture import netns
from ipttrace.capture.engine import Engine
from ipttrace.capture.request import Request
from ipttrace.stream.messages import Clock, Hello


def clock() -> Clock:
    """Both clocks at one moment: the closest of five readings."""
    best: tuple[int, Clock] | None = None
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        took = time.monotonic_ns() - before
        if best is None or took < best[0]:
            best = (took, {"mono": before + took // 2, "wall": wall})
    assert best is not None
    return best[1]


def hello(
    request: Request, engine: Engine, no_drops: str | None, *, sockets: bool = False
) -> Hello:
    """What HELLO contains besides the record layout.

    `no_drops`: why drops are not recorded; None: they are; `sockets`: whether stages of sockets
    are.
    """
    about: Hello = {
        "engine": engine.name,
        "version": __version__,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "host": socket.gethostname(),
        "cpus": engine.buffers.cpus,
        "expr": request.expr,
        "netns": {str(inode): name for inode, name in netns.names().items()},
        "only_netns": request.netns,
        "clock": clock(),
        "drops": no_drops is None,
        "stations": no_drops is None and request.stations,
    }
    if sockets:
        about["sockets"] = True
    if no_drops is not None:
        about["no_drops"] = no_drops
    return about
