# SPDX-License-Identifier: GPL-2.0-only
"""A client, a router and a server, each in a namespace, with no rules; and the kernel's counters.

Packets go from 10.8.0.2 over 10.8.0.1 and 10.9.0.1 to 10.9.0.2.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ipttrace.lab.network.ns import call_in, netns_inode, run, run_in, socket_in

CLIENT, ROUTER, SERVER = "drop-client", "drop-router", "drop-server"
CLIENT_ADDRESS, SERVER_ADDRESS = "10.8.0.2", "10.9.0.2"
# Of the client, of the router towards each, of the server.
DEVICES = ("c0", "r0", "r1", "s0")
MINE = "net 10.8.0.0/15"

_MTU_DISCOVER, _PROBE = 10, 3  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE

_UP = (
    (CLIENT, "c0", f"{CLIENT_ADDRESS}/24"),
    (ROUTER, "r0", "10.8.0.1/24"),
    (ROUTER, "r1", "10.9.0.1/24"),
    (SERVER, "s0", f"{SERVER_ADDRESS}/24"),
)


def sysctl(ns: str, name: str, value: object) -> str:
    """Sets a sysctl of a namespace; returns what it was."""
    path = Path("/proc/sys") / name.replace(".", "/")

    def change() -> str:
        before = path.read_text().strip()
        path.write_text(f"{value}\n")
        return before

    return call_in(ns, change)


@contextlib.contextmanager
def setting(ns: str, **values: object) -> Iterator[None]:
    """Sysctls of a namespace, with __ for a dot, during a with statement."""
    before = {name: sysctl(ns, name.replace("__", "."), value) for name, value in values.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            sysctl(ns, name.replace("__", "."), value)


@contextlib.contextmanager
def changed(ns: str, do: str, undo: str) -> Iterator[None]:
    """What the command `do` changes in a namespace, until `undo`."""
    run_in(ns, do.split())
    try:
        yield
    finally:
        run_in(ns, undo.split())


def _tables(ns: str) -> dict[str, int]:
    def read() -> str:
        folder = Path("/proc/thread-self/net")
        return (folder / "snmp").read_text() + (folder / "netstat").read_text()

    lines = call_in(ns, read).splitlines()
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        group, *words = names.split()
        prefix = group.rstrip(":")
        for word, value in zip(words, values.split()[1:], strict=True):
            found[prefix + word] = int(value)
    return found


def counter(ns: str, name: str) -> int:
    """A counter as nstat names it."""
    return _tables(ns)[name]


def statistic(table: str, name: str, ns: str = "") -> int:
    """A counter of /proc/net/stat, of all CPUs; that of neighbours is for all namespaces."""
    path = Path(f"/proc/thread-self/net/stat/{table}")
    text = call_in(ns, path.read_text) if ns else path.read_text()
    head, *rows = (line.split() for line in text.splitlines())
    at = head.index(name)
    return sum(int(row[at], 16) for row in rows)


def queue_drops(ns: str, device: str, kind: str) -> int:
    """What `tc -s qdisc` counts as dropped by a device's queue of this kind."""
    text = run_in(ns, ["tc", "-s", "qdisc", "show", "dev", device]).stdout
    of_kind = text.split(f"qdisc {kind} ", 1)[1]
    return int(of_kind.split("(dropped ", 1)[1].split(",", 1)[0])


class Routed:
    """The namespaces, during a with statement."""

    def __enter__(self) -> Routed:
        for ns in (CLIENT, ROUTER, SERVER):
            run(["ip", "netns", "add", ns])
        for ns, one, other_ns, other in (
            (CLIENT, "c0", ROUTER, "r0"),
            (ROUTER, "r1", SERVER, "s0"),
        ):
            run(["ip", "link", "add", one, "netns", ns, "type", "veth",
                 "peer", "name", other, "netns", other_ns])  # fmt: skip
        for ns, device, address in _UP:
            sysctl(ns, f"net.ipv6.conf.{device}.disable_ipv6", 1)
            run_in(ns, ["ip", "address", "add", address, "dev", device])
            run_in(ns, ["ip", "link", "set", device, "up"])
            run_in(ns, ["ip", "link", "set", "lo", "up"])
        for name in ("all", "r0", "r1"):
            sysctl(ROUTER, f"net.ipv4.conf.{name}.rp_filter", 0)
        sysctl(ROUTER, "net.ipv4.ip_forward", 1)
        run_in(CLIENT, ["ip", "route", "add", "default", "via", "10.8.0.1"])
        run_in(SERVER, ["ip", "route", "add", "default", "via", "10.9.0.1"])
        # Neighbours are known before anything is counted.
        run_in(CLIENT, ["ping", "-c", "1", "-W", "20", SERVER_ADDRESS])
        return self

    def __exit__(self, *_: object) -> None:
        for ns in (CLIENT, ROUTER, SERVER):
            run(["ip", "netns", "del", ns])

    @property
    def inodes(self) -> dict[int, str]:
        return {netns_inode(ns): ns for ns in (CLIENT, ROUTER, SERVER)}


def send(
    count: int, to: str = SERVER_ADDRESS, port: int = 9, *, size: int = 20, ttl: int = 64
) -> None:
    """Sends datagrams from the client."""
    with socket_in(CLIENT, socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        for _ in range(count):
            with contextlib.suppress(OSError):  # an ICMP error of the one before
                one.sendto(bytes(size), (to, port))


def udp_header(size: int, checksum: int = 0, port: int = 9) -> bytes:
    """Of a datagram with `size` bytes of data; a checksum of 0 is none."""
    return struct.pack("!4H", 4000, port, 8 + size, checksum)


def send_raw(
    payload: bytes,
    count: int = 1,
    *,
    source: str = CLIENT_ADDRESS,
    to: str = SERVER_ADDRESS,
    protocol: int = socket.IPPROTO_UDP,
    fragment: int = 0,
    unaware: bool = False,
) -> None:
    """Sends packets of IPv4 whose header is made here; `fragment`: its flags and offset.

    `unaware`: also those that the client knows to be too big for the path.
    """
    with socket_in(CLIENT, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        if unaware:
            raw.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
        for at in range(count):
            header = struct.pack(
                "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 100 + at, fragment, 64, protocol, 0,
                socket.inet_aton(source), socket.inet_aton(to),
            )  # fmt: skip
            raw.sendto(header + payload, (to, 0))
