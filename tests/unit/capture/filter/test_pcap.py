# SPDX-License-Identifier: GPL-2.0-only
"""Filter expressions: what they match, and what a user reads about a wrong one."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.capture.filter import opcodes
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.filter.pcap import FilterError, matches


def ipv4(proto: int, payload: bytes, src: str = "10.0.0.1", dst: str = "10.0.0.2") -> bytes:
    size = 20 + len(payload)
    ends = socket.inet_aton(src) + socket.inet_aton(dst)
    return struct.pack(">BBHHHBBH", 0x45, 0, size, 1, 0, 64, proto, 0) + ends + payload


def ipv6(proto: int, payload: bytes, src: str = "2001:db8::1", dst: str = "2001:db8::2") -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
    return struct.pack(">IHBB", 0x60000000, len(payload), proto, 64) + ends + payload


def ports(sport: int, dport: int) -> bytes:
    return struct.pack(">HHHH", sport, dport, 8, 0)


SYN = struct.pack(">HHIIBBHHH", 40000, 443, 1, 0, 0x50, 0x02, 1024, 0, 0)


@pytest.mark.parametrize("expr", ["", " ", "\t\n"])
def test_no_expression_means_every_packet(expr: str) -> None:
    assert pcapfilter.compile(expr) == b""
    assert matches(b"", ipv4(17, ports(1, 2)))


@pytest.mark.parametrize(
    ("expr", "packet", "matched"),
    [
        ("host 10.0.0.1", ipv4(17, ports(1, 53)), True),
        ("host 10.0.0.3", ipv4(17, ports(1, 53)), False),
        ("net 10.0.0.0/8 and udp port 53", ipv4(17, ports(1, 53)), True),
        ("port 53", ipv6(17, ports(1, 53)), True),
        ("port 54", ipv6(17, ports(1, 53)), False),
        ("ip6 host 2001:db8::2", ipv6(17, ports(1, 53)), True),
        ("ip6", ipv4(17, ports(1, 53)), False),
        ("icmp", ipv4(1, b"\x08\x00\x00\x00\x00\x00\x00\x00"), True),
        ("icmp6", ipv6(58, b"\x80\x00\x00\x00\x00\x00\x00\x00"), True),
        ("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn", ipv4(6, SYN), True),
        ("tcp[tcpflags] & tcp-ack != 0", ipv4(6, SYN), False),
        ("less 30", ipv4(17, ports(1, 2)), True),
        ("greater 100", ipv4(17, ports(1, 2)), False),
        ("not (tcp or udp)", ipv4(17, ports(1, 2)), False),
        ("udp", b"", False),
        ("udp port 53", b"\x45", False),
    ],
)
def test_an_expression_matches_the_packets_it_describes(
    expr: str, packet: bytes, matched: bool
) -> None:
    assert matches(pcapfilter.compile(expr), packet) is matched


@pytest.mark.parametrize(
    "expr",
    [
        "tcp port 80",
        "ip6 host ::1 or net 10.0.0.0/8",
        "ip[0] & 0xf << 31 = 1",
        "ip[ip[0] & 15] / 3 % 2 != tcp[0:4]",
        "udp[ip[8]] = 1 and len > 100",
    ],
)
def test_the_kernel_accepts_the_program(expr: str) -> None:
    program = pcapfilter.compile(expr)
    assert len(program) % 8 == 0
    # WHEN the program is attached to a socket THEN the kernel accepts it
    buffer = ctypes.create_string_buffer(program, len(program))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, 26, fprog)  # SO_ATTACH_FILTER


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (
            "host 1.2.3.4 and and port 80",
            "filter: can't parse filter expression: syntax error\n"
            "  host 1.2.3.4 and and port 80\n"
            "                   ^",
        ),
        (
            "tcp and ",
            "filter: can't parse filter expression: syntax error (the expression ends too early)\n"
            "  tcp and\n"
            "         ^",
        ),
        (
            "tcp or ((udp)",
            "filter: can't parse filter expression: syntax error (the expression ends too early)\n"
            "  tcp or ((udp)\n"
            "               ^",
        ),
        (
            "tcp port 80)",
            "filter: can't parse filter expression: syntax error\n"
            "  tcp port 80)\n"
            "             ^",
        ),
        (
            "port http or port htttp",
            "filter: unknown port 'htttp'\n"
            "  port http or port htttp\n"
            "                    ^",
        ),
        (
            "udp or tcp port 99999",
            "filter: illegal port number 99999 > 65535\n"
            "  udp or tcp port 99999\n"
            "                  ^",
        ),
        (
            "net 10.0.0.1/8 or tcp",
            'filter: non-network bits set in "10.0.0.1/8"\n'
            "  net 10.0.0.1/8 or tcp\n"
            "               ^",
        ),
        (
            "ip host fe80::1",
            "filter: 'ip' modifier applied to ip6 host\n"
            "  ip host fe80::1\n"
            "          ^",
        ),
        (
            "tcp and ether host 2:0:0:0:0:1",
            "filter: ethernet addresses supported only on "
            "ethernet/FDDI/token ring/802.11/ATM LANE/Fibre Channel\n"
            "  tcp and ether host 2:0:0:0:0:1\n"
            "                     ^",
        ),
        ("tcp and udp", "filter: expression rejects all packets"),
    ],
)  # fmt: skip
def test_a_wrong_expression_gets_libpcaps_message_and_a_caret(expr: str, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        pcapfilter.compile(expr)
    assert str(caught.value) == message


def test_the_caret_points_at_an_unknown_host_name_after_one_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN a name that does not exist (RFC 6761)
    queries = []
    compile_once = pcapfilter._compile

    def counting(expr: str, *, optimise: bool) -> tuple[bytes, str]:
        queries.append(expr)
        return b"", "unknown host 'nosuch.invalid'"

    monkeypatch.setattr(pcapfilter, "_compile", counting)
    with pytest.raises(FilterError) as caught:
        pcapfilter.compile("tcp or host nosuch.invalid")
    # THEN the caret is under it, and it was looked up once
    assert caught.value.position == 12
    assert len(queries) == 1
    assert compile_once("tcp", optimise=False)[1] == ""


@pytest.mark.parametrize("expr", ["inbound", "outbound", "ifindex 2", "ip[0xfffff004] = 1"])
def test_what_is_not_available_in_iptables_is_refused(expr: str) -> None:
    with pytest.raises(FilterError, match="not available inside iptables"):
        pcapfilter.compile(expr)


@pytest.mark.parametrize("expr", ["protochain 6", "ip6 protochain 6 or udp"])
def test_a_loop_is_refused_before_the_kernel_sees_it(expr: str) -> None:
    with pytest.raises(FilterError, match="protochain needs a loop"):
        pcapfilter.compile(expr)


def test_the_caret_is_at_the_error_in_a_long_expression() -> None:
    # GIVEN an error after 2,000 characters
    with pytest.raises(FilterError) as caught:
        pcapfilter.compile("host 10.0.0.1 or " * 117 + "bogus or tcp")
    # THEN the part around it appears, with the caret under it
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 80
    assert shown[caret.index("^") :].startswith("bogus or tcp")


def test_the_caret_is_at_the_error_after_wide_characters() -> None:
    assert pcapfilter._caret("防 x", 2) == "  防 x\n     ^"


def test_an_expression_of_100_kb_is_refused_in_one_line() -> None:
    with pytest.raises(FilterError, match="too long") as caught:
        pcapfilter.compile("tcp or " * 15_000)
    assert "\n" not in str(caught.value)


def test_a_program_too_long_for_the_kernel_is_refused_in_one_line() -> None:
    # GIVEN more hosts than 4,096 instructions can compare
    expr = " or ".join(f"host 10.{i >> 8}.{i & 255}.1" for i in range(1100))
    with pytest.raises(FilterError, match=r"needs \d+ instructions, the kernel allows 4096"):
        pcapfilter.compile(expr)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("tcp\0udp", "contains a NUL character"),
        ("\ud800", "is not valid UTF-8"),
        ("(" * 30_000 + "tcp", "nested too deeply"),
        ("tcp \x1b[2J", "syntax error"),
        ("tcp\nand\nand", "syntax error"),
        ("host \udcff", "syntax error"),
    ],
)
def test_a_strange_expression_gets_a_clear_and_harmless_message(expr: str, message: str) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        pcapfilter.compile(expr)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


WORDS = (
    "tcp udp ip ip6 and or not ( ) host net port 80 10.0.0.1 10.0.0.0/8 ::1 [ ] = < 13 & src dst"
)


@given(st.lists(st.sampled_from(WORDS.split()), max_size=12))
def test_any_words_give_a_program_or_a_caret_within_the_expression(words: list[str]) -> None:
    expr = " ".join(words)
    position: int | None = None
    try:
        matches(pcapfilter.compile(expr), ipv4(6, SYN))
    except FilterError as error:
        position = error.position
    assert position is None or 0 <= position <= len(expr)


# Any opcodes, and the valid ones, which a random number would rarely be.
CODES = st.one_of(st.integers(0, 0xFFFF), st.sampled_from(sorted(opcodes.ALL)))
INSTRUCTIONS = st.tuples(CODES, st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))


@given(st.lists(INSTRUCTIONS, max_size=8), st.binary(max_size=7), st.binary(max_size=60))
def test_any_bytes_are_a_program_or_refused_without_harm(
    instructions: list[tuple[int, int, int, int]], rest: bytes, packet: bytes
) -> None:
    program = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    for candidate in (program, program + struct.pack("=HBBI", 0x06, 0, 0, 1), program + rest):
        with contextlib.suppress(FilterError):
            assert matches(candidate, packet) in (True, False)


ENDLESS = struct.pack("=HBBIHBBI", 0x05, 0, 0, 0xFFFFFFFF, 0x06, 0, 0, 1)


NEGATED_BY_X = struct.pack("=HBBIHBBI", 0x8C, 0, 0, 0, 0x06, 0, 0, 1)  # libpcap aborts at it


def test_bytes_that_are_not_a_program_are_refused() -> None:
    for program in (NEGATED_BY_X, b"\0", b"\xff" * 8, pcapfilter.compile("tcp")[:-8], ENDLESS):
        with pytest.raises(FilterError, match="not a valid classic BPF program"):
            matches(program, b"")


def test_without_libpcap_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    pcapfilter._libpcap.cache_clear()
    pcapfilter.compile.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert pcapfilter.compile("") == b""
    with pytest.raises(FilterError, match=r"apt install libpcap0\.8"):
        pcapfilter.compile("tcp")


def test_an_expression_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a start, which asks for the same program several times
    compiled = []
    compile_once = pcapfilter._compile

    def counting(expr: str, *, optimise: bool) -> tuple[bytes, str]:
        compiled.append(expr)
        return compile_once(expr, optimise=optimise)

    monkeypatch.setattr(pcapfilter, "_compile", counting)
    pcapfilter.compile.cache_clear()
    programs = {pcapfilter.compile("udp port 53") for _ in range(3)}
    # THEN libpcap compiled it once
    assert len(programs) == 1
    assert compiled == ["udp port 53"]
    # WHEN a user sets another filter, and returns to the first
    pcapfilter.compile("tcp")
    pcapfilter.compile("udp port 53")
    # THEN it is compiled anew, since its names may have other addresses by now
    assert compiled == ["udp port 53", "tcp", "udp port 53"]


def test_a_wrong_expression_is_wrong_each_time() -> None:
    for _ in range(2):
        with pytest.raises(FilterError, match="syntax error"):
            pcapfilter.compile("tcp and and")
