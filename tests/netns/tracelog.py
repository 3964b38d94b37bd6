# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own trace, as an independent source of the rule hits of scenarios.

An nft rule before every table sets nf_trace, and the legacy tables then log each rule hit
through nfnetlink_log.  Must not use ipttrace.capture, whose results are compared with it.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from typing import Final

from ipttrace.lab.network import ROLES, Network
from ipttrace.lab.network.ns import socket_in
from ipttrace.netfilter import HOOKS

# (role, family, hook, table, chain, rulenum, match)
Hit = tuple[str, int, str, str, str, int, str]

_NETFILTER: Final = 12
_CONFIG: Final = 4 << 8 | 1  # NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG
_PACKET: Final = 4 << 8 | 0
_RULES: Final = """\
table inet marker {
  chain arriving { type filter hook prerouting priority -350; meta nftrace set 1; }
  chain leaving { type filter hook output priority -350; meta nftrace set 1; }
}
"""


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class TraceLog:
    """Logs the rule hits in the three namespaces of a network, inside a with statement."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._sockets: dict[str, socket.socket] = {}

    def __enter__(self) -> TraceLog:
        for role in ROLES:
            ns = self.network.ns(role)
            sock = socket_in(ns, socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
            self._sockets[role] = sock
            sock.bind((0, 0))
            sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            # NFULA_CFG_CMD bind, NFULA_CFG_MODE copy meta data, NFULA_CFG_QTHRESH one
            self._configure(sock, _attribute(1, b"\x01"))
            self._configure(sock, _attribute(2, struct.pack("!IBx", 0, 1)))
            self._configure(sock, _attribute(5, struct.pack("!I", 1)))
            sysctl = "for f in 2 10; do echo nfnetlink_log >/proc/sys/net/netfilter/nf_log/$f; done"
            self.network.run(role, ["sh", "-ec", sysctl])
            self.network.run(role, ["nft", "-f", "-"], text=_RULES)
        return self

    def _configure(self, sock: socket.socket, attributes: bytes) -> None:
        body = struct.pack("!BBH", 0, 0, 0) + attributes
        sock.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, 0x5, 1, 0) + body)
        answer = sock.recv(4096)
        error = struct.unpack_from("=i", answer, 16)[0]
        if error:
            raise OSError(-error, "nfnetlink_log")

    def hits(self, expected: int = 0, timeout: float = 20.0) -> Counter[Hit]:
        """All hits; waits until there are `expected`, at most `timeout` seconds.

        Hits on another processor may come after the sender has returned.
        """
        found: Counter[Hit] = Counter()
        roles = {sock: role for role, sock in self._sockets.items()}
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic() if found.total() < expected else 0.0
            ready, _, _ = select.select(list(roles), [], [], max(0.0, left))
            if not ready:
                return found
            for sock in ready:
                data = sock.recv(1 << 20)
                while len(data) >= 20:
                    size, kind = struct.unpack_from("=IH", data)
                    if kind == _PACKET and (hit := _read(roles[sock], data[16:size])) is not None:
                        found[hit] += 1
                    data = data[(size + 3) & ~3 :]

    def __exit__(self, *_: object) -> None:
        for role, sock in self._sockets.items():
            sock.close()
            self.network.run(role, ["nft", "delete", "table", "inet", "marker"], check=False)


def _read(role: str, message: bytes) -> Hit | None:
    family = {2: 4, 10: 6}.get(message[0])
    values: dict[int, bytes] = {}
    at = 4
    while at + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, at)
        values[kind & 0x7FFF] = message[at + 4 : at + size]
        at += (max(size, 4) + 3) & ~3
    prefix = values.get(10, b"").rstrip(b"\0").decode()
    if family is None or not prefix.startswith("TRACE: "):
        return None
    table, chain, match, number = prefix.removeprefix("TRACE: ").strip().split(":")
    return role, family, HOOKS[values[1][2]], table, chain, int(number), match
