# SPDX-License-Identifier: GPL-2.0-only
"""PACKET in words: what each word means, and where a wrong one is."""

from __future__ import annotations

import pytest

from ipttrace.whatif.errors import PacketError
from ipttrace.whatif.packet.build import build
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.packet.words import Place, parse

SYN = "tcp 10.1.0.2:40000 > 10.2.0.2:443 in eth0 syn"


def described(text: str) -> Packet:
    found = parse(text)
    assert isinstance(found, Packet)
    return found


def test_a_syn_in_words_has_its_ends_device_and_flag() -> None:
    packet = described(SYN)
    assert packet.ends == ("10.1.0.2", 40000, "10.2.0.2", 443)
    assert (packet.device, packet.out, packet.flags) == ("eth0", False, 2)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("udp > 10.2.0.2:53 out mark 0x3", "mark", 3),
        ("icmp 10.1.0.2 > 10.2.0.2 in eth0", "icmp", (8, 0)),
        ("icmp 10.1.0.2 > 10.2.0.2 in eth0 type 3 code 4", "icmp", (3, 4)),
        ("icmp fd00::1 > fd00::2 in eth0 echo-reply", "icmp", (129, 0)),
        ("tcp [fd00::1]:1 -> [fd00::2]:2 in eth0", "dport", 2),
        ("tcp 10.1.0.2 to 10.2.0.2:443 in eth0.10 syn,ack", "flags", 18),
        ("tcp 10.1.0.2:1 > 10.2.0.2:443 in eth0 syn ack", "flags", 18),
        ("tcp 10.1.0.2:1 > 10.2.0.2:443 in eth0 none", "flags", 0),
        ("tcp 10.1.0.2:1 > 10.2.0.2:443 in eth0 established", "flags", 16),
        ("tcp 10.1.0.2:1 > 10.2.0.2:443 in eth0 established", "state", "established"),
        ("udp 10.1.0.2:1 > 10.2.0.2:443 in eth0 fragment 1480+", "fragment", (1480, True)),
        ("udp 10.1.0.2:1 > 10.2.0.2:443 in eth0 payload 0x0001", "payload", b"\0\1"),
        ("udp 10.1.0.2:1 > 10.2.0.2:443 in eth0 payload GET", "payload", b"GET"),
        ("gre 10.1.0.2 > 10.2.0.2 in eth0 ttl 1", "ttl", 1),
        ("proto 89 10.1.0.2 > 10.2.0.2 in eth0", "proto", 89),
        ("tcp 10.1.0.2:1 > 10.2.0.2:443 in eth0 mac AA:bb:cc:00:00:01", "mac_src",
         "aa:bb:cc:00:00:01"),
        ("tcp 10.2.0.2:443 > 10.2.0.1:4 in eth1 reply of 10.1.0.2:4 > 10.2.0.2:443", "original",
         ("10.1.0.2", 4, "10.2.0.2", 443)),
    ],
)  # fmt: skip
def test_each_word_has_its_meaning(text: str, name: str, value: object) -> None:
    assert getattr(described(text), name) == value


@pytest.mark.parametrize(
    ("text", "message", "under"),
    [
        ("tpc 10.1.0.2:1 > 10.2.0.2:2 in eth0", "did you mean tcp", "tpc"),
        ("tcp 10.1.0.2:1 10.2.0.2:2 in eth0", "> belongs here", "10.2.0.2:2"),
        ("tcp 10.1.0.300:1 > 10.2.0.2:2 in eth0", "is not an address", "10.1.0.300:1"),
        ("tcp 10.1.0.2:1 > [fd00::2]:2 in eth0", "the other IPv6", "[fd00::2]:2"),
        ("tcp 10.1.0.2:1 > 10.2.0.2 in eth0", "port is missing", "10.2.0.2"),
        ("tcp 10.1.0.2:1 > 10.2.0.2:70000 in eth0", "is not a port", "10.2.0.2:70000"),
        ("tcp 10.1.0.2:1 > 10.2.0.2:2", "where does it come in", ""),
        ("tcp 10.1.0.2:1 > 10.2.0.2:2 in", "a device is missing", ""),
        ("tcp 10.1.0.2:1 > 10.2.0.2:2 in a/b", "is not a device", "a/b"),
        ("tcp 10.1.0.2:1 > 10.2.0.2:2 in eth0 estblished", "did you mean established", "estbl"),
        ("udp 10.1.0.2:1 > 10.2.0.2:2 in eth0 syn", "belongs to tcp", "syn"),
        ("udp 10.1.0.2:1 > 10.2.0.2:2 in eth0 ttl 300", "0 to 255", "300"),
        ("udp 10.1.0.2:1 > 10.2.0.2:2 in eth0 mark 3", "without a mark", "mark"),
        ("icmp 10.1.0.2:1 > 10.2.0.2 in eth0", "no ports", "10.1.0.2:1"),
        ("tcp > 10.2.0.2:2 in eth0", "needs a source", ">"),
        ("from row x of t.iptr", "a row's number", "x"),
        ("pcap trace.pcap in eth0", "FILE#NUMBER", "trace.pcap"),
        ("hex 4500 in eth0 ttl 3", "sent as they are", "ttl"),
        ("", "describe a packet", ""),
    ],
)
def test_a_wrong_word_is_underlined(text: str, message: str, under: str) -> None:
    with pytest.raises(PacketError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    shown, caret = caught.value.caret().split("\n")
    assert shown[caret.index("^") :].startswith(under)


def test_packets_in_files_are_named_by_number() -> None:
    row, pcap = parse("from row 12 of trace.iptr"), parse("pcap a#b.pcap#3 in eth0")
    assert isinstance(row, Place)
    assert (row.kind, row.file, row.number) == ("row", "trace.iptr", 12)
    assert isinstance(pcap, Place)
    assert (pcap.file, pcap.number, pcap.rest.device) == ("a#b.pcap", 3, "eth0")


def test_an_escape_in_a_word_is_not_shown_as_it_is() -> None:
    with pytest.raises(PacketError) as caught:
        parse("tcp \x1b[2J > 1.2.3.4:5 in eth0")
    assert "\x1b" not in str(caught.value) + caught.value.caret()


def test_a_packet_has_the_length_that_it_is_given() -> None:
    for text in ("udp 10.1.0.2:1 > 10.2.0.2:2 in eth0", "icmp fd00::1 > fd00::2 in eth0"):
        assert len(build(described(f"{text} len 300"))) == 300
