# SPDX-License-Identifier: GPL-2.0-only
"""The gentle background traffic of the demo: what a small office does, all day.

It runs in a child process, which ends when its parent does.  Must not import a
user interface.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import rules as at
from ipttrace.lab.network.ns import NetworkError
from ipttrace.lab.traffic.server import CLOSED, DNS, SINK, WEB, Server

# About how many packets, and what to do.
Step = tuple[int, Callable[[], object]]

_START_WAIT: Final = 120.0  # s; Python alone takes seconds to start in a slow guest
_STOP_WAIT: Final = 10.0
_ANSWER_WAIT: Final = 2.0


def steps(client: str, bulk: int = 1 << 18) -> list[Step]:
    """In the order in which they are done, round and round; bulk: bytes of an upload."""

    def ping(dst: str, options: bool = False) -> Callable[[], object]:
        return lambda: traffic.ping(
            client, dst, 1, timeout=_ANSWER_WAIT, destination_options=options
        )

    def ask(dst: str) -> Callable[[], object]:
        return lambda: traffic.ask(client, dst, DNS, timeout=_ANSWER_WAIT)

    def web(dst: str, port: int) -> Callable[[], object]:
        return lambda: traffic.web(client, dst, port)

    def syn(dst: str, port: int, source: str = "") -> Callable[[], object]:
        return lambda: traffic.syn(client, dst, port, 1, source=source)

    def udp(dst: str, port: int, size: int = 8, ttl: int | None = None) -> Callable[[], object]:
        return lambda: traffic.udp(client, dst, port, 1, payload=bytes(size), ttl=ttl)

    def tcp(dst: str, port: int, send: bytes = b"") -> Callable[[], object]:
        return lambda: traffic.tcp(client, dst, port, send=send, timeout=_ANSWER_WAIT)

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
    watch: int | None,
    each: Sequence[Step] = (),
) -> int:
    """Serve and send until duration (s) is over or the file descriptor watch ends; rounds done.

    rate is about packets a second as the client and the router see them; `each`
    is a round, steps() if there is none.
    """
    client = f"{prefix}-client"
    end = time.monotonic() + duration if duration is not None else float("inf")
    watched = [] if watch is None else [watch]
    with Server(f"{prefix}-server"):
        print("ready", flush=True)
        for turn in itertools.count():
            for cost, step in each or steps(client):
                start = time.monotonic()
                # An answer that does not come is part of the picture, and so is
                # a namespace in which the network is being changed.
                with contextlib.suppress(OSError):
                    step()
                pause = start + cost / rate - time.monotonic()
                pause = max(0.0, min(pause, end - time.monotonic()))
                if select.select(watched, [], [], pause)[0] and not os.read(watched[0], 1):
                    return turn
                if time.monotonic() >= end:
                    return turn
    return 0


class Mix:
    """The background traffic over the network of this prefix, for a with statement.

    rate: about this many packets a second.  Ends when told, and when its parent
    is gone in whatever way: it holds the other end of a pipe.
    """

    def __init__(self, prefix: str = "ipt", rate: float = 40.0) -> None:
        self.prefix = prefix
        self.rate = rate
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, None when it is not running."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def start(self) -> None:
        """Start it; returns when its servers are ready.  Raises NetworkError if it fails."""
        argv = [sys.executable, "-m", "ipttrace.lab.traffic", "mix", "--until-eof"]
        argv += ["--prefix", self.prefix, "--rate", str(self.rate)]
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], _START_WAIT)
        if not ready or self._child.stdout.readline() != b"ready\n":
            self._child.kill()
            _, words = self._child.communicate()
            text = words.decode("utf-8", "replace").strip().split("\n")[-1]
            raise NetworkError(f"the background traffic did not start: {text or 'no answer'}")

    def stop(self) -> None:
        """Stop it and wait for its end."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            child.communicate(timeout=_STOP_WAIT)
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
