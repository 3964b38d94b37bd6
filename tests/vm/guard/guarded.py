# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace guard` as a user starts it, and the calls that it is to deny.  Must not check them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipttrace.lab.network.ns import call_in, socket_in
from tests.program import Command
from tests.vm.forked import until
from tests.vm.patience import PATIENCE

APPLY = re.compile(r"ipttrace: [0-9,]+ rules? appl")
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Guarded:
    """A guard whose rules are replaced by its control line; it prints JSON."""

    def __init__(self, folder: Path, *options: str, rules: str = "deny connect to 192.0.2.99"):
        ready = ["--ready-file", str(folder / "ready"), "--format", "jsonl", "--control"]
        self.command = Command(folder, ["guard", *ready, *options, rules], stdin=subprocess.PIPE)
        self.replaced = 0

    def __enter__(self) -> Guarded:
        self.command.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.command.__exit__()

    def send(self, *lines: str) -> None:
        """Writes lines to the control line."""
        stdin = self.command.process.stdin
        assert stdin
        stdin.write("".join(f"{one}\n" for one in lines).encode())
        stdin.flush()

    def rules(self, *rules: str) -> None:
        """Replaces the rules, and waits until these apply."""
        self.send("; ".join(rules))
        self.replaced += 1
        assert until(lambda: self.applied() == self.replaced + 1), self.command.stderr()

    def applied(self) -> int:
        """How often new rules have applied."""
        return sum(bool(APPLY.match(line)) for line in self.command.stderr())

    def events(self, count: int) -> list[dict[str, Any]]:
        """The next events."""
        return [json.loads(line) for line in self.command.read_lines(count)]


def listener(ns: str, address: str, port: int, family: int = 4) -> socket.socket:
    """A socket of TCP that listens."""
    one = socket_in(ns, FAMILIES[family], socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, port))
    one.listen()
    return one


def attempt(call: Callable[[], object]) -> str:
    """Calls it; "" if it succeeds, else the name of the error."""
    try:
        call()
    except OSError as error:
        return type(error).__name__ if error.strerror is None else error.strerror
    return ""


def connect(ns: str, address: str, port: int, family: int = 4, source: str = "") -> str:
    """Connects by TCP, and closes; "" if that succeeds, else the error."""

    def run() -> str:
        with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as one:
            one.settimeout(30)
            if source:
                one.bind((source, 0))
            return attempt(lambda: one.connect((address, port)))

    return call_in(ns, run)


def received(ns: str, to: tuple[str, int], *sources: str) -> tuple[list[bytes], str]:
    """What of three datagrams from each source a process gets, and how its next read ends.

    Each says which source it is from, from 0 on; those of the last one must arrive.
    """
    with contextlib.ExitStack() as stack:
        server, *senders = (
            stack.enter_context(socket_in(ns, socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(len(sources) + 1)
        )
        server.bind(to)
        server.settimeout(PATIENCE)
        for one, source in zip(senders, sources, strict=True):
            one.bind((source, 0))
        for _ in range(3):
            for number, one in enumerate(senders):
                one.sendto(b"%d" % number, to)
        found: list[bytes] = []
        while found.count(b"%d" % (len(sources) - 1)) < 3:
            found.append(server.recv(9))
        server.setblocking(False)
        return found, attempt(lambda: server.recv(9))
