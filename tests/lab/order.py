# SPDX-License-Identifier: GPL-2.0-only
"""Chains and legacy tables whose counters prove in which order packets met them.

Each sets a bit of the packet's mark, and counts packets by the bits that it finds set.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6

BITS = {"a": 1, "b": 2, "legacy": 4}
ADDRESSES = {4: "127.0.0.1", 6: "::1"}
# Datagrams to these ports are dropped by one of them.
PORTS = {"nobody": 9, "a": 10, "b": 11, "legacy": 12}
_SEEN = range(8)
_PATIENCE = 60.0  # s
_FAMILIES = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}

Run = Callable[[list[str], str], str]
"""Runs a command in the namespace, with this text on its stdin; returns what it prints."""


def add_nft(run: Run, table: str, kind: str = "filter", where: str = "input priority 0") -> None:
    """Adds the table, or registers its chain anew."""
    counters = "\n".join(f"meta mark {seen} counter" for seen in _SEEN)
    # Without a rule that needs conntrack, there is no NAT.
    tracked = "ct state new" if kind == "nat" else ""
    # A chain of type nat cannot drop.
    drop = "" if kind == "nat" else f"udp dport {PORTS[table]} drop"
    rules = f"{counters}\n{tracked} meta mark set meta mark or {BITS[table]}\n{drop}"
    run(
        ["nft", "-f", "-"],
        f"table inet {table}\ndelete table inet {table}\ntable inet {table} {{ chain in {{\n"
        f"type {kind} hook {where}; policy accept;\n{rules}\n}}\n}}",
    )


def add_legacy(run: Run, family: int, hook: str = "INPUT") -> None:
    """Fills the table filter, and registers it if the namespace had none."""
    rules = "\n".join(f"-A {hook} -m mark --mark {seen}" for seen in _SEEN)
    last = f"-A {hook} -j MARK --or-mark {BITS['legacy']}"
    drop = f"-A {hook} -p udp -m udp --dport {PORTS['legacy']} -j DROP"
    run([f"{_command(family)}-restore"], f"*filter\n{rules}\n{last}\n{drop}\nCOMMIT\n")


def _command(family: int) -> str:
    return f"ip{'6' if family == 6 else ''}tables-legacy"


class Truth:
    """The order of `chains` by their counters, from one `order` to the next."""

    def __init__(self, run: Run, open_socket: Callable[[int], socket.socket], chains: list[str]):
        """`open_socket`: takes AF_INET or AF_INET6, returns a datagram socket of the namespace."""
        self._run = run
        self._open_socket = open_socket
        self._chains = chains
        self._sent = 0  # datagrams; each is longer than the one before, so that none look alike

    def order(self, family: int, count: int, dropped_by: str = "nobody") -> list[str]:
        """Sends `count` datagrams; the chains in the order in which all of them met these."""
        before = {one: self._counted(one, family) for one in self._chains}
        kind = _FAMILIES[family]
        with self._open_socket(kind) as sender, self._open_socket(kind) as receiver:
            receiver.bind((ADDRESSES[family], PORTS[dropped_by]))
            for _ in range(count):
                self._sent += 1
                sender.sendto(bytes(self._sent), receiver.getsockname())
            # Open until all have arrived: late ones would be answered, and the answers counted.
            receiver.settimeout(_PATIENCE)
            for _ in range(count if dropped_by == "nobody" else 0):
                receiver.recv(1 << 16)
            deadline = time.monotonic() + _PATIENCE
            while dropped_by != "nobody" and time.monotonic() < deadline:
                if sum(self._counted(dropped_by, family)) - sum(before[dropped_by]) >= count:
                    break
        found = {}
        for one in self._chains:
            now = self._counted(one, family)
            added = {bits: now[bits] - before[one][bits] for bits in _SEEN}
            met = [bits for bits, packets in added.items() if packets]
            if met:
                assert [added[bits] for bits in met] == [count], (one, added)
                found[one] = met[0].bit_count()
        assert sorted(found.values()) == list(range(len(found)))
        return sorted(found, key=found.__getitem__)

    def _counted(self, chain: str, family: int) -> list[int]:
        """Packets by the bits of the mark that the chain found set."""
        if chain == "legacy":
            saved = self._run([f"{_command(family)}-save", "-c"], "")
            return [int(one) for one in re.findall(r"\[(\d+):\d+\] -A \w+ -m mark", saved)]
        listed = self._run(["nft", "list", "table", "inet", chain], "")
        return [int(packets) for packets in re.findall(r"counter packets (\d+)", listed)]
