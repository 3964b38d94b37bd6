# SPDX-License-Identifier: GPL-2.0-only
"""A namespace with a few nftables rules, which sends itself datagrams to be traced.

The messages of a trace are known: each datagram traverses `out` and `in`, see RULES.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipttrace.capture.netns import inside
from tests.netns.labs import fresh_prefix

# Against a hang only.
HANG = 60.0

RULES = """
table ip t {
  chain out { type filter hook output priority 0; policy accept; udp dport 9 counter; }
  chain in { type filter hook input priority 0; policy accept; udp dport 9 counter accept; }
}
"""
TABLES = ["table ip t"]  # as LoopbackNamespace.tables() lists them
LEGACY = """*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp --dport 9 -j ACCEPT
COMMIT
"""
# Per datagram: rows; messages of the flip table, at output and prerouting; messages in all:
# besides, of `out` the rule, the end and the policy, and of `in` the rule.
ROWS = 2
FLIPS = 2
MESSAGES = FLIPS + 3 + 1


class LoopbackNamespace:
    """A namespace with a loopback device, and a socket that receives datagrams to port 9."""

    def __init__(self, *, user: bool = False) -> None:
        """`user`: the namespace of an ordinary user, who is root only in it."""
        self.name = fresh_prefix()
        self._user = user
        self._holder: subprocess.Popen[bytes] | None = None
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> LoopbackNamespace:
        try:
            if self._user:
                self._holder = subprocess.Popen(
                    ["unshare", "-Urn", "sh", "-c", "ip link set lo up && echo && exec cat"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                assert self._holder.stdout
                assert self._holder.stdout.readline() == b"\n"
                self.name = str(self._holder.pid)
                self.path = f"/proc/{self._holder.pid}/ns/net"
                enter = ["nsenter", "-t", self.name, "-U", "-n", "--preserve-credentials"]
            else:
                subprocess.run(["ip", "netns", "add", self.name], check=True)
                self.path = f"/run/netns/{self.name}"
                enter = ["ip", "netns", "exec", self.name]
                subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
            self.enter = enter
            self.inode = os.stat(self.path).st_ino
            self.run("nft", "-f", "-", text=RULES)
            self._socket()
            # Without a receiver, some of the datagrams would be answered by ICMP errors.
            self._sockets[0].bind(("127.0.0.1", 9))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        if self._holder is not None:
            self._holder.communicate()
        else:
            subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)

    def let_go(self) -> None:
        """Closes what holds it here."""
        for one in self._sockets:
            one.close()

    @contextmanager
    def inside(self) -> Iterator[None]:
        with inside(self.path, self.inode):
            yield

    def run(self, *argv: str, text: str | None = None) -> str:
        done = subprocess.run(
            [*self.enter, *argv], input=text, capture_output=True, text=True, check=True
        )
        return done.stdout

    def _socket(self) -> socket.socket:
        with self.inside():
            self._sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        return self._sockets[-1]

    def send(self, count: int, rate: int | None = None) -> int:
        """Sends datagrams to port 9, `rate` a second or as fast as possible.

        Returns their source port, which no other datagrams have.
        """
        sender = self._socket()
        begun = time.monotonic()
        for done in range(count):
            sender.sendto(b"hello", ("127.0.0.1", 9))
            if rate is not None and done % 10 == 0:
                early = begun + done / rate - time.monotonic()
                if early > 0:
                    time.sleep(early)
        return int(sender.getsockname()[1])

    def wait_read(self) -> None:
        """Waits until all netlink sockets of the namespace have been read empty."""
        deadline = time.monotonic() + HANG
        while True:
            assert time.monotonic() < deadline
            with self.inside():
                sockets = Path("/proc/thread-self/net/netlink").read_text().splitlines()
            heads = sockets[0].split()
            if all(line.split()[heads.index("Rmem")] == "0" for line in sockets[1:]):
                return
            time.sleep(0.02)

    def counted(self) -> int:
        """Packets that the rule of `in` has counted."""
        found = re.search(r"packets (\d+)", self.run("nft", "list", "chain", "ip", "t", "in"))
        assert found
        return int(found[1])

    def tables(self) -> list[str]:
        return sorted(self.run("nft", "list", "tables").splitlines())

    def loggers(self) -> list[str]:
        script = "cat /proc/sys/net/netfilter/nf_log/2 /proc/sys/net/netfilter/nf_log/10"
        return self.run("sh", "-c", script).split()


def children(pid: int) -> list[int]:
    """The processes that a process and its threads have started."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def wait_gone(pid: int) -> None:
    """Waits until the process has ended, even if it is not a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], HANG)[0], f"process {pid} does not end"
    finally:
        os.close(fd)


def summary(line: str) -> dict[str, str]:
    """The fields of a run's last line."""
    return dict(word.split("=", 1) for word in line.split())


def until(reached: Callable[[], bool], what: str) -> None:
    """Polls until `reached()`."""
    deadline = time.monotonic() + HANG
    while not reached():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
