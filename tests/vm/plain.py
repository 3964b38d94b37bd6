# SPDX-License-Identifier: GPL-2.0-only
"""A namespace that has only lo, for a test's own rules.

Packets to 127.0.0.1 and ::1 pass OUTPUT, POSTROUTING, PREROUTING and INPUT as one skb.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

from ipttrace.lab.network import Counters, read_counters
from ipttrace.lab.network.ns import netns_inode, run, run_in, socket_in

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
COMMANDS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class Plain:
    """The namespace `name`, during a with statement."""

    def __init__(self, name: str = "ipt-plain") -> None:
        self.name = name

    def __enter__(self) -> Plain:
        run(["ip", "netns", "add", self.name])
        run_in(self.name, ["ip", "link", "set", "lo", "up"])
        return self

    def __exit__(self, *_: object) -> None:
        run(["ip", "netns", "del", self.name])

    @property
    def inode(self) -> int:
        """The number by which rows name it."""
        return netns_inode(self.name)

    def load(self, text: str, family: int) -> None:
        """Loads rules in the format of iptables-restore."""
        run_in(self.name, [f"{COMMANDS[family]}-restore"], text=text)

    def counters(self, family: int) -> Counters:
        """The counters of its rules, as Network.counters() returns them."""
        return read_counters(self.run(f"{COMMANDS[family]}-save", "-c").stdout)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it."""
        return run_in(self.name, argv)


def raw_and_filter(rules: str) -> str:
    """The tables raw and filter for iptables-restore, with `rules` in filter."""
    return f"""\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
{rules}
COMMIT
"""


@contextlib.contextmanager
def listening(rules: str) -> Iterator[Plain]:
    """A namespace with rules and listeners on UDP ports 9 and 53, so no packet is answered."""
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with (
        Plain() as plain,
        socket_in(plain.name, *kind) as sink,
        socket_in(plain.name, *kind) as other,
    ):
        sink.bind((LOOPBACK[4], 9))
        other.bind((LOOPBACK[4], 53))
        plain.load(rules, 4)
        yield plain
