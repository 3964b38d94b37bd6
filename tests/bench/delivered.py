# SPDX-License-Identifier: GPL-2.0-only
"""What tracing costs packets that all reach their receiver, as most packets of a host do.

Elsewhere in this benchmark nobody reads them, so that the kernel drops most of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ipttrace.lab.traffic import flood

SO_RCVBUFFORCE = 33
COUNT = 2_000
BUFFER = 64 << 20  # bytes, more than they take


class Running(Protocol):
    """What runs while packets are sent; `pid`: of an agent."""

    pid: int | None


def costs(
    namespace: str,
    sink: socket.socket,
    variants: Mapping[str, Callable[[], contextlib.AbstractContextManager[Running]]],
) -> dict[str, float]:
    """Nanoseconds per packet to the socket `sink` of the namespace, with each variant running.

    Raises SystemExit if a packet is missing.
    """
    sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    address, port = sink.getsockname()
    found: dict[str, float] = {}
    for name, variant in variants.items():
        with variant() as running:
            flood(namespace, address, port, count=COUNT)
            if running.pid is not None:
                time.sleep(1)
                os.kill(running.pid, signal.SIGSTOP)
            best = float("inf")
            for _ in range(2):
                _empty(sink)
                began = time.perf_counter_ns()
                flood(namespace, address, port, count=COUNT)
                best = min(best, time.perf_counter_ns() - began)
                got = _empty(sink)
                if got != COUNT:
                    raise SystemExit(f"only {got} of {COUNT} packets were delivered")
            found[name] = best / COUNT
            if running.pid is not None:
                os.kill(running.pid, signal.SIGCONT)
    return found


def _empty(sink: socket.socket) -> int:
    """Reads all that has come; returns how many datagrams."""
    found = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sink.recv(64, socket.MSG_DONTWAIT)
            found += 1
    return found
