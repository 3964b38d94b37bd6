# SPDX-License-Identifier: GPL-2.0-only
"""What rows over netlink say of conntrack and of a bridge's ports is what the kernel lists."""

from __future__ import annotations

import platform
import re
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.netlink.conntrack import is_reported
from ipttrace.capture.netns import inside
from ipttrace.lab.network import NetworkError, read_counters
from ipttrace.lab.network.ns import socket_in
from tests.lab.bridge import ADDRESSES, PORTS, Bridge
from tests.netns.netlink_lab import Row, tracing
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace

COUNT = 23
TUPLE = ("ct_orig_src", "ct_orig_sport", "ct_orig_dst", "ct_orig_dport", "ct_zone")
EMPTY = (None,) * len(TUPLE)
needs_state = pytest.mark.skipif(
    not is_reported(platform.release()), reason="nftables reports conntrack's state from 6.16 on"
)


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def name(namespace: RulesetNamespace) -> str:
    return Path(namespace.path).name


def send(namespace: RulesetNamespace, port: int, count: int = COUNT, answer: bool = False) -> int:
    """Sends datagrams of one connection; returns its source port.  `answer`: each is."""
    with namespace.enter(), socket.socket(type=socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 9))
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(b"ping", ("127.0.0.1", port))
                sender = sink.recvfrom(64)[1] if port == 9 or answer else None
                if answer and sender is not None:
                    sink.sendto(b"pong", sender)
                    sock.recv(64)
            return int(sock.getsockname()[1])


def send_invalid(namespace: RulesetNamespace) -> None:
    """Sends TCP segments with SYN and RST, which conntrack finds invalid, to port 7."""
    source = socket.inet_aton("127.0.0.1")
    head = struct.pack(">HHIIBBHHH", 4000, 7, 1, 0, 5 << 4, 0x06, 1024, 0, 0)
    total = sum(struct.unpack(">16H", 2 * source + struct.pack(">HH", 6, 20) + head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:16] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]
    with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_RAW, 6) as sock:
        for _ in range(COUNT):
            sock.sendto(head, ("127.0.0.1", 0))


def listed(namespace: RulesetNamespace, port: int) -> list[dict[str, str]]:
    """The connections from that port that the kernel lists: their first tuple, zone, mark."""
    found = []
    for line in namespace.run("cat", "/proc/net/nf_conntrack").splitlines():
        words: dict[str, str] = {}
        for key, value in re.findall(r"(\w+)=(\S+)", line):
            words.setdefault(key, value)
        if words.get("sport") == str(port):
            found.append(words)
    return found


def states(rows: list[Row]) -> Counter[tuple[str, str, str | None]]:
    return Counter((row["chain"], row["hook"], row["ct_state"]) for row in rows)


@needs_state
def test_nftables_rows_have_state_and_tuple_as_the_kernel_lists_them(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN a redirection, and chains before conntrack, before NAT and behind it
    namespace.nft("""
        table ip t {
            chain raw { type filter hook output priority raw; counter; }
            chain mangle { type filter hook output priority mangle; counter; }
            chain nat { type nat hook output priority -100; udp dport 10 redirect to :9; }
            chain out { type filter hook output priority filter; ct state new,established counter; }
            chain in { type filter hook input priority filter; counter; }
        }""")
    with tracing(tmp_path, name(namespace), "udp") as tracer:
        port = send(namespace, 10, answer=True)
        # The packets and the answers, of which the first alone meets the chain of NAT.
        tracer.wait(8 * COUNT + 1)
        rows = tracer.finish()
    (entry,) = listed(namespace, port)
    orig = (entry["src"], int(entry["sport"]), entry["dst"], int(entry["dport"]), 0)
    assert orig[3] == 10
    # THEN raw is before conntrack, and each other row is of the one connection
    for row in rows:
        found = tuple(row[name] for name in TUPLE)
        if row["chain"] == "raw":
            assert (row["ct_state"], found) == (None, EMPTY)
        else:
            assert found == orig, row
    # AND the mark is not known, as it may have changed since
    assert {row["ct_mark"] for row in rows} == {None}
    new = {key for key in states(rows) if key[2] == "NEW"}
    assert new == {(chain, "OUTPUT", "NEW") for chain in ("mangle", "nat", "out")} | {
        ("in", "INPUT", "NEW")
    }
    assert set(states(rows)) - new == {
        ("raw", "OUTPUT", None),
        ("mangle", "OUTPUT", "ESTABLISHED"),
        ("out", "OUTPUT", "ESTABLISHED"),
        ("in", "INPUT", "ESTABLISHED"),
    }
    # AND it is one flow
    assert len({row["tables"] for row in rows}) == 1


@needs_state
def test_pings_and_ipv6_have_their_connection_s_addresses(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.nft("""
        table inet t {
            chain out { type filter hook output priority filter; ct state new,established counter; }
        }""")
    with tracing(tmp_path, name(namespace)) as tracer:
        namespace.run("ping", "-c1", "-W9", "127.0.0.1")
        namespace.run("ping", "-c1", "-W9", "::1")
        with namespace.enter(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"ping", ("::1", 9))
            port = sock.getsockname()[1]
        # The two echoes and their replies, and the datagram; its ICMP error is of the same.
        tracer.wait_until(lambda rows: any(row["dport"] == 9 for row in rows) and len(rows) >= 6)
        rows = tracer.finish()
    echoes = [row for row in rows if row["icmp"] in ("8/0", "0/0", "128/0", "129/0")]
    assert len(echoes) == 4
    for row in echoes:
        address = "127.0.0.1" if row["family"] == 4 else "::1"
        assert (row["ct_orig_src"], row["ct_orig_dst"], row["ct_zone"]) == (address, address, 0)
        assert (row["ct_orig_sport"], row["ct_orig_dport"]) == (None, None)
        assert row["ct_state"] == ("NEW" if row["icmp"] in ("8/0", "128/0") else "ESTABLISHED")
    (sent,) = [row for row in rows if row["dport"] == 9]
    assert tuple(sent[name] for name in TUPLE) == ("::1", port, "::1", 9, 0)
    # AND an ICMP error is related to the connection that it quotes, not of it
    (error,) = [row for row in rows if row["icmp"] == "1/4"]
    assert (error["ct_state"], error["ct_orig_src"]) == ("RELATED", None)


@needs_state
def test_a_connection_in_another_zone_has_its_state_and_no_guessed_tuple(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.nft("""
        table ip t {
            chain raw { type filter hook output priority raw; udp dport 9 ct zone set 7; }
            chain out { type filter hook output priority filter; counter; }
        }""")
    with tracing(tmp_path, name(namespace), "udp dst port 9") as tracer:
        port = send(namespace, 9)
        tracer.wait(2 * COUNT)
        rows = tracer.finish()
    (entry,) = listed(namespace, port)
    assert entry["zone"] == "7"
    assert states(rows) == {("raw", "OUTPUT", None): COUNT, ("out", "OUTPUT", "NEW"): COUNT}
    assert {tuple(row[name] for name in TUPLE) for row in rows} == {EMPTY}


@needs_state
def test_invalid_is_what_ct_state_invalid_counts_behind_conntrack(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.nft("""
        table inet t {
            chain raw { type filter hook output priority raw; counter; }
            chain out { type filter hook output priority filter; ct state invalid counter; }
            chain in { type filter hook input priority filter; ct state invalid counter; }
        }""")
    with tracing(tmp_path, name(namespace), "tcp dst port 7") as tracer:
        send_invalid(namespace)
        tracer.wait(3 * COUNT)
        rows = tracer.finish()
    counted = re.findall(r"ct state invalid counter packets (\d+)", namespace.run(
        "nft", "list", "ruleset"))  # fmt: skip
    assert counted == [str(COUNT)] * 2
    assert states(rows) == {
        ("raw", "OUTPUT", None): COUNT,
        ("out", "OUTPUT", "INVALID"): COUNT,
        ("in", "INPUT", "INVALID"): COUNT,
    }


def test_without_a_rule_that_needs_conntrack_no_packet_is_invalid(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    namespace.nft("""
        table inet t {
            chain out { type filter hook output priority filter; counter; }
        }""")
    with tracing(tmp_path, name(namespace), "tcp dst port 7") as tracer:
        send_invalid(namespace)
        tracer.wait(COUNT)
        rows = tracer.finish()
    assert {row["ct_state"] for row in rows} == {None}


@needs_state
def test_a_packet_under_notrack_is_untracked(namespace: RulesetNamespace, tmp_path: Path) -> None:
    namespace.nft("""
        table inet t {
            chain raw { type filter hook output priority raw; udp dport 9 notrack; }
            chain out { type filter hook output priority filter; ct state untracked counter; }
        }""")
    with tracing(tmp_path, name(namespace), "udp dst port 9") as tracer:
        send(namespace, 9)
        tracer.wait(2 * COUNT)
        rows = tracer.finish()
    assert f"ct state untracked counter packets {COUNT} " in namespace.run("nft", "list", "ruleset")
    assert states(rows)["out", "OUTPUT", "UNTRACKED"] == COUNT


def test_a_bridged_packet_has_the_ports_that_physdev_matches(prefix: str, tmp_path: Path) -> None:
    physdev = "-m physdev --physdev-in {} --physdev-out {} --physdev-is-bridged".format(*PORTS)
    rules = f"*filter\n-A FORWARD -p udp -m udp --dport 9 {physdev}\nCOMMIT\n*mangle\nCOMMIT\n"
    try:
        bridge = Bridge(prefix).__enter__()
    except NetworkError as error:
        pytest.skip(f"no bridge here: {error}")
    try:
        bridge.run("iptables-legacy-restore", text=rules)
        with (
            tracing(tmp_path, bridge.name, "udp dst port 9") as tracer,
            socket_in(bridge.hosts[0], socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            for _ in range(COUNT):
                sock.sendto(b"ping", (ADDRESSES[1], 9))
            tracer.wait(4 * COUNT)
            rows = tracer.finish()
        counters = read_counters(bridge.run("iptables-legacy-save", "-c").stdout)
    finally:
        bridge.__exit__()
    assert counters["filter", "FORWARD", 1][0] == COUNT, counters
    ports = Counter((row["hook"], row["table"], row["physin"], row["physout"]) for row in rows)
    # nfnetlink_log gives the port of a packet's device: in POSTROUTING there is none to come in by.
    assert ports == {
        ("PREROUTING", "mangle", PORTS[0], None): COUNT,
        ("FORWARD", "mangle", *PORTS): COUNT,
        ("FORWARD", "filter", *PORTS): COUNT,
        ("POSTROUTING", "mangle", None, PORTS[1]): COUNT,
    }


def test_a_namespace_that_is_named_while_it_is_traced_has_its_name_in_later_rows(
    namespace: RulesetNamespace, prefix: str, tmp_path: Path
) -> None:
    namespace.nft("table ip t { chain out { type filter hook output priority 0; }; }")
    mounted = Path("/run/netns", f"{prefix}-new")
    with tracing(tmp_path, name(namespace), "udp dst port 9") as tracer:
        send(namespace, 9, 1)
        tracer.wait(1)
        assert tracer.rows[0]["netns_name"] == name(namespace)
        # WHEN it is given another name
        mounted.touch()
        subprocess.run(["mount", "--bind", namespace.path, mounted], check=True)
        try:
            subprocess.run(["umount", namespace.path], check=True)
            Path(namespace.path).unlink()
            # THEN rows have it once the agent has looked
            while tracer.rows[-1]["netns_name"] != mounted.name:
                with inside(str(mounted), namespace.inode), socket.socket(type=2) as sock:
                    sock.sendto(b"ping", ("127.0.0.1", 9))
                tracer.wait(len(tracer.rows) + 1)
        finally:
            Path(namespace.path).touch()
            subprocess.run(["mount", "--bind", mounted, namespace.path], check=True)
            subprocess.run(["umount", mounted], check=True)
            mounted.unlink()
        tracer.finish()
