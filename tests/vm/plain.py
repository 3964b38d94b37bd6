# SPDX-License-Identifier: GPL-2.0-only
"""A namespace with nothing but lo in it, for rules that a test makes up itself.

Packets to 127.0.0.1 and ::1 pass OUTPUT, POSTROUTING, PREROUTING and INPUT as one skb.
"""

from __future__ import annotations

import subprocess
from types import TracebackType

from ipttrace.lab.network import Counters, read_counters
from ipttrace.lab.network.ns import netns_inode, run, run_in

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
COMMANDS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class Plain:
    """The namespace `name`, while in a with statement."""

    def __init__(self, name: str = "ipt-plain") -> None:
        self.name = name

    def __enter__(self) -> Plain:
        run(["ip", "netns", "add", self.name])
        run_in(self.name, ["ip", "link", "set", "lo", "up"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run(["ip", "netns", "del", self.name])

    @property
    def inode(self) -> int:
        """As rows have it."""
        return netns_inode(self.name)

    def load(self, text: str, family: int) -> None:
        """Rules as iptables-restore reads them."""
        run_in(self.name, [f"{COMMANDS[family]}-restore"], text=text)

    def counters(self, family: int) -> Counters:
        """See Network.counters()."""
        return read_counters(self.run(f"{COMMANDS[family]}-save", "-c").stdout)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return run_in(self.name, argv)
