# SPDX-License-Identifier: GPL-2.0-only
"""A bridge between two hosts, each a namespace of its own, with rules on the bridge's IP hooks.

Packets that the bridge forwards pass the tables of its namespace, which is what
br_netfilter is for.
"""

from __future__ import annotations

import subprocess

from ipttrace.lab.network.ns import netns_inode, run, run_in

PORTS = ("port-l", "port-r")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Bridge:
    """The namespaces, during a with statement; br0 is in the namespace `name`."""

    def __init__(self, prefix: str = "ipt-br") -> None:
        self.name = f"{prefix}-m"
        self.hosts = (f"{prefix}-l", f"{prefix}-r")

    def __enter__(self) -> Bridge:
        for name in (self.name, *self.hosts):
            run(["ip", "netns", "add", name])
        self.run("ip", "link", "add", "br0", "type", "bridge")
        for host, port, address in zip(self.hosts, PORTS, ADDRESSES, strict=True):
            peer = ["type", "veth", "peer", "name", "eth0", "netns", host]
            self.run("ip", "link", "add", port, *peer)
            self.run("ip", "link", "set", port, "master", "br0", "up")
            run_in(host, ["ip", "address", "add", f"{address}/24", "dev", "eth0"])
            run_in(host, ["ip", "link", "set", "eth0", "up"])
        self.run("ip", "link", "set", "br0", "up")
        self.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.name, *self.hosts):
            run(["ip", "netns", "del", name])

    @property
    def inode(self) -> int:
        """The number by which rows name the bridge's namespace."""
        return netns_inode(self.name)

    def run(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command in the bridge's namespace."""
        return run_in(self.name, argv, text=text)
