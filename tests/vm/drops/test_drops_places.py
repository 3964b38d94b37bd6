# SPDX-License-Identifier: GPL-2.0-only
"""Packets that disappear between the tables, or before or after them: where, and why.

What the kernel itself counts is the truth.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import netns_inode, run, run_in, socket_in
from tests.vm.drops.routed import (
    CLIENT,
    CLIENT_ADDRESS,
    MINE,
    ROUTER,
    SERVER,
    SERVER_ADDRESS,
    Routed,
    changed,
    counter,
    queue_drops,
    send,
    send_raw,
    setting,
    statistic,
    sysctl,
    udp_header,
)
from tests.vm.drops.watched import Seen, Watched
from tests.vm.modules import loaded

COUNT = 23
NETFILTER = "a netfilter hook dropped it, and no traced rule did"
NEW = tuple(map(int, platform.release().split(".")[:2])) >= (6, 12)
MOST = Path("/proc/sys/net/netfilter/nf_conntrack_max")


@pytest.fixture(scope="module")
def routed() -> Iterator[Routed]:
    with Routed() as one:
        yield one


@pytest.fixture(scope="module")
def watched(routed: Routed) -> Iterator[Watched]:
    with Watched(f"{MINE} or net 127.0.0.0/8") as one:
        yield one
        one.balanced()


def dropped(
    watched: Watched,
    act: Callable[[], object],
    truth: Callable[[], int],
    reason: str,
    place: str,
    says: str,
    ns: str = ROUTER,
) -> list[Seen]:
    """The drops that `act` causes: COUNT of them, by the kernel's count as well.

    `says`: what the sentence about them has.
    """
    inode, before = netns_inode(ns), truth()

    def is_it(one: Seen) -> bool:
        return one.what == "dropped" and one.netns == inode

    found = watched.during(act, is_it, COUNT)
    found += filter(is_it, watched.settle(0.2))
    assert truth() - before == len(found) == COUNT
    assert {(one.reason, one.place.partition(".")[0]) for one in found} == {(reason, place)}
    assert all(one.stack for one in found)
    assert says in watched.sentence(found[0])
    return found


def test_strict_reverse_path_filter(routed: Routed, watched: Watched) -> None:
    with setting(ROUTER, net__ipv4__conf__r0__rp_filter=1):
        act = partial(send_raw, udp_header(0), COUNT, source="10.9.0.77")
        truth = partial(counter, ROUTER, "TcpExtIPReversePathFilter")
        found = dropped(
            watched,
            act,
            truth,
            "IP_RPFILTER",
            "ip_rcv_finish_core",
            "filter on r0 does not expect 10.9.0.77 from there; see sysctl net.ipv4.conf.r0",
        )
    assert {one.devices for one in found} == {("r0", "")}


def test_forwarding_is_off(routed: Routed, watched: Watched) -> None:
    with setting(ROUTER, net__ipv4__ip_forward=0):
        truth = partial(counter, ROUTER, "IpInAddrErrors")
        dropped(
            watched,
            partial(send, COUNT),
            truth,
            "IP_INADDRERRORS",
            "ip_error",
            "10.9.0.2 is not an address of this host, which does not forward what comes from r0",
        )
    for name in ("all", "r0", "r1"):
        sysctl(ROUTER, f"net.ipv4.conf.{name}.rp_filter", 0)


def test_no_route(routed: Routed, watched: Watched) -> None:
    truth = partial(counter, ROUTER, "IpExtInNoRoutes")
    act = partial(send, COUNT, "10.77.0.1")
    dropped(watched, act, truth, "IP_INNOROUTES", "ip_error", "no route to 10.77.0.1")


def test_ttl_is_used_up(routed: Routed, watched: Watched) -> None:
    truth = partial(counter, ROUTER, "IpInHdrErrors")
    act = partial(send, COUNT, ttl=1)
    found = dropped(
        watched, act, truth, "IP_INHDR", "ip_forward", "its TTL ended here: 10.8.0.2 sent it"
    )
    assert {one.devices for one in found} == {("r0", "r1")}


def test_too_big_and_not_to_be_fragmented(routed: Routed, watched: Watched) -> None:
    with changed(ROUTER, "ip link set r1 mtu 600", "ip link set r1 mtu 1500"):
        truth = partial(counter, ROUTER, "IpFragFails")
        payload = udp_header(1000) + bytes(1000)
        act = partial(send_raw, payload, COUNT, fragment=0x4000, unaware=True)
        dropped(
            watched,
            act,
            truth,
            "PKT_TOO_BIG",
            "ip_forward",
            "1028 bytes do not fit the MTU of r1, and it must not be fragmented",
        )
    run_in(CLIENT, ["ip", "route", "flush", "cache"])


def test_neighbour_does_not_answer(routed: Routed, watched: Watched) -> None:
    # One request, and time enough to send all packets before nobody has answered.
    of_device = "net__ipv4__neigh__r1__"
    asking = {f"{of_device}mcast_solicit": 1, f"{of_device}retrans_time_ms": 2000}
    with setting(ROUTER, **asking):
        failed = statistic("arp_cache", "res_failed")
        act = partial(send, COUNT, "10.9.0.99")
        dropped(
            watched,
            act,
            _none(COUNT),
            "NEIGH_FAILED",
            "neigh_invalidate",
            "no neighbour: 10.9.0.99 does not answer ARP on r1",
        )
        assert statistic("arp_cache", "res_failed") == failed + 1


def _none(count: int) -> Callable[[], int]:
    """A truth that the kernel does not count: 0, and then `count`."""
    values = iter((0, count))
    return lambda: next(values)


def test_no_socket_of_udp(routed: Routed, watched: Watched) -> None:
    truth = partial(counter, SERVER, "UdpNoPorts")
    found = dropped(
        watched,
        partial(send, COUNT),
        truth,
        "NO_SOCKET",
        "__udp4_lib_rcv",
        "nothing listens on 10.9.0.2:9 (UDP)",
        ns=SERVER,
    )
    assert {one.devices for one in found} == {("s0", "")}


def test_no_socket_of_tcp(routed: Routed, watched: Watched) -> None:
    def connect() -> None:
        for _ in range(COUNT):
            with socket_in(CLIENT, socket.AF_INET, socket.SOCK_STREAM) as one:
                assert one.connect_ex((SERVER_ADDRESS, 9))

    truth = partial(counter, SERVER, "TcpOutRsts")
    dropped(
        watched,
        connect,
        truth,
        "NO_SOCKET",
        "tcp_v4_rcv",
        "nothing listens on 10.9.0.2:9 (TCP)",
        ns=SERVER,
    )


def test_bad_checksum(routed: Routed, watched: Watched) -> None:
    with socket_in(SERVER, socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((SERVER_ADDRESS, 9))
        act = partial(send_raw, udp_header(4, 0x1234) + b"abcd", COUNT)
        truth = partial(counter, SERVER, "UdpInCsumErrors")
        dropped(
            watched,
            act,
            truth,
            "UDP_CSUM",
            "__udp4_lib_rcv",
            "bad UDP checksum from 10.8.0.2",
            ns=SERVER,
        )


def test_socket_buffer_is_full(routed: Routed, watched: Watched) -> None:
    with socket_in(SERVER, socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((SERVER_ADDRESS, 9))
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        while True:  # until it is full
            before = counter(SERVER, "UdpRcvbufErrors")
            send(1, size=1000)
            watched.settle(0.1)
            if counter(SERVER, "UdpRcvbufErrors") > before:
                break
        act = partial(send, COUNT, size=1000)
        truth = partial(counter, SERVER, "UdpRcvbufErrors")
        dropped(
            watched,
            act,
            truth,
            "SOCKET_RCVBUFF",
            "udp_queue_rcv_one_skb",
            "the program on 10.9.0.2:9 reads too slowly",
            ns=SERVER,
        )


@contextlib.contextmanager
def _queueing(kind: str, rules: str) -> Iterator[Callable[[], int]]:
    """A queue of the router for IPv4 alone, which no ARP passes; what it has dropped."""
    for words in (
        f"qdisc add dev r1 root handle 1: prio priomap {'0 ' * 16}",
        "filter add dev r1 parent 1: protocol ip matchall flowid 1:3",
        f"qdisc add dev r1 parent 1:3 {kind} {rules}",
    ):
        run_in(ROUTER, ["tc", *words.split()])
    try:
        yield partial(queue_drops, ROUTER, "r1", kind)
    finally:
        run_in(ROUTER, ["tc", *["qdisc", "del", "dev", "r1", "root"]])


def test_netem_loses_them(routed: Routed, watched: Watched) -> None:
    with _queueing("netem", "loss 100%") as truth:
        dropped(
            watched,
            partial(send, COUNT),
            truth,
            "QDISC_DROP",
            "__dev_queue_xmit",
            "the queue of r1 did not take it",
        )


def test_a_queue_is_full(routed: Routed, watched: Watched) -> None:
    with _queueing("tbf", "rate 8bit burst 1540 limit 3000") as truth:
        while not truth():
            send(1, size=1000)
        watched.settle(0.2)
        act = partial(send, COUNT, size=1000)
        dropped(
            watched,
            act,
            truth,
            "QDISC_DROP",
            "__dev_queue_xmit",
            "the queue of r1 did not take it: it is full",
        )


def _hits(command: str, chain: str, ns: str) -> Callable[[], int]:
    """What the first rule of a chain has counted."""

    def read() -> int:
        text = run_in(ns, [command, "-nvxL", chain]).stdout
        return int(text.splitlines()[2].split()[0])

    return read


@pytest.mark.parametrize(
    ("command", "place"), [("iptables-legacy", "nf_hook_slow"), ("iptables-nft", "nft_do_chain")]
)
def test_a_rule_drops_them(routed: Routed, watched: Watched, command: str, place: str) -> None:
    with changed(SERVER, f"{command} -A INPUT -p udp --dport 9 -j DROP", f"{command} -F"):
        truth = _hits(command, "INPUT", SERVER)
        dropped(watched, partial(send, COUNT), truth, "NETFILTER_DROP", place, NETFILTER, ns=SERVER)


def test_a_rule_drops_what_conntrack_finds_invalid(routed: Routed, watched: Watched) -> None:
    command = "iptables-legacy -A FORWARD -m conntrack --ctstate INVALID -j DROP"
    with changed(ROUTER, command, "iptables-legacy -F"):
        sysctl(ROUTER, "net.netfilter.nf_conntrack_tcp_loose", 0)
        ack = struct.pack("!HHIIBBHHH", 4001, 9, 1, 1, 0x50, 0x10, 1000, 0, 0)
        act = partial(send_raw, ack, COUNT, protocol=socket.IPPROTO_TCP)
        truth = _hits("iptables-legacy", "FORWARD", ROUTER)
        dropped(watched, act, truth, "NETFILTER_DROP", "nf_hook_slow", NETFILTER)


def test_conntrack_is_full(routed: Routed, watched: Watched) -> None:
    command = "iptables-legacy -A FORWARD -m conntrack --ctstate NEW -j ACCEPT"
    with changed(ROUTER, command, "iptables-legacy -F"), contextlib.ExitStack() as stack:
        stack.callback(MOST.write_text, MOST.read_text())
        MOST.write_text("1\n")
        send(2, port=999)

        def many() -> None:
            for port in range(COUNT):
                send(1, port=1000 + port)

        watched.settle(0.2)
        truth = partial(statistic, "nf_conntrack", "drop", ROUTER)
        dropped(
            watched, many, truth, "NETFILTER_DROP", "nf_hook_slow", "conntrack (table full: see"
        )


def test_policy_routing_leads_into_a_blackhole(routed: Routed, watched: Watched) -> None:
    with (
        changed(ROUTER, "ip route add blackhole default table 77", "ip route flush table 77"),
        changed(ROUTER, "ip rule add fwmark 7 lookup 77", "ip rule del fwmark 7"),
        changed(
            ROUTER,
            "iptables-legacy -t mangle -A PREROUTING -p udp --dport 9 -j MARK --set-mark 7",
            "iptables-legacy -t mangle -F",
        ),
    ):
        truth = partial(statistic, "rt_cache", "in_no_route", ROUTER)
        found = dropped(
            watched,
            partial(send, COUNT),
            truth,
            "NOT_SPECIFIED",
            "ip_error",
            "or rule, refuses 10.9.0.2 (mark 0x7)",
        )
    assert {int(one.fields["mark"]) for one in found} == {7}


def test_martian_source(routed: Routed, watched: Watched) -> None:
    act = partial(send_raw, udp_header(0), COUNT, source="127.0.0.1")
    truth = partial(statistic, "rt_cache", "in_martian_src", ROUTER)
    dropped(
        watched,
        act,
        truth,
        "NOT_SPECIFIED",
        "ip_rcv_finish_core",
        "martian: 127.0.0.1 → 10.9.0.2 cannot come from r0",
    )


def test_a_reassembly_times_out(routed: Routed, watched: Watched) -> None:
    with setting(SERVER, net__ipv4__ipfrag_time=1):
        act = partial(send_raw, udp_header(16) + bytes(8), COUNT, fragment=0x2000)
        truth = partial(counter, SERVER, "IpReasmTimeout")
        reason = "FRAG_REASM_TIMEOUT" if NEW else "NOT_SPECIFIED"
        dropped(
            watched,
            act,
            truth,
            reason,
            "ip_expire",
            "not all fragments of the packet from 10.8.0.2 came",
            ns=SERVER,
        )


def test_a_bridge_hands_its_packets_to_iptables(watched: Watched) -> None:
    # GIVEN a bridge between client and server whose packets iptables sees, and drops
    names = ("drop-left", "drop-bridge", "drop-right")
    with contextlib.ExitStack() as stack:
        stack.enter_context(loaded("br_netfilter"))
        for ns in names:
            run(["ip", "netns", "add", ns])
            stack.callback(run, ["ip", "netns", "del", ns])
        run_in(names[1], ["ip", "link", "add", "br0", "type", "bridge"])
        run_in(names[1], ["ip", "link", "set", "br0", "up"])
        for at, ns in ((1, names[0]), (2, names[2])):
            run(["ip", "link", "add", "e0", "netns", ns, "type", "veth",
                 "peer", "name", f"b{at}", "netns", names[1]])  # fmt: skip
            run_in(names[1], ["ip", "link", "set", f"b{at}", "master", "br0", "up"])
            run_in(ns, ["ip", "address", "add", f"10.8.7.{at}/24", "dev", "e0"])
            run_in(ns, ["ip", "link", "set", "e0", "up"])
        run_in(names[0], ["ping", "-c", "1", "-W", "20", "10.8.7.2"])
        sysctl(names[1], "net.bridge.bridge-nf-call-iptables", 1)
        run_in(names[1], ["iptables-legacy", "-A", "FORWARD", "-p", "icmp", "-j", "DROP"])
        truth = _hits("iptables-legacy", "FORWARD", names[1])
        # WHEN packets cross it
        command = ["ping", "-c", str(COUNT), "-i", "0.01", "-W", "1", "10.8.7.2"]
        act = partial(run_in, names[0], command, check=False)
        found = dropped(
            watched, act, truth, "NETFILTER_DROP", "nf_hook_slow", NETFILTER, ns=names[1]
        )
    # THEN the ports are known
    assert {one.fields["physin"].decode() for one in found} == {"b1"}


def test_a_transfer_without_loss_drops_nothing(routed: Routed, watched: Watched) -> None:
    # GIVEN a connection over the router
    watched.settle()
    with (
        socket_in(SERVER, socket.AF_INET, socket.SOCK_STREAM) as listener,
        socket_in(CLIENT, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.bind((SERVER_ADDRESS, 99))
        listener.listen()
        client.connect((SERVER_ADDRESS, 99))
        server, _ = listener.accept()
        # WHEN a megabyte is sent, read, and both ends are closed
        with server:
            left = 1 << 20
            while left:
                client.send(bytes(min(left, 16384)))
                read = 0
                while read < min(left, 16384):
                    read += len(server.recv(16384))
                left -= read
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        assert client.recv(1) == b""
    run_in(CLIENT, ["ping", "-c", "3", "-i", "0.1", "-I", CLIENT_ADDRESS, SERVER_ADDRESS])
    # THEN nothing counts as dropped
    assert [(one.reason, one.place) for one in watched.settle(1.0)] == []
