# SPDX-License-Identifier: GPL-2.0-only
"""The demo's background traffic: that of a small office, at a readable rate.

It runs in a child process, which ends with its parent.  Must not import tui, view
or textual.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import addresses as at
from ipttrace.lab.network.ns import NetworkError
from ipttrace.lab.traffic.server import CLOSED, DNS, SINK, WEB, Server
from ipttrace.ready import readable
from ipttrace.start import python

Step = tuple[int, Callable[[], object]]
"""The approximate number of packets, and the function that sends them."""

_START_TIMEOUT: Final = 120.0  # s; in a slow guest Python alone needs seconds to start
_STOP_TIMEOUT: Final = 10.0
_REPLY_TIMEOUT: Final = 2.0


def steps(client: str, bulk: int = 1 << 18) -> list[Step]:
    """Returns the steps of a round, in order; bulk is the size of an upload in bytes."""

    def ping(dst: str, options: bool = False) -> Callable[[], object]:
        return lambda: traffic.ping(
            client, dst, 1, timeout=_REPLY_TIMEOUT, destination_options=options
        )

    def ask(dst: str) -> Callable[[], object]:
        return lambda: traffic.ask(client, dst, DNS, timeout=_REPLY_TIMEOUT)

    def web(dst: str, port: int) -> Callable[[], object]:
        return lambda: traffic.web(client, dst, port)

    def syn(dst: str, port: int, source: str = "") -> Callable[[], object]:
        return lambda: traffic.syn(client, dst, port, 1, source=source)

    def udp(dst: str, port: int, size: int = 8, ttl: int | None = None) -> Callable[[], object]:
        return lambda: traffic.udp(client, dst, port, 1, payload=bytes(size), ttl=ttl)

    def tcp(dst: str, port: int, send: bytes = b"") -> Callable[[], object]:
        return lambda: traffic.tcp(client, dst, port, send=send, timeout=_REPLY_TIMEOUT)

    return [
        (2, ask(at.SERVER4)),
        (10, web(at.ROUTER4, 8080)),
        (2, ping(at.SERVER4)),
        (2, ping(at.SERVER6)),
        (1, syn(at.SERVER4, 445)),
        (2, ask(at.SERVER6)),
        (10, web(at.ROUTER6, 8080)),
        (2, tcp(at.SERVER4, 25)),
        (2, udp(at.SERVER4, 161)),
        (1, udp(at.SERVER4, 4444)),
        (2, ping(at.ROUTER4)),
        (1, udp(at.SERVER4, 514)),
        (12, tcp(at.SERVER4, SINK, bytes(bulk))),
        (2, tcp(at.SERVER6, 25)),
        (1, syn(at.SERVER4, 6667)),
        (1, syn(at.SERVER4, WEB, at.GUEST4)),
        (2, ping(at.SERVER6, options=True)),
        (10, web(at.SERVER4, WEB)),
        (2, tcp(at.SERVER4, 23)),
        (2, udp(at.SERVER4, 69)),
        (2, udp(at.SERVER4, CLOSED)),
        (2, udp(at.SERVER4, 33434, ttl=1)),
        (3, udp(at.SERVER4, SINK, 4000)),
        (3, udp(at.SERVER6, SINK, 4000)),
        (1, lambda: traffic.gre(client, at.SERVER4, 1)),
        (1, lambda: traffic.esp(client, at.SERVER4, 1)),
        (1, lambda: traffic.sctp(client, at.SERVER4, 9, 1)),
    ]


def run(
    prefix: str,
    rate: float,
    duration: float | None,
    until_eof: int | None,
    round_steps: Sequence[Step] = (),
) -> int:
    """Serves and sends for duration seconds, or until end of file on a descriptor.

    rate is approximate, in packets/s at the client and the router.  until_eof is
    the descriptor; None: none.  round_steps is a round, by default steps().
    Prints "ready" once the servers are up; returns the number of complete rounds.
    """
    client = f"{prefix}-client"
    end = time.monotonic() + duration if duration is not None else float("inf")
    watched = [] if until_eof is None else [until_eof]
    with Server(f"{prefix}-server"):
        print("ready", flush=True)
        for rounds in itertools.count():
            for size, step in round_steps or steps(client):
                start = time.monotonic()
                # Missing replies are expected, as are errors while the network in the
                # namespace is being changed.
                with contextlib.suppress(OSError):
                    step()
                pause = start + size / rate - time.monotonic()
                pause = max(0.0, min(pause, end - time.monotonic()))
                if readable(*watched, timeout=pause) and not os.read(watched[0], 1):
                    return rounds
                if time.monotonic() >= end:
                    return rounds
    return 0


class Mix:
    """A context manager: background traffic over the network with this prefix.

    rate is approximate, in packets/s.  The child ends with its parent, however
    that dies: it reads from a pipe that the parent holds open.
    """

    def __init__(self, prefix: str = "ipt", rate: float = 40.0) -> None:
        self.prefix = prefix
        self.rate = rate
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None if it is not running."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def start(self) -> None:
        """Starts the child; returns once its servers are ready.  Raises NetworkError."""
        argv = [*python("ipttrace.lab.traffic"), "mix", "--until-eof"]
        argv += ["--prefix", self.prefix, "--rate", str(self.rate)]
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._child.stdout is not None
        ready = readable(self._child.stdout, timeout=_START_TIMEOUT)
        if not ready or self._child.stdout.readline() != b"ready\n":
            self._child.kill()
            _, stderr = self._child.communicate()
            text = stderr.decode("utf-8", "replace").strip().split("\n")[-1]
            raise NetworkError(f"the background traffic did not start: {text or 'no reason given'}")

    def stop(self) -> None:
        """Ends the child and waits for it."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            child.communicate(timeout=_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()

    def __enter__(self) -> Mix:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
