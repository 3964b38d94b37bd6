# SPDX-License-Identifier: GPL-2.0-only
"""A network namespace whose rules are set with nft and iptables-nft, and read from inside."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.netlink.nft.dump import Dump, Snapshot
from ipttrace.capture.netns import inside
from ipttrace.capture.rules import nft_texts as nft_ruleset
from ipttrace.capture.rules.nft_texts import ChainText, TableText
from tests.netns.labs import fresh_prefix

INET, IP, ARP, NETDEV, BRIDGE, IP6 = 1, 2, 3, 5, 7, 10


class RulesetNamespace:
    """One namespace, with loopback up."""

    def __init__(self, name: str) -> None:
        self.path = f"/run/netns/{name}"
        self.inode = os.stat(self.path).st_ino

    def run(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """Runs a command in the namespace; returns its output."""
        command = ["nsenter", f"--net={self.path}", *argv]
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        assert not check or done.returncode == 0, (argv, done.stderr)
        return done.stdout

    def nft(self, text: str) -> None:
        self.run("nft", "-f", "-", input=text)

    def json(self, text: str) -> None:
        """Loads JSON, which can express more than nft's language."""
        self.run("nft", "-j", "-f", "-", input=text)

    def iptables(self, *words: str, family: int = 4) -> None:
        self.run(f"ip{'6' if family == 6 else ''}tables-nft", *words)

    def enter(self) -> contextlib.AbstractContextManager[None]:
        return inside(self.path, self.inode)

    def snapshot(self) -> Snapshot:
        with self.enter(), contextlib.closing(Dump()) as dump:
            return dump.snapshot()

    def read(self) -> dict[tuple[int, str], TableText]:
        snapshot = self.snapshot()
        with self.enter():
            return nft_ruleset.read(snapshot)

    def chain(self, family: int, table: str, chain: str) -> ChainText:
        return self.read()[family, table].chains[chain]


@contextlib.contextmanager
def ruleset_namespace() -> Iterator[RulesetNamespace]:
    """A namespace of its own; skips the test if it cannot be made here."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("nft") is None or shutil.which("iptables-nft") is None:
        pytest.skip("nft and iptables-nft are needed")
    name = fresh_prefix()
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        namespace = RulesetNamespace(name)
        namespace.run("ip", "link", "set", "lo", "up")
        done = subprocess.run(["nsenter", f"--net={namespace.path}", "nft", "list", "ruleset"],
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"no nftables here: {done.stderr.strip()}")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
        assert not Path("/run/netns", name).exists()
