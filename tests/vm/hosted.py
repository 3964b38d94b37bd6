# SPDX-License-Identifier: GPL-2.0-only
"""A host with two containers on a bridge, and the world outside; each a network namespace."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from ipttrace.lab.network.ns import run_in, socket_in
from tests.vm.modules import loaded
from tests.vm.paired import Hits, counted, load
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain

ONE, TWO = "172.30.0.2", "172.30.0.3"  # the containers
BRIDGE, HOST, OUTSIDE = "172.30.0.1", "203.0.113.1", "203.0.113.2"
EVERYONE = "172.30.0.255"
NAMES, PUBLISHED, WEB = 53, 8080, 80  # ports: outside, of the host, and in container two
# What tunnels lead through: the host's end, and the end outside.
INNER = "10.77.{}.1", "10.77.{}.2"
TUNNELS = {
    "gre": "type gre local {local} remote {remote}",
    "ipip": "type ipip local {local} remote {remote}",
    "vxlan": "type vxlan id 7 local {local} remote {remote} dstport 4789 dev {device}",
}

# With counters, in order of their numbers; `port`: what is accepted at once.
CONTAINER = """table inet container {{
    chain in {{
        type filter hook input priority 0; policy accept;
        meta l4proto udp counter
        udp dport {port} counter accept
    }}
    chain out {{
        type filter hook output priority 0; policy accept;
        meta l4proto udp counter
        meta l4proto udp counter accept
    }}
}}
"""
_LEGACY = """*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -p tcp
-A INPUT -p udp -j ACCEPT
COMMIT
"""
_HOST = f"""*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
-A FORWARD -p tcp
-A FORWARD -j DOCKER
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -i br0 -j ACCEPT
-A DOCKER -d {TWO} -p udp --dport {WEB} -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
-A PREROUTING -i wan -p udp --dport {PUBLISHED} -j DNAT --to-destination {TWO}:{WEB}
-A POSTROUTING -s 172.30.0.0/24 -o wan -j MASQUERADE
COMMIT
"""


@dataclass(frozen=True)
class Hosted:
    """The namespaces."""

    host: Plain
    one: Plain
    two: Plain
    outside: Plain

    def inodes(self) -> dict[int, str]:
        """Which of them an inode is: host, one, two, outside."""
        return {each.inode: name for name, each in vars(self).items()}

    def counted(self) -> dict[str, Hits]:
        """The counters of each one's rules."""
        return {name: counted(each) for name, each in vars(self).items() if name != "two"}


@contextlib.contextmanager
def hosted(tunnels: tuple[str, ...] = ()) -> Iterator[Hosted]:
    """The host, with `tunnels`, kinds of TUNNELS, between it and the world outside."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(loaded("ip_gre", "ipip", "vxlan"))
        made = Hosted(
            *(stack.enter_context(Plain(f"ipt-{name}")) for name in Hosted.__annotations__)
        )
        for each in vars(made).values():
            # No packets but the test's own.
            for which in ("all", "default"):
                each.run("sysctl", "-qw", f"net.ipv6.conf.{which}.disable_ipv6=1")
        made.host.run("ip", "link", "add", "br0", "type", "bridge", "nf_call_iptables", "0")
        _wire(made.host, "wan", HOST, made.outside, OUTSIDE)
        for port, container, address in (("one", made.one, ONE), ("two", made.two, TWO)):
            _wire(made.host, port, "", container, address)
            made.host.run("ip", "link", "set", port, "master", "br0")
            container.run("ip", "route", "add", "default", "via", BRIDGE)
        made.host.run("ip", "address", "add", f"{BRIDGE}/24", "broadcast", EVERYONE, "dev", "br0")
        made.host.run("ip", "link", "set", "br0", "up")
        made.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for number, kind in enumerate(tunnels):
            _tunnel(made, kind, number)
        load(made.one, CONTAINER.format(port=0))
        made.two.load(_LEGACY, 4)
        run_in(made.host.name, ["iptables-nft-restore"], text=_HOST)
        load(made.outside, CONTAINER.format(port=NAMES))
        yield made


def _wire(here: Plain, device: str, address: str, there: Plain, other: str) -> None:
    peer = ("type", "veth", "peer", "name", "eth0", "netns", there.name)
    here.run("ip", "link", "add", device, *peer)
    for plain, name, its in ((here, device, address), (there, "eth0", other)):
        if its:
            plain.run("ip", "address", "add", f"{its}/24", "broadcast", "+", "dev", name)
        plain.run("ip", "link", "set", name, "up")


def _tunnel(made: Hosted, kind: str, number: int) -> None:
    ends = ((made.host, HOST, OUTSIDE, "wan", 0), (made.outside, OUTSIDE, HOST, "eth0", 1))
    for plain, local, remote, device, which in ends:
        words = TUNNELS[kind].format(local=local, remote=remote, device=device).split()
        plain.run("ip", "link", "add", f"t-{kind}", *words)
        plain.run("ip", "address", "add", f"{INNER[which].format(number)}/24", "dev", f"t-{kind}")
        plain.run("ip", "link", "set", f"t-{kind}", "up")


@contextlib.contextmanager
def bound(plain: Plain, address: str, port: int = 0) -> Iterator[socket.socket]:
    """A socket for datagrams in the namespace."""
    with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.bind((address, port))
        made.settimeout(PATIENCE)
        yield made


@dataclass(frozen=True)
class Exchanged:
    """The ports of a datagram and its answer: as it was sent, and as it came there."""

    sent: int
    came: int


def exchange(
    sender: tuple[Plain, str], to: tuple[str, int], answerer: socket.socket, seen_as: str
) -> Exchanged:
    """Sends a datagram of a new connection, which is answered; there it comes from `seen_as`."""
    with bound(*sender) as client:
        client.sendto(b"?", to)
        asked, origin = answerer.recvfrom(64)
        answerer.sendto(b"!" + asked, origin)
        assert client.recvfrom(64) == (b"!?", to)
        assert origin[0] == seen_as
        return Exchanged(client.getsockname()[1], origin[1])
