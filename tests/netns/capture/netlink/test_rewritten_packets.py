# SPDX-License-Identifier: GPL-2.0-only
"""Rows show a packet as it came to the table, though the first rule that it hits changes it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from ipttrace.stream.record import ENTRY, F_NO_LEN
from tests.netns.loopback import until
from tests.netns.netlink_lab import Row, tracing
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace
from tests.netns.wired_namespace import ipv4, ipv6, send, tcp, udp, wired_namespace

TCP, UDP = 6, 17


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def traced(namespace: RulesetNamespace, tmp_path: Path, tables: int) -> list[Row]:
    """The rows at OUTPUT of a datagram from port 1000 to 127.0.0.1, port 9."""
    with tracing(tmp_path, Path(namespace.path).name, "udp port 9") as tracer:
        with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 1000))
            sender.sendto(b"hello", ("127.0.0.1", 9))
        tracer.wait_until(lambda rows: sum(row["hook"] == "OUTPUT" for row in rows) >= tables)
        rows = tracer.finish()
    return [row for row in rows if row["hook"] == "OUTPUT"]


def test_a_rule_that_sets_address_and_port_shows_those_that_the_packet_came_with(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN a first rule that changes the destination, and a chain behind it
    namespace.nft("""
    table ip a { chain out { type filter hook output priority 0; policy accept;
      ip daddr 127.0.0.1 udp dport 9 ip daddr set 127.0.0.2 udp dport set 10 ip ttl set 5 counter
    }
    }
    table ip b { chain out { type filter hook output priority 1; policy accept;
      ip daddr 127.0.0.2 udp dport 10 ip ttl 5 counter
    }
    }""")
    rows = traced(namespace, tmp_path, 2)
    # THEN both rules counted the packet, and each row has the packet as it came
    assert namespace.run("nft", "list", "ruleset").count("counter packets 1 ") == 2
    shown = [(row["table"], row["dst"], row["dport"], row["sport"], row["len"]) for row in rows]
    assert shown == [("a", "127.0.0.1", 9, 1000, 33), ("b", "127.0.0.2", 10, 1000, 33)]


def test_what_a_rule_before_may_have_changed_is_left_out(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN two rules that set the destination, of which the kernel reports the second's result
    namespace.nft("""
    table ip a { chain out { type filter hook output priority 0; policy accept;
      udp dport 9 counter
      udp dport 9 ip daddr set 127.0.0.2
    }
    }
    table ip b { chain out { type filter hook output priority 1; policy accept;
      udp dport 9 ip daddr set 127.0.0.3
    }
    }""")
    rows = traced(namespace, tmp_path, 2)
    # THEN nobody can tell with which the packet came to the second chain
    assert [(row["table"], row["dst"]) for row in rows] == [("a", "127.0.0.1"), ("b", None)]


@pytest.fixture
def wired() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        yield one


def reported(
    namespace: RulesetNamespace, packet: bytes, tables: set[bytes]
) -> dict[bytes, dict[str, bytes]]:
    """Of each table, what its first record has of a packet that comes from outside.

    "packet": its bytes, from the network header on; "mac": the link-layer header.
    """
    found: dict[bytes, dict[str, bytes]] = {}
    with closing(NetlinkEngine(Options(netns=Path(namespace.path).name))) as engine:
        engine.arm()
        send(namespace, packet)

        def arrived() -> bool:
            for entry in engine.take()[ENTRY]:
                of = {
                    "packet": entry["packet"].tobytes()[: entry["caplen"]],
                    "mac": entry["mac"].tobytes()[: entry["mac_len"]],
                    "len": b"" if entry["flags"] & F_NO_LEN else b"%d" % entry["len"],
                }
                # The kernel's own packets (multicast listener reports) pass as well.
                if of["packet"][9 if of["packet"][0] >> 4 == 4 else 6] in (TCP, UDP):
                    found.setdefault(bytes(entry["table"]), of)
            return tables <= found.keys()

        until(arrived, "the records")
    return found


def less_one(packet: bytes, at: int) -> bytes:
    """The packet behind a router: one less at this offset, without its IPv4 checksum."""
    return packet[:at] + bytes([packet[at] - 1]) + packet[at + 1 :]


def unsummed(packet: bytes) -> bytes:
    """The packet without the checksum of IPv4's header."""
    return packet[:10] + packet[12:] if packet[0] >> 4 == 4 else packet


FOUR, SIX = ipv4(17, "10.7.0.1", udp(9)), ipv6(17, "fd07::1", udp(9))
# Hook, the first rule of a chain, what a later rule matches, the packet, and the offset at
# which routing changed it before.
SETS = {
    "DSCP": ("prerouting", "ip dscp set 46", "ip dscp 46", FOUR, 0),
    "DSCP of IPv6": ("prerouting", "ip6 dscp set 46", "ip6 dscp 46", SIX, 0),
    "TTL": ("prerouting", "ip ttl set 9", "ip ttl 9", FOUR, 0),
    "TTL across FORWARD": ("forward", "ip ttl set 9", "ip ttl 9", FOUR, 8),
    "TTL across POSTROUTING": ("postrouting", "ip ttl set 9", "ip ttl 9", FOUR, 8),
    "hop limit": ("forward", "ip6 hoplimit set 9", "ip6 hoplimit 9", SIX, 7),
    "address of IPv6": ("forward", "ip6 saddr set fd05::9", "ip6 saddr fd05::9", SIX, 7),
    "both": ("forward", "ip6 daddr set fd07::9 ip6 hoplimit set 8", "ip6 hoplimit 8", SIX, 7),
}


@pytest.mark.parametrize("of", SETS)
def test_each_chain_has_the_headers_with_which_the_packet_came(
    wired: RulesetNamespace, of: str
) -> None:
    hook, sets, matches, packet, routed = SETS[of]
    family = "ip" if packet[0] >> 4 == 4 else "ip6"
    # GIVEN a first rule that changes the packet, and one behind it that sees the change
    wired.nft(f"""
    table {family} first {{ chain c {{ type filter hook {hook} priority 0; policy accept;
      udp dport 9 {sets} counter
    }}
    }}
    table {family} second {{ chain c {{ type filter hook {hook} priority 1; policy accept;
      udp dport 9 {matches} counter
    }}
    }}""")
    found = reported(wired, packet, {b"first", b"second"})
    # THEN both rules counted it, and the first chain has it as it was sent
    assert wired.run("nft", "list", "ruleset").count("counter packets 1 ") == 2
    came = less_one(packet, routed) if routed else packet
    assert unsummed(found[b"first"]["packet"]) == unsummed(came)
    # AND the second as the first one left it
    assert unsummed(found[b"second"]["packet"]) != unsummed(came)
    assert {one["len"] for one in found.values()} == {b"%d" % len(packet)}


def test_a_hardware_address_that_a_rule_sets_is_not_that_which_the_packet_came_with(
    wired: RulesetNamespace,
) -> None:
    wired.nft("""
    table ip first { chain c { type filter hook prerouting priority 0; policy accept;
      udp dport 9 ether saddr set 02:00:00:00:00:09 counter
    }
    }
    table ip second { chain c { type filter hook prerouting priority 1; policy accept;
      ether saddr 02:00:00:00:00:09 counter
    }
    }""")
    found = reported(wired, FOUR, {b"first", b"second"})
    assert wired.run("nft", "list", "ruleset").count("counter packets 1 ") == 2
    macs = {table: one["mac"][6:12].hex(":") for table, one in found.items()}
    assert macs == {b"first": "02:00:00:00:00:02", b"second": "02:00:00:00:00:09"}


MSS = ["-p", "tcp", "--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS", "--set-mss", "1000"]


def test_a_length_that_a_rule_may_have_changed_twice_is_empty(
    wired: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN a second rule that makes the packet longer, and another such rule, a chain's first
    for words in (["PREROUTING"], ["PREROUTING", *MSS], ["FORWARD", *MSS], ["POSTROUTING"]):
        wired.iptables("-t", "mangle", "-A", *words)
    with tracing(tmp_path, Path(wired.path).name, "tcp port 80") as tracer:
        send(wired, ipv4(6, "10.7.0.1", tcp(80, 0x02)))
        tracer.wait(3)
        rows = tracer.finish()
    # THEN it was sent with 40 bytes, left with 44, and nobody can tell with how many it came
    counters = wired.run("iptables-nft-save", "-c", "-t", "mangle")
    bytes_of = re.findall(r"\[1:(\d+)\] -A (\w+)", counters)
    assert bytes_of[0] == ("40", "PREROUTING")
    assert bytes_of[-1] == ("44", "POSTROUTING")
    shown = [(row["hook"], row["len"]) for row in rows]
    assert shown == [("PREROUTING", 40), ("FORWARD", None), ("POSTROUTING", 44)]


@pytest.mark.parametrize("of", ["TCPMSS", "TTL", "HL", "DNPT"])
def test_a_legacy_table_has_the_packet_as_it_was_before_the_target(
    wired: RulesetNamespace, of: str
) -> None:
    # GIVEN a first rule that changes the packet, and a rule of another table that sees it
    packet, target, later = {
        "TCPMSS": (ipv4(6, "10.7.0.1", tcp(80, 0x02)), " ".join(MSS), "-p tcp --tcp-option 2"),
        "TTL": (FOUR, "-j TTL --ttl-set 9", "-m ttl --ttl-eq 8"),
        "HL": (SIX, "-j HL --hl-set 9", "-m hl --hl-eq 8"),
        "DNPT": (
            ipv6(17, "fd06::1", udp(9)),
            "-d fd06::/64 -j DNPT --src-pfx fd06::/64 --dst-pfx fd07:1::/64",
            "-d fd07:1::/64",
        ),
    }[of]
    six = "6" if packet[0] >> 4 == 6 else ""
    rules = f"*mangle\n-A PREROUTING {target}\nCOMMIT\n*filter\n-A FORWARD {later}\nCOMMIT\n"
    wired.run(f"ip{six}tables-legacy-restore", input=rules)
    found = reported(wired, packet, {b"mangle", b"filter"})
    # THEN the later rule saw the change, and the first table has the packet as it was sent
    counters = wired.run(f"ip{six}tables-legacy-save", "-c")
    assert len(re.findall(r"\[1:\d+\] -A FORWARD", counters)) == 1
    assert found[b"mangle"] == {**found[b"mangle"], "packet": packet, "len": b"%d" % len(packet)}
    assert found[b"filter"]["packet"] != packet
