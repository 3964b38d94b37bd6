# SPDX-License-Identifier: GPL-2.0-only
"""The flip table flips packets that the filter matches, counts them, and is always removed."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.filter.nft import Compiled
from ipttrace.capture.netlink.nft import stale as nft_stale
from ipttrace.capture.netlink.nft import wire as nft_wire
from ipttrace.capture.netlink.nft.stale import remove_stale
from ipttrace.capture.netlink.nft.table import FlipTable
from ipttrace.capture.netns import inside
from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_INET
from tests.netns.labs import fresh_prefix
from tests.paths import PROJECT

ROOT = PROJECT
# Against a hang only.
HANG = 60.0
# Packets sent at once: a device's backlog holds 1000.
PORTION = 150

EXPRESSIONS = [
    "ip",
    "ip6",
    "host 10.9.0.1",
    "src net 10.9.0.0/16 and not dst host 10.9.0.2",
    "ip6 net 2001:db8::/33",
    "ip6 host 2001:db8::1",
    "port 53",
    "not port 53",
    "udp portrange 50-60",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "tcp dst port 443 or udp src port 53",
    "ip proto 47",
    "icmp[icmptype] == icmp-echo",
    "not (tcp or udp)",
    "ip[6:2] & 0x1fff != 0",
    "ip[8] < 5 or ip[8] > 200",
    "ip[0] & 0xf > 5 and tcp port 80",
    "len > 60",
    "less 48",
    "host 10.9.0.1 and not port 80",
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
]
# nf_tables cannot express these.
OTHERS = [
    "tcp[((tcp[12:1] & 0xf0) >> 2):2] = 0x4745 or tcp[((tcp[12:1] & 0xf0) >> 2):2] = 0x504f",
    "ip[2:2] - ((ip[0] & 0xf) << 2) > 20",
    "tcp and ip[20] + 5 > ip[21]",
    "udp[ip[8]] = 0 or (len > 60 and ip[8] ^ 3 = 7)",
    # The kernel's own shift of classic BPF gives another result.
    "1 << ip[8] != 0 and ip[8] << ip[9] = 0",
    # More instructions than xt_bpf takes.
    " or ".join(f"(port {n} and ip[8] < {4 * n})" for n in range(50, 70)),
]


def compiled(expr: str) -> Compiled:
    return nft_filter.compile(pcapfilter.compile(expr))


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def upper(rng: random.Random, proto: int) -> bytes:
    sport, dport = rng.choice([22, 53, 55, 80, 443, 5000]), rng.choice([22, 53, 60, 80, 443, 61])
    rest = rng.randbytes(rng.choice([0, 3, 40]))
    if proto == 6:
        flags, words = rng.choice([2, 0x12, 0x10]), rng.choice([0x50, 0x60])
        head = struct.pack(">HHIIBBHHH", sport, dport, 1, 0, words, flags, 9, 0, 0)
        return (head + rng.choice([b"GET ", b"POST"]) + rest)[: rng.choice([3, 14, 99])]
    if proto in (1, 58):
        return bytes([rng.choice([0, 8, 128]), 0, 0, 0, 0, 0, 0, 0]) + rest
    return struct.pack(">HHHH", sport, dport, 8 + len(rest), 0) + rest


def ipv4(rng: random.Random) -> bytes:
    """A packet that ip_rcv() accepts."""
    proto = rng.choice([1, 6, 6, 17, 17, 47, 132])
    words = rng.choice([5, 5, 5, 6, 15])
    payload = upper(rng, proto)
    fragment = rng.choice([0, 0, 0, 0, 0x2000, 0x2003, 3])
    ttl = rng.choice([1, 4, 64, 201, 255])
    ends = [socket.inet_aton(rng.choice(["10.9.0.1", "10.9.0.2", "10.9.7.1", "192.0.2.1"]))
            for _ in range(2)]  # fmt: skip
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), 7, fragment, ttl,
                       proto, 0) + b"".join(ends) + b"\1" * (4 * words - 20)  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ipv6(rng: random.Random) -> bytes:
    """A packet that ipv6_rcv() accepts."""
    proto = following = rng.choice([6, 17, 58, 132])
    payload = upper(rng, proto)
    if rng.random() < 0.2:
        following, payload = 44, struct.pack(">BBHI", proto, 0, rng.choice([1, 8]), 7) + payload
    ends = [socket.inet_pton(socket.AF_INET6, rng.choice(["2001:db8::1", "2001:db8:8000::1"]))
            for _ in range(2)]  # fmt: skip
    return struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + b"".join(ends) + payload


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)


class CableNamespaces:
    """A namespace that counts and drops every packet, and one with a veth pair into it."""

    def __init__(self, *, bridge: bool = False) -> None:
        prefix = fresh_prefix()
        self.near, self.far = f"{prefix}-near", f"{prefix}-far"
        self.bridge = bridge
        self.sent = 0

    def __enter__(self) -> CableNamespaces:
        try:
            for ns in (self.near, self.far):
                ip("netns", "add", ns)
            ip("-n", self.far, "link", "add", "v1", "type", "veth",
               "peer", "v0", "netns", self.near)  # fmt: skip
            ip("-n", self.near, "link", "set", "lo", "up")
            # Neither side sends packets by itself.
            self.run(self.far, "sysctl", "-qw", "net.ipv6.conf.v1.disable_ipv6=1")
            devices = ["v0"]
            if self.bridge:
                ip("-n", self.near, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
                ip("-n", self.near, "link", "set", "v0", "master", "br0")
                devices.append("br0")
            for device in devices:
                ip("-n", self.near, "link", "set", device, "addrgenmode", "none")
                ip("-n", self.near, "link", "set", device, "up")
            ip("-n", self.far, "link", "set", "v1", "up")
            family = "bridge" if self.bridge else "inet"
            self.run(
                self.near,
                "nft",
                f"table {family} sink {{ counter seen {{}}; chain c {{ type filter hook prerouting "
                "priority -250; iifname v0 counter name seen drop; }; }",
            )
            with self.inside(self.far):
                self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                self._wire.bind(("v1", 0))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_wire"):
            self._wire.close()
        for ns in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True, check=False)

    @contextmanager
    def inside(self, ns: str = "") -> Iterator[None]:
        path = f"/run/netns/{ns or self.near}"
        with inside(path, os.stat(path).st_ino):
            yield

    def run(self, ns: str, *argv: str) -> str:
        command = ["ip", "netns", "exec", ns, *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def nft(self, *words: str) -> str:
        return self.run(self.near, "nft", *words)

    def table(self, *, owner: bool = True, inet: bool = True, match: bool = True) -> FlipTable:
        with self.inside():
            return FlipTable(owner=owner, inet=inet, match=match)

    def seen(self) -> int:
        listed = self.nft("list", "table", "bridge" if self.bridge else "inet", "sink")
        found = re.search(r"packets (\d+)", listed)
        assert found
        return int(found[1])

    def send(self, packets: list[bytes], ethertype: int | None = None) -> None:
        """Sends packets; returns when all have traversed the hook."""
        for start in range(0, len(packets), PORTION):
            part = packets[start : start + PORTION]
            for one in part:
                kind = ethertype or (0x86DD if one[0] >> 4 == 6 else 0x0800)
                self._wire.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + struct.pack(">H", kind) + one)
            self.sent += len(part)
            deadline = time.monotonic() + HANG
            while self.seen() < self.sent:
                assert time.monotonic() < deadline, f"{self.seen()} of {self.sent} arrived"
                time.sleep(0.01)
            assert self.seen() == self.sent


@pytest.fixture
def namespace() -> Iterator[CableNamespaces]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with CableNamespaces() as one:
        yield one


def packets(count: int) -> list[bytes]:
    rng = random.Random(4711)
    return [rng.choice([ipv4, ipv4, ipv6])(rng) for _ in range(count)]


@pytest.mark.parametrize("inet", [True, False], ids=["inet", "ip and ip6"])
def test_exactly_the_packets_that_a_filter_matches_are_flipped_and_counted(
    namespace: CableNamespaces, inet: bool
) -> None:
    sending = packets(293)
    # GIVEN a kernel without xt_bpf
    with namespace.table(inet=inet, match=False) as table:
        table.install(compiled(""))
        assert table.families == ((NFPROTO_INET,) if inet else (2, 10))
        counted, octets = 0, 0
        for expr in ["", *EXPRESSIONS]:
            # GIVEN a filter WHEN all kinds of packets are sent
            rules = compiled(expr)
            table.replace(rules)
            assert table.exact == rules.exact
            namespace.send(sending)
            # THEN those that libpcap matches are counted, and more if nf_tables cannot express it
            matching = [one for one in sending if pcapfilter.matches(rules.program, one)]
            flipped = [one for one in sending if rules.matches(one)]
            assert matching == flipped if rules.exact else len(matching) < len(flipped)
            assert expr == "" or 0 < len(flipped) < len(sending), (
                "the filter matches all packets, or none"
            )
            counted += len(flipped)
            octets += sum(map(len, flipped))
            assert table.counted() == (counted, octets), expr


@pytest.mark.parametrize("inet", [True, False], ids=["inet", "ip and ip6"])
def test_what_nf_tables_cannot_express_is_matched_by_xt_bpf(
    namespace: CableNamespaces, inet: bool
) -> None:
    sending = packets(397)
    with namespace.table(inet=inet) as table:
        counted = 0
        for expr in OTHERS:
            # GIVEN a filter that nf_tables cannot express
            rules = compiled(expr)
            assert not rules.exact
            if not table.installed:
                table.install(rules)
            table.replace(rules)
            assert table.exact
            # WHEN all kinds of packets are sent THEN exactly those that match are flipped
            namespace.send(sending)
            matching = [one for one in sending if pcapfilter.matches(rules.program, one)]
            assert 0 < len(matching) < len(sending), expr
            counted += len(matching)
            assert table.counted()[0] == counted, expr
        # WHEN the filter is one of nf_tables again THEN that works too
        table.replace(compiled("ip6"))
        namespace.send(sending)
        counted += sum(one[0] >> 4 == 6 for one in sending)
        assert table.exact
        assert table.counted()[0] == counted


def test_a_table_that_must_be_exact_is_not_made_otherwise(namespace: CableNamespaces) -> None:
    # GIVEN a kernel without xt_bpf
    with namespace.inside(), FlipTable(match=False, exact=True) as table:
        # WHEN the filter cannot be expressed THEN nothing is installed
        with pytest.raises(CaptureError, match="nftables cannot express this filter"):
            table.install(compiled(OTHERS[0]))
        assert not table.installed
        # WHEN it can be THEN a later one that cannot leaves it as it is
        table.install(compiled("ip6"))
        with pytest.raises(CaptureError, match="nftables cannot express this filter"):
            table.replace(compiled(OTHERS[0]))
        sending = packets(101)
        namespace.send(sending)
        assert table.counted()[0] == sum(one[0] >> 4 == 6 for one in sending)


def test_packets_that_the_host_sends_are_flipped_too(namespace: CableNamespaces) -> None:
    ip("-n", namespace.near, "addr", "add", "10.9.0.9/24", "dev", "v0")
    ip("-n", namespace.near, "neigh", "add", "10.9.0.1", "lladdr", "2:0:0:0:0:1", "dev", "v0")
    with namespace.table() as table, namespace.inside():
        table.install(compiled("udp dst port 9"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in (9, 10):
                for _ in range(23):
                    sender.sendto(b"12345", ("10.9.0.1", port))
        assert table.counted() == (23, 23 * 33)


def test_on_a_bridge_a_filter_matches_ip_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    sending = packets(101)
    with CableNamespaces(bridge=True) as namespace, namespace.table() as table:
        table.install(compiled("not tcp"), [NFPROTO_BRIDGE])
        matching = 0
        for expr in ("not tcp", "ip[9] ^ 3 != 5"):
            table.replace(compiled(expr))
            assert table.exact
            namespace.send(sending)
            # Another protocol, with bytes that look like IP.
            namespace.send([bytes([0x45]) + bytes(40)] * 7, ethertype=0x88B5)
            program = pcapfilter.compile(expr)
            matching += sum(pcapfilter.matches(program, one) for one in sending)
            assert table.counted()[0] == matching
        table.replace(compiled(""))
        namespace.send([bytes([0x45]) + bytes(40)] * 7, ethertype=0x88B5)
        assert table.counted()[0] == matching + 7


def test_arp_is_flipped_only_without_a_filter(namespace: CableNamespaces) -> None:
    with namespace.table() as table:
        table.install(compiled(""), [NFPROTO_ARP])
        ip("-n", namespace.near, "addr", "add", "10.9.0.9/24", "dev", "v0")
        ping = ["ping", "-c1", "-W1", "-n", "10.9.0.1"]

        def flips() -> int:
            before = table.counted()[0]
            subprocess.run(["ip", "netns", "exec", namespace.near, *ping], capture_output=True)
            ip("-n", namespace.near, "neigh", "flush", "all")
            return table.counted()[0] - before

        assert flips() > 0
        table.replace(compiled("ip"))
        assert flips() == 0
        table.replace(compiled(""))
        assert flips() > 0


def test_replacing_the_filter_under_traffic_loses_no_packet(namespace: CableNamespaces) -> None:
    # GIVEN filters that all match the packet
    wanted = pcapfilter.compile("udp port 53")
    one = next(each for each in packets(900) if pcapfilter.matches(wanted, each))
    filters = [
        compiled(expr) for expr in ("udp port 53", "", "not tcp", "udp or port 80", "len<99")
    ]
    assert all(rules.matches(one) for rules in filters)
    sending = threading.Thread(target=namespace.send, args=([one] * 4007,))
    with namespace.table() as table:
        table.install(filters[0])
        # WHEN they are replaced while packets are sent
        sending.start()
        changes = 0
        while sending.is_alive():
            changes += 1
            table.replace(filters[changes % len(filters)])
            assert table.counted()[0] <= 4007
        sending.join()
        # THEN each packet is counted once
        assert changes > 1
        assert table.counted()[0] == namespace.sent == 4007
        # AND the count stays when the table is removed, or made again
        table.remove()
        assert table.counted()[0] == 4007
        table.install(filters[0])
        namespace.send([one] * 23)
        assert table.counted()[0] == 4007 + 23


def test_other_programs_can_list_the_table_but_not_remove_it(namespace: CableNamespaces) -> None:
    with namespace.table() as table:
        table.install(
            compiled("tcp port 80 or len > 1000"), [NFPROTO_INET, NFPROTO_BRIDGE, NFPROTO_ARP]
        )
        if not table.owned:
            pytest.skip("this kernel has no tables with owners")
        listed = namespace.nft("list", "ruleset")
        name = table.name.decode()
        assert listed.count(name) == 3
        assert "meta nftrace set 1" in listed
        # WHEN another program flushes the ruleset THEN the flip table stays
        namespace.nft("flush", "ruleset")
        assert namespace.nft("list", "tables").count("table") == 3
        with pytest.raises(subprocess.CalledProcessError):
            namespace.nft("delete", "table", "inet", name)
        table.replace(compiled("udp"))
    assert namespace.nft("list", "tables") == ""


HOLD = """
    import sys, time
    from ipttrace.capture.filter import nft as nft_filter
    from ipttrace.capture.netlink.nft.table import FlipTable
    from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_INET
    table = FlipTable(owner=sys.argv[1] == "owner", inet=sys.argv[2] == "inet")
    table.install(nft_filter.compile(b""), [NFPROTO_INET, NFPROTO_BRIDGE, NFPROTO_ARP])
    print(table.name.decode(), table.owned, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(
    namespace: CableNamespaces, *words: str
) -> Iterator[tuple[subprocess.Popen[str], str, bool]]:
    """Another process with a flip table; yields it, its table's name and whether it is owned."""
    with namespace.inside():
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD), *words],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        assert process.stdout
        name, owned = process.stdout.readline().split()
        yield process, name, owned == "True"
    finally:
        process.kill()
        process.communicate()


def test_kill_9_leaves_no_table_behind(namespace: CableNamespaces) -> None:
    with holder(namespace, "owner", "inet") as (process, name, owned):
        if not owned:
            pytest.skip("this kernel has no tables with owners")
        assert namespace.nft("list", "tables").count(name) == 3
        process.kill()
        process.wait()
        assert name not in namespace.nft("list", "tables")


@pytest.mark.parametrize("inet", ["inet", "ip and ip6"])
def test_a_table_that_an_old_kernel_keeps_is_removed_at_the_next_start(
    namespace: CableNamespaces, inet: str
) -> None:
    with holder(namespace, "nobody", inet) as (process, name, owned):
        assert not owned
        assert f"ipttrace-{process.pid}-" in name
        tables = namespace.nft("list", "tables")
        assert tables.count(name) == (3 if inet == "inet" else 4)
        # GIVEN a live process, and other programs' tables THEN nothing is removed
        namespace.nft("add table ip ipttrace-1-x; add table ip other-99999999-1")
        with namespace.inside():
            assert remove_stale() == []
        # WHEN it is a zombie THEN only its tables are removed
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert name in namespace.nft("list", "tables")
        with namespace.inside():
            assert remove_stale() == [name]
            assert remove_stale() == []
        left = namespace.nft("list", "tables")
        assert name not in left
        assert "ipttrace-1-x" in left
        assert "other-99999999-1" in left


def test_a_table_whose_socket_is_open_is_not_removed(
    namespace: CableNamespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace.table() as table:
        table.install(compiled(""))
        if not table.owned:
            pytest.skip("this kernel has no tables with owners")
        # GIVEN a process that looks dead, as those of another pid namespace do
        monkeypatch.setattr(nft_stale, "_alive", lambda *_: False)
        with namespace.inside():
            assert remove_stale() == []
        assert table.counted() == (0, 0)


def test_closing_without_an_owner_removes_the_table_too(namespace: CableNamespaces) -> None:
    table = namespace.table(owner=False)
    table.install(compiled("ip"))
    assert not table.owned
    assert table.name.decode() in namespace.nft("list", "tables")
    table.close()
    table.close()
    assert table.name.decode() not in namespace.nft("list", "tables")


def test_without_cap_net_admin_one_line_says_what_to_do(namespace: CableNamespaces) -> None:
    script = """
        import os
        from ipttrace.capture.filter import nft as nft_filter
        from ipttrace.capture.errors import CaptureError
        from ipttrace.capture.netlink.nft.stale import remove_stale
        from ipttrace.capture.netlink.nft.table import FlipTable
        os.setgroups([]); os.setuid(65534)
        for act in (lambda: FlipTable().install(nft_filter.compile(b"")), remove_stale):
            try:
                act()
            except CaptureError as error:
                print(error)
    """
    with namespace.inside():
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    line = "tracing with nf_tables needs CAP_NET_ADMIN in the network namespace: run with sudo\n"
    assert (done.stdout, done.stderr) == (line * 2, "")


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.EOPNOTSUPP])
def test_on_a_kernel_without_nf_tables_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def refused(*_: object) -> None:
        raise nft_wire.Refused(number, None)

    if number == errno.EPROTONOSUPPORT:
        monkeypatch.setattr(socket, "socket", refuse)
    else:
        monkeypatch.setattr(nft_wire.NftSocket, "commit", refused)
        monkeypatch.setattr(nft_wire.NftSocket, "ask", refused)
    with pytest.raises(CaptureError, match=r"^this kernel has no nf_tables .*modprobe nf_tables$"):
        FlipTable().install(compiled(""))
    assert remove_stale() == []


def test_a_second_table_and_a_deleted_one_give_an_error_of_one_line(
    namespace: CableNamespaces,
) -> None:
    with namespace.table(owner=False) as table, namespace.table() as second:
        table.install(compiled("ip"))
        with pytest.raises(CaptureError, match=r"^this process already traces here: [^\n]*$"):
            second.install(compiled("ip"))
        assert table.counted() == (0, 0)
        namespace.nft("delete", "table", "inet", table.name.decode())
        for act in (lambda: table.replace(compiled("udp")), table.counted):
            with pytest.raises(CaptureError, match=r"^another program deleted .*: start .* again$"):
                act()
        table.remove()
        table.install(compiled("ip"))


def test_a_filter_with_very_many_rules_can_be_installed_and_replaced(
    namespace: CableNamespaces,
) -> None:
    huge = compiled(" and ".join(f"(ip[{n}] = 1 or ip[{n + 1}] = 2)" for n in range(5, 9)))
    ports = compiled(" or ".join(f"port {n}" for n in range(100, 105)))
    with namespace.table() as table:
        table.install(huge, [NFPROTO_INET, NFPROTO_BRIDGE, NFPROTO_ARP])
        for _ in range(5):
            table.replace(ports)
            table.replace(huge)
        listed = namespace.nft("list", "table", "inet", table.name.decode())
        assert listed.count("meta nftrace set 1") == 2 * len(huge.rules)
