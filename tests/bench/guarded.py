# SPDX-License-Identifier: GPL-2.0-only
"""What a guard of a thousand rules, none of which is met, and stages of sockets cost.

A packet here is sent, delivered and read; a connection is made, accepted and closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ipttrace.lab.network.ns import call_in, run, run_in, socket_in
from ipttrace.lab.traffic import flood
from tests.bench.delivered import BUFFER, SO_RCVBUFFORCE

UNGUARDED = "packets, no guard"
GUARDED = "packets, guard of 1,000 rules"
CONNECTIONS = "connections, no guard"
GUARDED_CONNECTIONS = "connections, guard of 1,000 rules"
STAGED = "packets, sockets traced"
STAGED_CONNECTIONS = "connections, sockets traced"
PACKETS = 2_000
CONNECTS = 300
_NS = "ipt-bench-guard"
_RULES = Path("/tmp/bench.rules")
_READY = Path("/tmp/bench.guard")


def _rules() -> str:
    each = (
        "deny connect to 10.{}.{}.7 port 1{:03d}",
        "deny accept from 10.{}.{}.0/25 port 2{:03d}",
        "deny receive from 10.{}.{}.9 on port 3{:03d}",
        "deny connect to 10.{}.{}.8 tcp uid 1{:03d}",
    )
    return "\n".join(each[n % 4].format(n >> 8, n & 255, n) for n in range(1000))


@contextlib.contextmanager
def _running(*command: str) -> Iterator[None]:
    _RULES.write_text(_rules())
    _READY.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "ipttrace", *command, "--ready-file", str(_READY)]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _READY.exists():
            if child.poll() is not None:
                raise SystemExit(f"ipttrace {command[0]} ended before it was ready")
            time.sleep(0.05)
        # What reads the records is not a part of what packets and connections cost.
        os.kill(int(_READY.read_text()), signal.SIGSTOP)
        yield
    finally:
        if _READY.exists():
            os.kill(int(_READY.read_text()), signal.SIGKILL)
        child.kill()
        child.wait()


def costs() -> dict[str, float]:
    """Nanoseconds per packet and per connection, with nothing, with a guard, with sockets."""
    packets, connections = _measured()
    found = {UNGUARDED: packets, CONNECTIONS: connections}
    with _running("guard", str(_RULES)):
        found[GUARDED], found[GUARDED_CONNECTIONS] = _measured()
    with _running("sockets"):
        found[STAGED], found[STAGED_CONNECTIONS] = _measured()
    return found


def _measured() -> tuple[float, float]:
    """Of a packet and of a connection, in a namespace that has only lo, and no rules.

    One of its own: ends of connections before it would make those after them slower.
    """
    run(["ip", "netns", "add", _NS])
    try:
        run_in(_NS, ["ip", "link", "set", "lo", "up"])
        with socket_in(_NS, socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            sink.bind(("127.0.0.1", 9))
            return _packets(sink), _connections()
    finally:
        run(["ip", "netns", "del", _NS])


def _packets(sink: socket.socket) -> float:
    return _best(lambda: _send(sink)) / PACKETS


def _connections() -> float:
    return _best(lambda: call_in(_NS, _connect)) / CONNECTS


def _best(once: Callable[[], int]) -> int:
    return min(once() for _ in range(3))


def _send(sink: socket.socket) -> int:
    address, port = sink.getsockname()
    buffer = bytearray(64)
    began = time.perf_counter_ns()
    flood(_NS, address, port, count=PACKETS)
    for _ in range(PACKETS):
        sink.recv_into(buffer)
    return time.perf_counter_ns() - began


def _connect() -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        began = time.perf_counter_ns()
        for _ in range(CONNECTS):
            with socket.socket() as client:
                client.connect(address)
                listener.accept()[0].close()
        return time.perf_counter_ns() - began
