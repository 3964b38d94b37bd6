# SPDX-License-Identifier: GPL-2.0-only
"""Messages of nfnetlink_log are decoded as they were sent, and damaged ones do no harm."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest

from ipttrace.capture.netlink.events import LEGACY_PACKET_LEN
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.reader import Batch

ECHO = bytes.fromhex("4500005400004000400126a70a0000010a000002") + b"\x08\x00" + bytes(62)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *inner: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(inner))


def tuple_of(kind: int, addresses: Sequence[bytes], *proto: bytes) -> bytes:
    first = 1 if len(addresses[0]) == 4 else 3
    ip = [attribute(first + i, address) for i, address in enumerate(addresses)]
    return nest(kind, nest(1, *ip), nest(2, *proto))


def ports(number: int, source: int, destination: int) -> list[bytes]:
    return [
        attribute(1, bytes([number])),
        attribute(2, struct.pack("!H", source)),
        attribute(3, struct.pack("!H", destination)),
    ]


def message(
    *attributes: bytes,
    prefix: bytes = b"TRACE: filter:INPUT:rule:7 ",
    seq: int = 0,
    family: int = 2,
    packet: bytes = ECHO,
    kind: int = 4 << 8,
    group: int = 0,
) -> bytes:
    body = b"".join(
        (
            attribute(1, struct.pack("!HBx", 0x0800, 1)),
            attribute(10, prefix + b"\0"),
            attribute(12, struct.pack("!I", seq)),
            *attributes,
            attribute(9, packet),
        )
    )
    head = struct.pack("=IHHII", 20 + len(body), kind, 0, 0, 0)
    return head + struct.pack("!BBH", family, 0, group) + body


def batch(messages: Sequence[bytes], time: int = 5) -> Batch:
    width = (max(map(len, messages)) + 3) & ~3
    data = np.zeros((len(messages), width), np.uint8)
    for row, one in zip(data, messages, strict=True):
        row[: len(one)] = np.frombuffer(one, np.uint8)
    return Batch(time, data, np.array([len(one) for one in messages], np.int32))


CONNECTION = nest(
    18,
    tuple_of(1, [b"\x0a\0\0\1", b"\x0a\0\0\2"], *ports(17, 40000, 53)),
    tuple_of(2, [b"\x7f\0\0\1", b"\x0a\0\0\1"], *ports(17, 5353, 40000)),
    attribute(12, struct.pack("!I", 0xFEDCBA98)),
    attribute(3, struct.pack("!I", 0x18A)),
    attribute(8, struct.pack("!I", 42)),
    attribute(18, struct.pack("!H", 9)),
)


def decode(*messages: bytes) -> np.ndarray:
    return nflog.NflogDecoder().decode(batch(messages))


def test_every_field_of_a_message_is_read() -> None:
    # GIVEN a message with all attributes
    one = message(
        attribute(2, struct.pack("!I", 0xDEADBEEF)),
        attribute(4, struct.pack("!I", 3)),
        attribute(5, struct.pack("!I", 0x80000001)),
        attribute(16, bytes(range(14))),
        CONNECTION,
        attribute(19, struct.pack("!I", 3)),
        seq=0xFFFFFFFF,
    )
    # WHEN it is decoded among others
    event = decode(message(), one, message())[1]
    # THEN each field has its value
    assert (event["seq"], event["family"], event["hook"]) == (2**32 - 1, 2, 1)
    assert (event["table"], event["chain"]) == (b"filter", b"INPUT")
    assert (event["match"], event["rulenum"], event["protocol"]) == (0, 7, 0x0800)
    assert (event["mark"], event["in_ifindex"], event["out_ifindex"]) == (0xDEADBEEF, 3, 2**31 + 1)
    assert (event["mac_len"], bytes(event["mac"])) == (14, bytes(range(14)) + b"\0\0")
    assert (event["caplen"], event["len"]) == (84, 84)
    assert bytes(event["packet"][:84]) == ECHO
    assert (event["tracked"], event["ct_info"], event["ct_proto"]) == (True, 3, 17)
    assert (event["ct"], event["ct_status"], event["ct_mark"]) == (0xFEDCBA98, 0x18A, 42)
    assert event["ct_zone"] == 9
    assert bytes(event["ct_orig_src"]) == b"\x0a\0\0\1" + bytes(12)
    assert bytes(event["ct_orig_dst"]) == b"\x0a\0\0\2" + bytes(12)
    assert bytes(event["ct_reply_src"]) == b"\x7f\0\0\1" + bytes(12)
    assert bytes(event["ct_reply_dst"]) == b"\x0a\0\0\1" + bytes(12)
    assert (event["ct_orig_sport"], event["ct_orig_dport"]) == (40000, 53)
    assert (event["ct_reply_sport"], event["ct_reply_dport"]) == (5353, 40000)


def test_a_message_without_conntrack_beside_one_with_it_has_none() -> None:
    with_it, without = decode(message(CONNECTION), message())
    assert (with_it["tracked"], without["tracked"]) == (True, False)
    assert without["ct"] == 0
    assert not without["ct_orig_src"].any()


def test_icmpv6_identifier_and_type_are_in_the_ports_as_in_the_kernel() -> None:
    # GIVEN an echo request in a zone of one direction
    proto = [
        attribute(1, bytes([58])),
        attribute(7, struct.pack("!H", 0x1234)),
        attribute(8, bytes([128])),
        attribute(9, bytes([3])),
    ]
    source, destination = bytes(range(16)), bytes(range(16, 32))
    orig = nest(
        1,
        nest(1, attribute(3, source), attribute(4, destination)),
        nest(2, *proto),
        attribute(3, struct.pack("!H", 77)),
    )
    event = decode(message(nest(18, orig), family=10))[0]
    assert bytes(event["ct_orig_src"]) == source
    assert bytes(event["ct_orig_dst"]) == destination
    assert (event["ct_proto"], event["ct_zone"]) == (58, 77)
    assert (event["ct_orig_sport"], event["ct_orig_dport"]) == (0x1234, 128 << 8 | 3)


@pytest.mark.parametrize(
    ("prefix", "parts"),
    [
        (b"TRACE: raw:PREROUTING:policy:2 ", (b"raw", b"PREROUTING", 2, 2)),
        (b"TRACE: nat:a:b:rule:1 ", (b"nat", b"a:b", 0, 1)),
        (b"TRACE: nat::rule:9:return:12 ", (b"nat", b":rule:9", 1, 12)),
        (b"TRACE: filter:a\nb c:rule:4294967295 ", (b"filter", b"a\nb c", 0, 4294967295)),
        (b"TRACE: filter:INPUT:rule:4294967296 ", None),
        (b"TRACE: filter:INPUT:rule:1", None),
        (b"TRACE: filter:INPUT:rule:1 \n", None),
        (b"TRACE: filter:INPUT:jump:1 ", None),
        (b"TRACE: filter:" + b"x" * 33 + b":rule:1 ", None),
        (b"TRACE: ", None),
        (b"dropped: ", None),
        (b"", None),
    ],
)
def test_any_chain_name_is_read_and_other_prefixes_are_not_taken_for_a_trace(
    prefix: bytes, parts: tuple[bytes, bytes, int, int] | None
) -> None:
    event = decode(message(prefix=prefix))[0]
    found = (event["table"], event["chain"], event["match"], event["rulenum"])
    assert found == (parts or (b"", b"", nflog.NOT_TRACE, 0))


def test_the_length_of_a_packet_that_was_cut_is_read_from_its_header() -> None:
    # GIVEN packets cut at 128 bytes: IPv4, IPv6, a jumbogram, one too large for its header
    four = struct.pack("!BBH", 0x45, 0, 1500).ljust(128, b"\1")
    six = struct.pack("!BBHHBB", 0x60, 0, 0, 1452, 17, 64).ljust(128, b"\1")
    jumbo = struct.pack("!BBHHBB", 0x60, 0, 0, 0, 0, 64).ljust(40, b"\1")
    jumbo = (jumbo + struct.pack("!BBBBI", 17, 0, 0xC2, 4, 70000)).ljust(128, b"\1")
    large = struct.pack("!BBH", 0x45, 0, 0).ljust(128, b"\1")
    small = struct.pack("!BBH", 0x45, 0, 9999).ljust(60, b"\1")
    other = bytes([0xF0]).ljust(128, b"\1")
    events = decode(*(message(packet=one) for one in (four, six, jumbo, large, small, other)))
    # THEN the header gives their length; a complete packet needs no header
    assert events["len"].tolist() == [1500, 1492, 70040, 0, 60, 0]
    assert events["caplen"].tolist() == [128] * 4 + [60, 128]


def test_messages_that_are_not_packets_of_group_0_are_only_counted() -> None:
    decoder = nflog.NflogDecoder()
    others = [message(kind=4 << 8 | 1), message(kind=2), message(group=3), b"", message()[:19]]
    events = decoder.decode(batch([message(seq=1), *others, message(seq=2)]))
    assert events["seq"].tolist() == [1, 2]
    assert decoder.unread == len(others)
    assert len(decoder.decode(batch([b"\0" * 3]))) == 0
    assert len(decoder.decode()) == 0


def test_several_batches_in_one_call_give_the_same_as_one_by_one() -> None:
    parts = [
        batch([message(seq=0), message(CONNECTION, seq=1)], time=1000),
        batch([message(seq=2, packet=b"\x45")], time=2000),
        batch([message(kind=3), message(seq=3)], time=3000),
    ]
    together = nflog.NflogDecoder().decode(*parts)
    apart = np.concatenate([nflog.NflogDecoder().decode(part) for part in parts])
    assert together.tobytes() == apart.tobytes()
    assert together["time"].tolist() == [936, 1000, 2000, 3000]  # in the order of the socket


@pytest.mark.parametrize(
    ("before", "numbers", "missing"),
    [
        (-1, [0, 1, 2], 0),
        (-1, [3], 3),
        (7, [8, 9, 12, 13], 2),
        (2**32 - 2, [2**32 - 1, 0, 1], 0),
        (2**32 - 2, [0, 3], 3),
        (5, [4], 2**32 - 2),
        (5, [], 0),
    ],
)
def test_each_missing_message_is_counted(before: int, numbers: list[int], missing: int) -> None:
    events = np.zeros(len(numbers), nflog.LOG_MESSAGE)
    events["seq"] = numbers
    assert nflog.missing(before, events) == missing


def test_thousands_of_different_prefixes_are_read() -> None:
    decoder = nflog.NflogDecoder()
    for begin in range(0, 3000, 500):
        prefixes = [f"TRACE: filter:c{i}:rule:{i} ".encode() for i in range(begin, begin + 500)]
        events = decoder.decode(batch([message(prefix=prefix) for prefix in prefixes]))
        assert events["rulenum"].tolist() == list(range(begin, begin + 500))
        assert events["chain"].tolist() == [f"c{i}".encode() for i in range(begin, begin + 500)]


def test_the_cache_of_prefixes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nflog, "_MOST_PREFIXES", 100)
    decoder = nflog.NflogDecoder()
    for i in range(300):
        prefixes = [f"TRACE: filter:c:rule:{n} ".encode() for n in (i, 1000 + i, 0)]
        events = decoder.decode(batch([message(prefix=prefix) for prefix in prefixes]))
        assert events["rulenum"].tolist() == [i, 1000 + i, 0]
    assert len(decoder._numbers) <= 110


def test_30000_damaged_messages_do_no_harm() -> None:
    # GIVEN messages damaged at random: bytes, lengths, ends
    chance = random.Random(4)
    complete = message(
        attribute(2, bytes(4)),
        attribute(4, bytes(4)),
        attribute(16, bytes(14)),
        CONNECTION,
        attribute(19, bytes(4)),
    )
    decoder = nflog.NflogDecoder()
    for _ in range(300):
        messages = []
        for _ in range(100):
            one = bytearray(complete)
            for _ in range(chance.randrange(1, 12)):
                at = chance.randrange(20 if chance.random() < 0.9 else 0, len(one))
                if chance.random() < 0.5:
                    one[at] = chance.choice((0, 1, 4, 0x7F, 0x80, 0xFF, chance.randrange(256)))
                else:
                    length = struct.pack("=H", chance.choice((0, 1, 3, 4, 5, 8, 0x8000, 0xFFFF)))
                    one[at & ~3 : (at & ~3) + 2] = length
            if chance.random() < 0.2:
                del one[chance.randrange(len(one)) :]
            messages.append(bytes(one))
        # WHEN they are decoded THEN nothing is raised, and the events are within bounds
        events = decoder.decode(batch(messages))
        assert len(events) <= len(messages)
        assert (events["caplen"] <= LEGACY_PACKET_LEN).all()
        assert (events["mac_len"] <= 16).all()
        nflog.missing(-1, events)
    assert decoder.unread < 20000
