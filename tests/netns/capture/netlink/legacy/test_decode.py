# SPDX-License-Identifier: GPL-2.0-only
"""Legacy rules that real packets hit are reported over netlink, one message each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.reader import Mailbox, MailboxReader
from ipttrace.capture.netns import inside
from ipttrace.stream.record import MATCHES

PINGS = 23
FLIP = """\
table inet flip {
  chain arriving { type filter hook prerouting priority -350; meta nftrace set 1; }
  chain leaving { type filter hook output priority -350; meta nftrace set 1; }
}
"""
PRE, IN, FORWARD, OUT, POST = range(5)
Hit = tuple[int, str, str, str, int]  # hook, table, chain, match, rule


class LogNamespace:
    """A network namespace with only a loopback device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self.inode = os.stat(self.path).st_ino

    def run(self, *argv: str, text: str | None = None) -> None:
        command = ["ip", "netns", "exec", self.name, *argv]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if "Table does not exist" in done.stderr or "can't initialize" in done.stderr:
            pytest.skip("this kernel has no such table")
        assert done.returncode == 0, done.stderr

    def iptables(self, line: str, family: int = 4) -> None:
        self.run({4: "iptables-legacy", 6: "ip6tables-legacy"}[family], *line.split())

    def send(self, family: int, to: str, port: int, size: int = 20) -> int:
        """Sends one UDP datagram; returns its source port."""
        with inside(self.path, self.inode), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(bytes(size), (to, port))
            return int(sock.getsockname()[1])


class Log:
    """The log messages of a namespace in which all packets are flipped, until `close`."""

    def __init__(self, namespace: LogNamespace, room: int = 8 << 20) -> None:
        self.decoder = nflog.NflogDecoder()
        self.events = np.zeros(0, nflog.LOG_MESSAGE)
        with ExitStack() as stack:
            self.reader = MailboxReader()
            stack.callback(self.reader.close)
            setting = LogSetting()
            stack.callback(setting.restore)
            with inside(namespace.path, namespace.inode):
                self.mailbox: Mailbox = nflog.new_mailbox(room)
                stack.callback(self.mailbox.close)
                self.conntrack = nflog.bind(self.mailbox)
                setting.take(namespace.path, namespace.inode)
                stack.callback(setting.restore)
            self.reader.add(self.mailbox)
            stack.callback(self.reader.remove, self.mailbox)
            namespace.run("nft", "-f", "-", text=FLIP)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def wait(self, count: int) -> np.ndarray:
        """Waits for `count` messages at least; returns all that have arrived."""
        deadline = time.monotonic() + 30
        while True:
            self.reader.flush()
            new = self.decoder.decode(*self.mailbox.take(1 << 62))
            self.events = np.concatenate([self.events, new])
            if len(self.events) >= count:
                return self.events
            assert time.monotonic() < deadline, f"{len(self.events)} of {count} events"
            time.sleep(0.01)


@contextmanager
def made(name: str) -> Iterator[LogNamespace]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        namespace = LogNamespace(name)
        namespace.run("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def namespace(prefix: str) -> Iterator[LogNamespace]:
    with made(prefix) as one:
        yield one


@contextmanager
def logged(namespace: LogNamespace, room: int = 8 << 20) -> Iterator[Log]:
    log = Log(namespace, room)
    try:
        yield log
    finally:
        log.close()


def hits(events: np.ndarray) -> list[Hit]:
    return [
        (
            int(one["hook"]),
            one["table"].decode(),
            one["chain"].decode(),
            MATCHES[one["match"]],
            int(one["rulenum"]),
        )
        for one in events
    ]


RULES = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
:ser:vices - [0:0]
:return:1 - [0:0]
-A OUTPUT -p tcp -j DROP
-A OUTPUT -j ser:vices
-A OUTPUT -o lo -j ACCEPT
-A ser:vices -p tcp
-A ser:vices -p PING -g return:1
-A ser:vices -p udp -j RETURN
-A return:1 -p udp -j DROP
COMMIT
"""


@pytest.mark.parametrize("family", [4, 6])
def test_pings_hit_each_rule_in_order(namespace: LogNamespace, family: int) -> None:
    # GIVEN user-defined chains, one with a colon and one named like the end of a prefix
    rules = RULES.replace("PING", "icmp" if family == 4 else "ipv6-icmp")
    restore = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
    namespace.run(restore, text=rules)
    with logged(namespace) as log:
        # WHEN pings are answered
        address = "127.0.0.1" if family == 4 else "::1"
        namespace.run("ping", "-c", str(PINGS), "-i", "0.01", "-s", "100", address)
        each = [
            (OUT, "filter", "OUTPUT", "rule", 2),
            (OUT, "filter", "ser:vices", "rule", 2),
            (OUT, "filter", "return:1", "return", 2),
            (OUT, "filter", "OUTPUT", "rule", 3),
            (IN, "filter", "INPUT", "policy", 1),
        ]
        events = log.wait(len(each) * 2 * PINGS)
    # THEN each request and each reply has its messages, and none is missing
    assert hits(events) == each * 2 * PINGS
    assert nflog.missing(-1, events) == 0
    assert (log.mailbox.drops(), log.decoder.unread) == (0, 0)
    head = 20 if family == 4 else 40
    assert set(events["len"].tolist()) == {head + 108}
    assert set(events["caplen"].tolist()) == {128}
    assert set(events["family"].tolist()) == {2 if family == 4 else 10}
    assert set(events["protocol"].tolist()) == {0x0800 if family == 4 else 0x86DD}
    arriving = events["hook"] == IN
    assert set(events["in_ifindex"][arriving].tolist()) == {1}
    assert set(events["out_ifindex"][~arriving].tolist()) == {1}
    assert not events["out_ifindex"][arriving].any()
    assert set(events["mac_len"][arriving].tolist()) == {14}
    assert set(events["mac_len"][~arriving].tolist()) == {0}
    types = events["packet"][:: len(each), head].tolist()
    assert types == ([8, 0] if family == 4 else [128, 129]) * PINGS


def test_a_message_has_the_mark_and_the_length_of_a_packet_that_was_cut(
    namespace: LogNamespace,
) -> None:
    namespace.iptables("-t mangle -A OUTPUT -p udp -j MARK --set-mark 0xabcd")
    with logged(namespace) as log:
        port = namespace.send(socket.AF_INET, "127.0.0.1", 9, size=1000)
        events = log.wait(4)
        # Without the answer, an ICMP error: the port has no receiver
        events = events[events["packet"][:, 9] == socket.IPPROTO_UDP]
    found = [(one["table"], MATCHES[one["match"]], int(one["mark"])) for one in events]
    assert found[:2] == [(b"mangle", "rule", 0), (b"mangle", "policy", 0xABCD)]
    assert set(events["len"].tolist()) == {1028}
    assert bytes(events["packet"][0][20:22]) == port.to_bytes(2, "big")


@pytest.mark.parametrize("family", [4, 6])
def test_a_message_has_the_connection_before_and_after_nat(
    namespace: LogNamespace, family: int
) -> None:
    address, target, kind = {
        4: ("127.0.0.1", "127.0.0.2:5353", socket.AF_INET),
        6: ("::1", "[::1]:5353", socket.AF_INET6),
    }[family]
    dnat = f"-t nat -A OUTPUT -p udp --dport 53 -j DNAT --to-destination {target}"
    namespace.iptables(dnat, family)
    namespace.iptables("-A INPUT -p udp --dport 5353 -j DROP", family)
    with logged(namespace) as log:
        port = namespace.send(kind, address, 53)
        expected = [(OUT, b"nat", 0), (OUT, b"filter", 2), (IN, b"filter", 0)]
        log.wait(4)
        if not log.conntrack:
            pytest.skip("this kernel is built without CONFIG_NETFILTER_NETLINK_GLUE_CT")
    events = log.events
    found = [(int(one["hook"]), one["table"], int(one["match"])) for one in events]
    assert [one for one in found if one in expected] == expected
    assert events["tracked"].all()
    assert set(events["ct_proto"].tolist()) == {17}
    assert len(set(events["ct"].tolist())) == 1
    assert events["ct"][0] != 0
    source = socket.inet_pton(kind, address).ljust(16, b"\0")
    translated = socket.inet_pton(kind, target.rpartition(":")[0].strip("[]")).ljust(16, b"\0")
    assert {bytes(one) for one in events["ct_orig_src"]} == {source}
    assert {bytes(one) for one in events["ct_orig_dst"]} == {source}
    assert set(events["ct_orig_sport"].tolist()) == {port}
    assert set(events["ct_orig_dport"].tolist()) == {53}
    # THEN the rule that translates shows the old destination, later ones the new one
    first, last = events[0], events[-1]
    assert bytes(first["ct_reply_src"]) == source
    assert (first["ct_reply_sport"], first["ct_reply_dport"]) == (53, port)
    assert bytes(last["ct_reply_src"]) == translated
    assert (last["ct_reply_sport"], last["ct_reply_dport"]) == (5353, port)
    assert last["ct_status"] & 0x20  # IPS_DST_NAT


def test_messages_of_nflog_rules_are_not_taken_for_a_trace(namespace: LogNamespace) -> None:
    # GIVEN a rule that logs to the same group, with a threshold of its own
    own = "--nflog-group 0 --nflog-threshold 10 --nflog-prefix mine"
    namespace.iptables(f"-A OUTPUT -p udp -j NFLOG {own}")
    namespace.iptables("-A INPUT -p udp -j DROP")
    with logged(namespace) as log:
        for _ in range(3):
            namespace.send(socket.AF_INET, "127.0.0.1", 9)
        events = log.wait(12)
    # THEN its messages come in order among the others, each on its own
    foreign = events["match"] == nflog.NOT_TRACE
    assert foreign.tolist() == [False, True, False, False] * 3
    assert events["seq"].tolist() == list(range(12))
    assert log.decoder.unread == 0


def test_messages_without_room_are_counted_exactly(namespace: LogNamespace) -> None:
    namespace.iptables("-A OUTPUT -p udp -j DROP")
    with logged(namespace, room=1 << 14) as log:
        # GIVEN a reader that has stopped
        log.reader.remove(log.mailbox)
        sent = 200
        with (
            inside(namespace.path, namespace.inode),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            for _ in range(sent):
                with suppress(PermissionError):  # what send() raises after DROP
                    sock.sendto(b"x", ("127.0.0.1", 9))
        log.reader.add(log.mailbox)
        log.wait(1)
        dropped = log.mailbox.drops()
        assert dropped > 0
        # WHEN it goes on THEN the next sequence number shows how many are missing
        with suppress(PermissionError):
            namespace.send(socket.AF_INET, "127.0.0.1", 9)
        events = log.wait(sent - dropped + 1)
    assert len(events) + dropped == sent + 1
    assert nflog.missing(-1, events) == dropped


BIND = """
import socket, struct, sys, time
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0))
s.send(struct.pack("=IHHIIBBHHHB3x", 28, 4 << 8 | 1, 5, 1, 0, 0, 0, 0, 5, 1, 1))
assert struct.unpack_from("=i", s.recv(999), 16)[0] == 0
print("ready", flush=True)
sys.stdin.readline()
"""


def test_another_program_on_the_group_is_named(namespace: LogNamespace) -> None:
    # GIVEN another program that reads group 0
    with subprocess.Popen(
        ["ip", "netns", "exec", namespace.name, sys.executable, "-c", BIND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with inside(namespace.path, namespace.inode):
            mailbox = nflog.new_mailbox(1 << 20)
            # WHEN it is to be bound THEN one line says who has it and what to do
            with pytest.raises(CaptureError) as caught:
                nflog.bind(mailbox)
            mailbox.close()
        line = str(caught.value)
        assert f"another program (process {other.pid}, " in line
        assert "reads NFLOG group 0" in line
        assert "stop it" in line
        assert "\n" not in line
        other.communicate(b"\n")
    # WHEN the program has ended THEN the group is free
    with inside(namespace.path, namespace.inode):
        mailbox = nflog.new_mailbox(1 << 20)
        nflog.bind(mailbox)
        mailbox.close()


def test_without_cap_net_admin_one_line_says_so(namespace: LogNamespace) -> None:
    script = (
        "from ipttrace.capture.errors import CaptureError\n"
        "from ipttrace.capture.netlink.legacy import decode as nflog\n"
        "try: nflog.bind(nflog.new_mailbox(1 << 16))\n"
        "except CaptureError as error: print(error)\n"
    )
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace.name, *drop, sys.executable, "-c", script],
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("\n") == 1, done.stderr
    assert "needs CAP_NET_ADMIN" in done.stdout
