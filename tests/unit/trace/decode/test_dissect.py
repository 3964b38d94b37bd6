# SPDX-License-Identifier: GPL-2.0-only
"""One packet's headers field by field, and the dump of its bytes."""

from __future__ import annotations

import struct
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipttrace.trace.decode.dissect import MOST_LAYERS, dissect, hex_dump
from ipttrace.trace.decode.layer import Layer
from tests.data.records import udp, v4


def v6(upper: int, payload: bytes) -> bytes:
    head = struct.pack(">IHBB", 0x6B812345, len(payload), upper, 63)
    return head + bytes(15) + b"\x01" + bytes(15) + b"\x02" + payload


def one(layers: tuple[Layer, ...], name: str, depth: int = 0) -> dict[str, str]:
    """The fields of the only layer of this name."""
    found = [layer for layer in layers if layer.name == name and layer.depth == depth]
    assert len(found) == 1, layers
    return dict(found[0].fields)


def test_a_syn_shows_its_ports_flags_and_options() -> None:
    options = bytes.fromhex("020405b4 0402 080a 00000007 00000009 01 030307")
    head = struct.pack(">HHIIHHHH", 40000, 443, 5, 0, 0xA002, 64240, 0xABCD, 0)
    layers = dissect(v4(6, "10.0.0.1", "10.0.0.2", head + options), 60)
    assert [layer.name for layer in layers] == ["IPv4", "TCP"]
    tcp = one(layers, "TCP")
    assert (tcp["sport"], tcp["dport"], tcp["flags"]) == ("40000", "443", "SYN")
    assert (tcp["mss"], tcp["sack"], tcp["wscale"]) == ("1460", "permitted", "7")
    assert tcp["timestamps"] == "7 echo 9"
    assert not any(layer.note for layer in layers)


def test_a_wrong_header_checksum_is_shown_with_the_correct_one() -> None:
    packet = bytearray.fromhex("450000730000400040110000c0a80001c0a800c7") + bytes(95)
    packet[10:12] = b"\xb8\x61"
    assert one(dissect(bytes(packet), 115), "IPv4")["checksum"] == "0xb861 correct"
    packet[8] = 1
    text = one(dissect(bytes(packet), 115), "IPv4")["checksum"]
    assert text.startswith("0xb861 wrong, not 0x")


def test_the_packet_quoted_in_an_icmp_error_is_decoded() -> None:
    quoted = v4(17, "10.0.0.1", "10.9.0.1", udp(40000, 53))
    error = struct.pack(">BBHHH", 3, 4, 0, 0, 1400) + quoted
    layers = dissect(v4(1, "10.0.0.254", "10.0.0.1", error), 20 + len(error))
    icmp = one(layers, "ICMP")
    assert icmp["type"] == "Destination unreachable (3)"
    assert icmp["code"] == "fragmentation needed (4)"
    assert icmp["next-hop mtu"] == "1400"
    assert one(layers, "IPv4", depth=1)["dst"] == "10.9.0.1"
    assert one(layers, "UDP", depth=1)["dport"] == "53"


def test_a_neighbour_solicitation_shows_its_target() -> None:
    target = bytes(15) + b"\x09"
    body = struct.pack(">BBHI", 135, 0, 0, 0) + target + b"\x01\x01\x02\x00\x00\x00\x00\x07"
    layers = dissect(v6(58, body), 40 + len(body))
    icmp = one(layers, "ICMPv6")
    assert icmp["type"] == "Neighbour solicitation (135)"
    assert (icmp["target"], icmp["source mac"]) == ("::9", "02:00:00:00:00:07")
    ipv6 = one(layers, "IPv6")
    assert (ipv6["dscp"], ipv6["hop limit"], ipv6["flow label"]) == ("EF (46)", "63", "0x12345")


def test_extension_headers_are_listed_between_ipv6_and_udp() -> None:
    hop = bytes([60, 0, 5, 2, 0, 0, 1, 0])
    dst = bytes([44, 0, 1, 4, 0, 0, 0, 0])
    fragment = struct.pack(">BBHI", 17, 0, 1, 77)
    body = hop + dst + fragment + udp(1, 2)
    layers = dissect(v6(0, body), 40 + len(body))
    names = ["IPv6", "IPv6 hop-by-hop", "IPv6 destination", "IPv6 fragment", "UDP"]
    assert [layer.name for layer in layers] == names
    assert one(layers, "IPv6 hop-by-hop")["option"] == "router alert (5) 00 00"
    assert one(layers, "IPv6 fragment")["more"] == "yes"


def test_a_later_fragment_has_no_transport_header() -> None:
    layers = dissect(v4(17, "10.0.0.1", "10.0.0.2", udp(1, 2), frag=0x2010), 28)
    assert [layer.name for layer in layers] == ["IPv4", "Data"]
    assert one(layers, "IPv4")["offset"] == "128"


def test_the_packet_inside_a_tunnel_is_decoded() -> None:
    inner = v4(17, "192.0.2.1", "192.0.2.2", udp(1000, 2000))
    gre = struct.pack(">HHI", 0x2000, 0x0800, 0xBEEF) + inner
    layers = dissect(v4(47, "10.0.0.1", "10.0.0.2", gre), 20 + len(gre))
    assert one(layers, "GRE")["key"] == "0x0000beef"
    assert one(layers, "UDP", depth=1)["sport"] == "1000"
    assert one(dissect(v4(4, "10.0.0.1", "10.0.0.2", inner), 76), "UDP", depth=1)


@pytest.mark.parametrize(
    ("proto", "body", "name", "field", "value"),
    [
        (50, struct.pack(">II", 0x1001, 9) + bytes(20), "ESP", "encrypted", "20 bytes"),
        (51, struct.pack(">BBHII", 6, 4, 0, 7, 9) + bytes(12), "AH", "spi", "0x00000007"),
        (
            132,
            struct.pack(">HHIIBBHIIHHI", 1, 2, 0, 0, 1, 0, 20, 3, 4, 5, 6, 7),
            "SCTP",
            "chunk",
            "INIT (1) flags 0x00 length 20",
        ),
        (136, udp(5, 6), "UDPLITE", "dport", "6"),
        (2, bytes([0x16, 0, 0, 0, 224, 0, 0, 9]), "IGMP", "group", "224.0.0.9"),
        (250, b"abc", "Protocol 250", "length", "3 bytes"),
    ],
)
def test_other_protocols_show_their_fields(
    proto: int, body: bytes, name: str, field: str, value: str
) -> None:
    layers = dissect(v4(proto, "10.0.0.1", "10.0.0.2", body), 20 + len(body))
    assert one(layers, name)[field] == value


def test_a_dns_question_shows_its_name() -> None:
    name = b"\x03www\x07example\x03org\x00"
    body = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 28, 1)
    layers = dissect(v4(17, "10.0.0.1", "10.0.0.2", udp(40000, 53, body)), 28 + len(body))
    data = one(layers, "Data")
    assert (data["dns"], data["name"], data["type"]) == ("question", "www.example.org", "AAAA (28)")


def test_an_http_request_shows_its_host() -> None:
    body = b"GET /\x1b[2J HTTP/1.1\r\nHost: [b]x[/b]\r\n\r\n"
    tcp = struct.pack(">HHIIHHHH", 40000, 80, 1, 1, 0x5018, 1000, 0, 0) + body
    layers = dissect(v4(6, "10.0.0.1", "10.0.0.2", tcp), 20 + len(tcp))
    data = one(layers, "Data")
    assert data["line"] == r"GET /\x1b[2J HTTP/1.1"
    assert data["host"] == "[b]x[/b]"


def test_a_client_hello_shows_the_server_name() -> None:
    name = b"\x00\x00\x00\x09\x00\x07\x00\x00\x04a.bc"
    hello = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    hello += struct.pack(">H", len(name)) + name
    body = b"\x16\x03\x01" + struct.pack(">H", len(hello) + 4) + b"\x01\x00"
    body += struct.pack(">H", len(hello)) + hello
    tcp = struct.pack(">HHIIHHHH", 40000, 443, 1, 1, 0x5018, 1000, 0, 0) + body
    data = one(dissect(v4(6, "10.0.0.1", "10.0.0.2", tcp), 20 + len(tcp)), "Data")
    assert (data["handshake"], data["server"]) == ("ClientHello (1)", "a.bc")


def test_the_link_layer_shows_addresses_and_vlan() -> None:
    mac = bytes.fromhex("ffffffffffff020000000001") + b"\x08\x00"
    layers = dissect(v4(17, "10.0.0.1", "10.0.0.2", udp(1, 2)), 28, mac, 0x0800, 0x6007)
    link = one(layers, "Ethernet")
    assert link["dst"] == "ff:ff:ff:ff:ff:ff (broadcast)"
    assert (link["type"], link["vlan"]) == ("IPv4 (0x0800)", "id 7 priority 3")


@pytest.mark.parametrize("captured", range(28))
def test_a_cut_header_has_a_note_and_no_invented_fields(captured: int) -> None:
    whole = v4(17, "10.0.0.1", "10.0.0.2", udp(40000, 53))
    layers = dissect(whole[:captured], len(whole))
    assert layers[-1].note
    shown = {field for layer in layers if layer.name == "UDP" for field, _ in layer.fields}
    assert ("checksum" in shown) == (captured == 28)


@pytest.mark.parametrize(
    ("packet", "what"),
    [
        (b"\x42" + bytes(19), "header length is 8 bytes"),
        (b"\x45\x00\x00\x0a" + bytes(16), "10 bytes, less than the header"),
        (b"\x95" + bytes(30), "version 9"),
        (b"", "nothing was captured"),
        (v4(6, "1.1.1.1", "2.2.2.2", bytes(12) + b"\x40" + bytes(7)), "header length is 16 bytes"),
        (v4(6, "1.1.1.1", "2.2.2.2", bytes(12) + b"\x60" + bytes(7) + b"\x02\x00"), "option 2"),
        (v4(17, "1.1.1.1", "2.2.2.2", b"\0\1\0\2\0\3\0\0"), "3 bytes, less than the header"),
        (v4(132, "1.1.1.1", "2.2.2.2", bytes(12) + b"\0\0\0\0"), "the minimum is 4"),
        (v6(0, bytes([6, 0, 1, 200]) + bytes(4)), "option"),
    ],
)
def test_inconsistent_lengths_have_a_note(packet: bytes, what: str) -> None:
    layers = dissect(packet, max(len(packet), 20))
    notes = " ".join(layer.note for layer in layers)
    assert what in notes


def test_nested_packets_are_bounded() -> None:
    packet = b""
    for _ in range(6):
        packet = v4(4, "10.0.0.1", "10.0.0.2", packet)
    layers = dissect(packet, len(packet))
    assert len(layers) <= MOST_LAYERS
    assert layers[-1].note == "too many nested packets"


STARTS = st.sampled_from(
    [b"", *(v4(proto, "10.0.0.1", "10.0.0.2", b"") for proto in (1, 2, 4, 6, 17, 33, 41, 47, 51))]
    + [v6(proto, b"") for proto in (0, 4, 41, 43, 44, 51, 58, 60, 132, 17)]
    + [v4(17, "10.0.0.1", "10.0.0.2", udp(53, 53)), b"\x45", b"\x60"]
)


@settings(max_examples=400, deadline=None)
@given(
    start=STARTS,
    body=st.binary(max_size=128),
    given_length=st.integers(0, 65535),
    length=st.integers(0, 1 << 20),
    mac=st.binary(max_size=18),
    numbers=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
)
def test_arbitrary_bytes_give_bounded_clean_layers(
    start: bytes, body: bytes, given_length: int, length: int, mac: bytes, numbers: tuple[int, int]
) -> None:
    data = bytearray((start + body)[:128])
    if len(data) > 5 and data[0] >> 4 == 4:
        data[2:4] = given_length.to_bytes(2, "big")
    elif len(data) > 5:
        data[4:6] = given_length.to_bytes(2, "big")
    layers = dissect(bytes(data), length, mac, *numbers)
    assert len(layers) <= MOST_LAYERS
    for layer in layers:
        assert len(layer.fields) <= 48
        for text in (layer.name, layer.note, *(part for field in layer.fields for part in field)):
            assert len(text) <= 256
            assert not {unicodedata.category(char) for char in text} & {"Cc", "Cf", "Cs", "Zl"}


@given(st.binary(max_size=128))
def test_the_dump_contains_every_byte_once(data: bytes) -> None:
    lines = hex_dump(data)
    assert bytes.fromhex("".join(octets for _, octets, _ in lines)) == data
    assert [int(offset, 16) for offset, _, _ in lines] == list(range(0, len(data), 16))
    assert "".join(text for _, _, text in lines).isprintable()
