# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace sockets` as a user starts it, and two namespaces with a way between them.

Must not check anything.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipttrace.lab.network.ns import netns_inode, run, run_in, socket_in
from tests.program import Command
from tests.vm.patience import PATIENCE

SERVER, CLIENT = "ipt-server", "ipt-client"
ADDRESS, CLIENT_ADDRESS = {4: "10.9.0.1", 6: "2001:db8:9::1"}, {4: "10.9.0.2", 6: "2001:db8:9::2"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
CALLED, PORT = 8080, 80

Stage = dict[str, Any]


@contextmanager
def wired() -> Iterator[dict[str, int]]:
    """A server's and a client's namespace, by name with their inodes.

    The server redirects CALLED to PORT.
    """
    for name in (SERVER, CLIENT):
        run(["ip", "netns", "add", name])
        run_in(name, ["ip", "link", "set", "lo", "up"])
    try:
        peer = ["type", "veth", "peer", "name", "up1", "netns", CLIENT]
        run(["ip", "link", "add", "up0", "netns", SERVER, *peer])
        for name, device, each in ((SERVER, "up0", ADDRESS), (CLIENT, "up1", CLIENT_ADDRESS)):
            run_in(name, ["ip", "address", "add", f"{each[4]}/24", "dev", device])
            run_in(name, ["ip", "address", "add", f"{each[6]}/64", "dev", device, "nodad"])
            run_in(name, ["ip", "link", "set", device, "up"])
        redirect = f"-A PREROUTING -p tcp --dport {CALLED} -j REDIRECT --to-ports {PORT}"
        for command in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
            tables = f"*nat\n{redirect}\nCOMMIT\n*filter\n-A OUTPUT -j ACCEPT\nCOMMIT\n"
            run_in(SERVER, [command], text=tables)
        yield {name: netns_inode(name) for name in (SERVER, CLIENT)}
    finally:
        for name in (SERVER, CLIENT):
            run(["ip", "netns", "del", name])


class Staged:
    """What it prints, as JSON, from when it is armed on."""

    def __init__(self, folder: Path, *options: str) -> None:
        ready = ["--ready-file", str(folder / "ready"), "--format", "jsonl"]
        self.command = Command(folder, ["sockets", *ready, *options])
        self._pending: list[Stage] = []

    def __enter__(self) -> Staged:
        self.command.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.command.__exit__()

    def until(self, wanted: Callable[[Stage], bool]) -> list[Stage]:
        """What is printed until this is, and that: in order of time."""
        found: list[Stage] = []
        deadline = time.monotonic() + PATIENCE
        while not (found and wanted(found[-1])):
            if not self._pending:
                assert time.monotonic() < deadline, found
                self._pending = [json.loads(line) for line in self.command.read_lines(1)]
            found.append(self._pending.pop(0))
        return sorted(found, key=lambda one: str(one["time"]))


def listener(family: int = 4, port: int = PORT, backlog: int = 8) -> socket.socket:
    """A socket of the server that listens."""
    one = socket_in(SERVER, FAMILIES[family], socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ADDRESS[family], port))
    one.listen(backlog)
    return one


def client(family: int = 4) -> socket.socket:
    """A socket of the client, that waits at most PATIENCE."""
    one = socket_in(CLIENT, FAMILIES[family], socket.SOCK_STREAM)
    one.settimeout(PATIENCE)
    return one


def start(script: str, arguments: Sequence[str], *prefix: str) -> subprocess.Popen[str]:
    """A program in the server's namespace; `prefix`: what starts it there."""
    return subprocess.Popen(
        ["ip", "netns", "exec", SERVER, *prefix, sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
