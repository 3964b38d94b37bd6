# SPDX-License-Identifier: GPL-2.0-only
"""Headers of many packets at once, well-formed and malformed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode.headers import decode

WIDTH = 128
EXTENSIONS = {0, 43, 44, 51, 60}
PORTS = {6, 17, 33, 132, 136}
PLAIN = [
    "version",
    "known",
    "sport",
    "dport",
    "tcp_flags",
    "icmp_type",
    "icmp_code",
    "sub",
    "extra",
    "frag_id",
    "frag_off",
    "l4",
]


def reference(data: bytes, caplen: int, length: int) -> dict[str, Any]:
    """The same, written for a single packet."""
    out: dict[str, Any] = dict.fromkeys(PLAIN, 0)
    out |= {"proto": -1, "src": bytes(16), "dst": bytes(16)}
    data = data[: min(caplen, length, WIDTH)]
    if len(data) >= 20 and data[0] >> 4 == 4 and data[0] & 15 >= 5:
        start, bound = ipv4(data, length, out)
    elif len(data) >= 40 and data[0] >> 4 == 6:
        start, bound = ipv6(data, length, out)
    else:
        return out
    if start == 0 or start >= bound:
        return out
    out["l4"] = start
    transport(data[start:bound], out)
    return out


def ipv4(data: bytes, length: int, out: dict[str, Any]) -> tuple[int, int]:
    total = int.from_bytes(data[2:4])
    if total == 0 and length > 65535:
        total = length
    out |= {"version": 4, "proto": data[9]}
    out |= {"src": data[12:16] + bytes(12), "dst": data[16:20] + bytes(12)}
    start = (data[0] & 15) * 4
    word = int.from_bytes(data[6:8])
    if word & 0x3FFF:
        out["known"] |= packet.FRAGMENT | (packet.MORE if word & 0x2000 else 0)
        out["frag_id"] = int.from_bytes(data[4:6])
        out["frag_off"] = (word & 0x1FFF) * 8
        if out["frag_off"]:
            start = 0
    return start, min(total, len(data))


def ipv6(data: bytes, length: int, out: dict[str, Any]) -> tuple[int, int]:
    out |= {"version": 6, "src": data[8:24], "dst": data[24:40]}
    total = 40 + int.from_bytes(data[4:6])
    kind = data[6]
    if total == 40 and (length > 65575 or kind == 0):
        total = length
    bound = min(total, len(data))
    at = 40
    for _ in range(10):
        if kind not in EXTENSIONS:
            break
        if at + 8 > bound:
            kind, at = -1, 0
            break
        size = {51: (data[at + 1] + 2) * 4, 44: 8}.get(kind, (data[at + 1] + 1) * 8)
        if kind == 44:
            word = int.from_bytes(data[at + 2 : at + 4])
            out["known"] |= packet.FRAGMENT | (packet.MORE if word & 1 else 0)
            out["frag_id"] = int.from_bytes(data[at + 4 : at + 8])
            out["frag_off"] = word & 0xFFF8
            if out["frag_off"]:
                kind, at = data[at], 0
                break
        kind, at = data[at], at + size
    else:
        if kind in EXTENSIONS:
            kind, at = -1, 0
    out["proto"] = kind
    return at, bound


def transport(data: bytes, out: dict[str, Any]) -> None:
    proto, size = out["proto"], len(data)
    if proto in PORTS and size >= 4:
        out["sport"], out["dport"] = struct.unpack(">HH", data[:4])
        out["known"] |= packet.PORTS
        if proto == 6 and size >= 14:
            out["tcp_flags"] = int.from_bytes(data[12:14]) & 0x1FF
            out["known"] |= packet.TCP_FLAGS
    if proto == (1 if out["version"] == 4 else 58) and size >= 2:
        out["icmp_type"], out["icmp_code"] = data[:2]
        out["known"] |= packet.ICMP
        queries = {0, 8, *range(13, 19)} if proto == 1 else {128, 129, 139, 140}
        if data[0] in queries and size >= 6:
            out["sub"] = int.from_bytes(data[4:6])
            out["known"] |= packet.QUERY
    at = None
    if proto == 47 and size >= 4:
        out["sub"] = int.from_bytes(data[2:4])
        out["known"] |= packet.GRE
        if data[0] & 0x20:
            at = 8 if data[0] & 0xC0 else 4
    elif proto in (50, 51) and size >= 4:
        at = 4 if proto == 51 else 0
    if at is not None and size >= at + 4:
        out["extra"] = int.from_bytes(data[at : at + 4])
        out["known"] |= packet.EXTRA


def decoded(*packets: tuple[bytes, int, int]) -> list[dict[str, Any]]:
    """The result of `decode`, a dict per packet."""
    rows = np.full((len(packets), WIDTH), 0xEE, np.uint8)
    for row, (data, _, _) in zip(rows, packets, strict=True):
        row[: len(data)] = np.frombuffer(data[:WIDTH], np.uint8)
    headers = decode(
        rows,
        np.array([caplen for _, caplen, _ in packets], np.uint16),
        np.array([length for _, _, length in packets], np.uint32),
    )
    return [
        {name: int(getattr(headers, name)[at]) for name in (*PLAIN, "proto")}
        | {"src": headers.src[at].tobytes(), "dst": headers.dst[at].tobytes()}
        for at in range(len(packets))
    ]


def one(data: bytes, length: int | None = None) -> dict[str, Any]:
    (found,) = decoded((data, min(len(data), WIDTH), len(data) if length is None else length))
    return found


def v4(proto: int, payload: bytes, *, total: int | None = None, frag: int = 0) -> bytes:
    size = 20 + len(payload) if total is None else total
    return (
        struct.pack(">BBHHHBBH", 0x45, 0, size, 0x1234, frag, 64, proto, 0)
        + bytes((10, 0, 0, 1, 10, 0, 0, 2))
        + payload
    )


def v6(upper: int, payload: bytes, *, size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return struct.pack(">IHBB", 0x60000000, length, upper, 64) + bytes(range(32)) + payload


# Almost valid headers, so that random changes reach deep into the decoder.
_likely = st.sampled_from([0, 1, 6, 17, 33, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136])
_short = st.sampled_from([0, 0, 0, 1, 2, 255])


@st.composite
def _nearly(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        ihl = draw(st.integers(4, 15))
        data = bytearray(
            v4(draw(_likely), body, frag=draw(st.sampled_from([0, 0x2000, 5, 0x4000])))
        )
        data[0] = 0x40 | ihl
        if draw(st.booleans()):
            data[2:4] = draw(st.binary(min_size=2, max_size=2))
        return bytes(data)
    chain = b""
    kinds = draw(st.lists(st.sampled_from([0, 43, 44, 51, 60]), max_size=12))
    upper = draw(_likely)
    for at in range(len(kinds)):
        following = kinds[at + 1] if at + 1 < len(kinds) else upper
        chain += bytes((following, draw(_short))) + draw(st.sampled_from([bytes(6), b"\0\1abcd"]))
    size = draw(st.sampled_from([None, None, 0, 8, 40]))
    return v6(kinds[0] if kinds else upper, chain + body, size=size)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.one_of(_nearly(), st.binary(max_size=WIDTH)),
            st.one_of(st.just(WIDTH), st.integers(0, 65535)),
            st.one_of(st.just(1500), st.integers(0, 1 << 17)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_decoding_many_packets_agrees_with_the_reference(
    packets: list[tuple[bytes, int, int]],
) -> None:
    whole = [(data[:WIDTH].ljust(WIDTH, b"\xee"), cap, length) for data, cap, length in packets]
    assert decoded(*packets) == [reference(*each) for each in whole]


@settings(max_examples=200)
@given(st.one_of(_nearly(), st.binary(max_size=WIDTH)), st.integers(0, WIDTH))
def test_bytes_beyond_the_captured_ones_are_not_used(data: bytes, caplen: int) -> None:
    first = data.ljust(WIDTH, b"\x00")[:WIDTH]
    second = first[:caplen].ljust(WIDTH, b"\xff")
    assert decoded((first, caplen, 1500)) == decoded((second, caplen, 1500))


def test_a_tcp_segment_shows_ports_and_all_nine_flags() -> None:
    found = one(v4(6, struct.pack(">HHIIBB", 40000, 443, 1, 2, 0x51, 0xC2) + bytes(6)))
    assert (found["sport"], found["dport"]) == (40000, 443)
    assert found["tcp_flags"] == 0x1C2
    assert found["known"] == packet.PORTS | packet.TCP_FLAGS


@pytest.mark.parametrize("proto", sorted(PORTS))
@pytest.mark.parametrize("build", [v4, v6])
def test_every_protocol_with_ports_shows_them(proto: int, build: Any) -> None:
    found = one(build(proto, struct.pack(">HH", 1, 53) + bytes(16)))
    assert (found["sport"], found["dport"], found["proto"]) == (1, 53, proto)


def test_ports_follow_ipv4_options() -> None:
    data = bytearray(v4(17, bytes(8) + struct.pack(">HHHH", 7, 9, 8, 0)))
    data[0] = 0x47
    assert (one(bytes(data))["sport"], one(bytes(data))["dport"]) == (7, 9)


def test_a_later_fragment_has_an_offset_and_no_ports() -> None:
    found = one(v4(17, bytes(16), frag=0x2000 | 185))
    assert found["known"] == packet.FRAGMENT | packet.MORE
    assert (found["frag_id"], found["frag_off"]) == (0x1234, 1480)
    assert one(v4(17, bytes(16), frag=0x4000))["known"] == packet.PORTS


def test_udp_is_found_behind_ipv6_extension_headers() -> None:
    hop = bytes((43, 0)) + bytes(6)
    routing = bytes((60, 1)) + bytes(14)
    options = bytes((44, 0)) + bytes(6)
    fragment = struct.pack(">BBHI", 51, 0, 1, 0xCAFE0001)
    auth = bytes((17, 1)) + bytes(10)
    data = v6(0, hop + routing + options + fragment + auth + struct.pack(">HHHH", 5, 6, 8, 0))
    found = one(data)
    assert (found["proto"], found["sport"], found["dport"]) == (17, 5, 6)
    assert found["frag_id"] == 0xCAFE0001
    assert found["known"] == packet.PORTS | packet.FRAGMENT | packet.MORE


def test_a_mobility_header_is_the_protocol_of_its_packet() -> None:
    assert one(v6(135, bytes((59, 0)) + bytes(6)))["proto"] == 135
    assert one(v6(59, b""))["proto"] == 59


def test_too_many_extension_headers_give_an_unknown_protocol() -> None:
    found = one(v6(60, (bytes((60, 0)) + bytes(6)) * 11))
    assert (found["proto"], found["l4"], found["version"]) == (-1, 0, 6)


def test_icmp_echo_has_an_identifier_and_an_error_has_none() -> None:
    echo = one(v4(1, struct.pack(">BBHHH", 8, 0, 0, 77, 1)))
    assert (echo["icmp_type"], echo["icmp_code"], echo["sub"]) == (8, 0, 77)
    assert echo["known"] == packet.ICMP | packet.QUERY
    assert one(v4(1, struct.pack(">BBHI", 3, 1, 0, 77)))["known"] == packet.ICMP
    assert one(v6(58, struct.pack(">BBHHH", 129, 0, 0, 78, 1)))["sub"] == 78
    assert one(v4(58, bytes(8)))["known"] == 0  # ICMPv6 in IPv4 is not ICMP


def test_gre_shows_its_key_and_esp_and_ah_their_spi() -> None:
    plain = one(v4(47, struct.pack(">HH", 0, 0x0800) + bytes(4)))
    assert (plain["sub"], plain["known"]) == (0x0800, packet.GRE)
    assert one(v4(47, struct.pack(">HHI", 0x2000, 0x6558, 42)))["extra"] == 42
    assert one(v4(47, struct.pack(">HHII", 0xA000, 0x6558, 1, 43)))["extra"] == 43
    assert one(v4(50, struct.pack(">II", 44, 1)))["extra"] == 44
    assert one(v4(51, struct.pack(">BBHII", 6, 4, 0, 45, 1)))["extra"] == 45


def test_a_total_length_within_the_header_leaves_the_ports_unknown() -> None:
    found = one(v4(6, bytes(20), total=22))
    assert (found["version"], found["proto"], found["known"], found["l4"]) == (4, 6, 0, 20)
    assert one(v4(6, bytes(20), total=10))["l4"] == 0


def test_an_offloaded_packet_above_64_kib_has_ports() -> None:
    assert one(v4(6, bytes(20), total=0), length=90_000)["known"] & packet.PORTS
    assert one(v6(6, bytes(20), size=0), length=90_000)["known"] & packet.PORTS
    assert not one(v4(6, bytes(20), total=0))["known"]


def test_no_packets_give_empty_columns() -> None:
    assert len(decode(np.zeros((0, WIDTH), np.uint8), np.zeros(0), np.zeros(0)).proto) == 0
